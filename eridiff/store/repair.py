"""`eridiff store repair`: damage is removed wherever it stands, sound entries are kept, and what follows is compared.

Store shard, DVC's object and the project's file are often one inode, and DVC trusts a read-only object: damage in one
is damage in all, and DVC would link it back. So all three go together. The next `dvc repro` makes them again.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from eridiff.core.files import MAX_LISTING_BYTES, canonical_json, inode, write_text
from eridiff.core.json_files import load_json
from eridiff.dvc.outs import KIND_OF, OwnOut, all_objects
from eridiff.store.entries import open_shard, read_entry
from eridiff.store.faults import Fault
from eridiff.store.store import Store
from eridiff.store.verify import KINDS, ORIGINAL, sound_entries

LEFT = ("stray", ORIGINAL)  # kinds of faults that are not ours to remove
RECORD = Path("runs/repair.json")  # of the project: out -> md5 in dvc.lock when it was repaired


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """What a repair did."""

    removed: tuple[Path, ...]
    kept: int  # sound entries of damaged shards, now in files of their own
    stages: tuple[str, ...]  # whose outs were damaged
    left: tuple[Fault, ...]  # what is not ours to remove


def repair(root: Path, faults: Iterable[Fault], outs: Iterable[OwnOut], cache: Path | None) -> Repaired:
    """Remove what is damaged in the store, in the project's outs and in DVC's cache, with all links to it.

    cache: DVC's cache, None outside a project. Sound entries of damaged shards are written as files of their own.
    """
    faults, outs = list(faults), list(outs)
    left = tuple(fault for fault in faults if fault.what in LEFT)
    removed = _all_links(root, [fault.path for fault in faults if fault not in left], outs, cache)
    touched = [out for out in outs if set(removed).intersection(_paths(out))]
    if touched:
        write_text(RECORD, canonical_json({str(out.folder): out.md5 for out in touched}) + "\n")
    kept = sum(_keep_sound(Store(root, kind), paths) for kind, paths in _by_kind(root, removed, outs).items())
    for path in removed:
        path.unlink(missing_ok=True)
    return Repaired(
        removed=tuple(removed),
        kept=kept,
        stages=tuple(out.stage for out in touched),
        left=left,
    )


def _all_links(root: Path, damaged: list[Path], outs: list[OwnOut], cache: Path | None) -> list[Path]:
    """The damaged files and every other name of the same inode; for each lost object the project's file of it too."""
    inodes = {inode(path) for path in damaged if path.exists()}
    names = [path for kind in KINDS for path in sorted((root / kind).glob("shards/*.safetensors"))]
    names += [*all_objects(cache)] if cache is not None else []
    names += [file.path for out in outs for file in out.files if file.path.exists()]
    found = dict.fromkeys([*damaged, *(path for path in names if inode(path) in inodes)])
    copies = [file.path for out in outs for file in out.files if file.object in found and file.path.exists()]
    return list(dict.fromkeys([*found, *copies]))


def _paths(out: OwnOut) -> set[Path]:
    return {out.listing, *(file.object for file in out.files), *(file.path for file in out.files)}


def _by_kind(root: Path, paths: list[Path], outs: list[OwnOut]) -> dict[str, list[Path]]:
    """Kind -> those of the files that are shards: of the store, or objects of the project's outs."""
    found: dict[str, list[Path]] = {}
    for kind in KINDS:
        found[kind] = [path for path in paths if path.parent == root / kind / "shards"]
    for out in (out for out in outs if out.stage in KIND_OF):
        shards = {file.object for file in out.files if file.path.suffix == ".safetensors"}
        found[KIND_OF[out.stage]] += [path for path in paths if path in shards]
    return {kind: found[kind] for kind in KINDS if found[kind]}


def _keep_sound(store: Store, paths: list[Path]) -> int:
    """Write the sound entries of damaged shards as files of their own, unless the store has them; returns how many."""
    there = {key for key, entry in store.catalogue.items() if entry.path not in paths}
    kept: set[str] = set()
    for path in paths:
        file = None
        for entry in sound_entries(path):
            if entry.key not in there | kept:
                file = file or open_shard(path)
                store.keep(entry.key, entry.key_fields, read_entry(file, entry.key, entry.checksum))
                kept.add(entry.key)
    return len(kept)


def compare(outs: Iterable[OwnOut]) -> list[tuple[str, bool]]:
    """After a repair and `dvc repro`: each repaired out, and whether dvc.lock names the same bytes as before.

    [] where nothing was repaired, or `dvc repro` has not run since. The record is removed once it is answered.
    """
    with suppress(FileNotFoundError):
        before = load_json(RECORD, MAX_LISTING_BYTES)
        now = {str(out.folder): out for out in outs}
        if any(out not in now or not _is_whole(now[out]) for out in before):
            return []
        RECORD.unlink()
        return [(out, now[out].md5 == md5) for out, md5 in sorted(before.items())]
    return []


def _is_whole(out: OwnOut) -> bool:
    """Whether an out and its objects are there again."""
    return bool(out.files) and all(path.exists() for path in _paths(out))
