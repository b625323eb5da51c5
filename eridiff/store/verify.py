"""`eridiff store verify`: every byte of the store, of the project's outs and of DVC's objects of them is looked at.

A file of the store is sound where it is, byte for byte, what the store would write: shards and entries
(eridiff/store/faults.py), states and checkpoints of trainings, pins, checks of drift and of kernels, and the catalogue
by their checksum (eridiff/formats/seals.py), quantised bases by their digest, pixel digests by their name. A file of an
out or of DVC's cache is sound where its md5 is the one that dvc.lock leads to. Files that change no result (`rates`,
`footprints`) have none.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from eridiff.core.errors import DataError, StoreError
from eridiff.core.files import MAX_LISTING_BYTES, map_file, read_file
from eridiff.core.progress import track
from eridiff.dvc.outs import OwnOut, digest_md5
from eridiff.formats.safetensors import TensorFile, holds_digest
from eridiff.formats.seals import check_seal
from eridiff.store.catalogue import NAME as CATALOGUE
from eridiff.store.catalogue import UNSEALED as UNSEALED_CATALOGUE
from eridiff.store.entries import Location, check_parts, open_shard, read_catalogue, read_entry
from eridiff.store.faults import Fault, check_file, check_loose, check_shard, reason_of
from eridiff.store.marker import FORMAT, OWN_NAMES
from eridiff.store.pins import BASES, PINS, read_pin
from eridiff.store.pixels import PixelDigests

KINDS = ("latents", "texts")


ORIGINAL = "original"  # what of a fault: DVC's object of a user's own file
SEALED = {  # files of the store that carry a checksum -> what they are
    "runs/*/*.safetensors": "state",
    "runs/*/checkpoints/*.safetensors": "checkpoint",
    "probes/*/*.json": "drift check",
    "kernels/*.json": "kernel check",
}
Check = Callable[[Path], Iterable[Fault]]


def verify(root: Path, outs: Iterable[OwnOut], originals: Iterable[OwnOut] = ()) -> list[Fault]:
    """All faults of a store, of a project's outs, and of DVC's objects of these and of originals. Reads every byte."""
    checks = [*_store_checks(root), *_out_checks(outs), *_original_checks(originals)]
    faults: list[Fault] = []
    for path, check in track(checks, what="verify", total=len(checks), unit="files"):
        with suppress(FileNotFoundError):  # moved into a shard, or collected, meanwhile
            faults += check(path)
    return faults


def sound_entries(path: Path) -> Iterator[Location]:
    """The entries of a file that are whole; none where its header cannot be read."""
    with suppress(StoreError):
        file = open_shard(path)
        for entry in read_catalogue(file).values():
            with suppress(StoreError):
                check_parts(entry)
                read_entry(file, entry.key, entry.checksum)
                yield entry


def _store_checks(root: Path) -> Iterator[tuple[Path, Check]]:
    for path in sorted(root.glob("*")):
        if path.name not in OWN_NAMES and not _is_temporary(path):
            yield path, _is_stray
    for kind in KINDS:
        for path in sorted((root / kind).rglob("*")):
            if path.is_dir() or _is_temporary(path):
                continue
            place = path.relative_to(root / kind).parts
            if len(place) == 2 and place[0] == "shards" and path.suffix == ".safetensors":
                yield path, check_shard
            elif len(place) == 3 and place[0] == "entries" and path.suffix == ".safetensors":
                yield path, check_loose
            elif place not in ((CATALOGUE,), (UNSEALED_CATALOGUE,)):
                yield path, _is_stray
    yield root / "FORMAT", _check_format
    for kind in KINDS:
        yield root / kind / CATALOGUE, _seal_check("catalogue")
    for pattern, what in SEALED.items():
        yield from ((path, _seal_check(what)) for path in sorted(root.glob(pattern)) if not _is_temporary(path))
    for path in sorted((root / BASES).glob("*.safetensors")):
        if not _is_temporary(path):
            yield path, _check_kept
    for folder, suffix, check in (("pixels", ".tsv", _check_pixels), (PINS, ".json", _check_pin)):
        for path in sorted((root / folder).glob("*")):
            if not _is_temporary(path):
                yield path, check if path.suffix == suffix else _is_stray


def _seal_check(what: str) -> Check:
    def check(path: Path) -> list[Fault]:
        try:
            check_seal(map_file(path), path)
        except DataError:
            return [Fault(path=path, what=what, problem="its bytes do not give the checksum that it must carry")]
        return []

    return check


def _check_format(path: Path) -> list[Fault]:
    if read_file(path).decode("utf-8", "replace") == FORMAT:
        return []
    return [Fault(path=path, what="stray", problem=f"it must say {FORMAT.strip()!r}: write that into it")]


def _check_kept(path: Path) -> list[Fault]:
    try:
        sound = holds_digest(TensorFile(path))
    except DataError:
        sound = False
    return [] if sound else [Fault(path=path, what="base", problem="its content does not give its digest")]


def _original_checks(originals: Iterable[OwnOut]) -> Iterator[tuple[Path, Check]]:
    """DVC's objects of files that the user put under it; those files themselves may be edited at will."""
    for out in originals:
        objects = {out.listing: out.md5.removesuffix(".dir"), **{file.object: file.md5 for file in out.files}}
        yield from ((path, _md5_check(md5, ORIGINAL)) for path, md5 in sorted(objects.items()) if path.exists())


def _out_checks(outs: Iterable[OwnOut]) -> Iterator[tuple[Path, Check]]:
    for out in outs:
        md5s = {file.path: (file.md5, "out") for file in out.files} | {
            file.object: (file.md5, "object") for file in out.files
        }
        md5s[out.listing] = (out.md5.removesuffix(".dir"), "listing")
        for path, (md5, what) in sorted(md5s.items()):
            if path.exists():  # an out that is not checked out, or not pulled, is no damage
                yield path, _md5_check(md5, what)
        if out.files:
            known = {file.path for file in out.files}
            yield from ((path, _is_stray) for path in sorted(out.folder.rglob("*")) if path not in known)


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _is_stray(path: Path) -> list[Fault]:
    return [Fault(path=path, what="stray", problem="nothing of eridiff's: remove it")]


def _md5_check(md5: str, what: str) -> Check:
    def check(path: Path) -> list[Fault]:
        found = digest_md5(path)
        if found == md5:
            return []
        # A shard can say which entries.
        faults = check_file(path, what)[0] if path.suffix == ".safetensors" or what == "object" else []
        named = [fault for fault in faults if fault.key]
        return named or [Fault(path=path, what=what, problem=f"its md5 is {found}, not {md5}")]

    return check


def _check_pixels(path: Path) -> list[Fault]:
    text = read_file(path, MAX_LISTING_BYTES).decode("utf-8", "replace")
    if path.name == PixelDigests.file_name(text):
        return []
    return [Fault(path=path, what="pixels", problem="its content does not give its name")]


def _check_pin(path: Path) -> list[Fault]:
    try:
        pin = read_pin(path)
    except StoreError as error:
        return [Fault(path=path, what="pin", problem=reason_of(error, path))]
    if not os.path.isabs(pin.project):
        return [Fault(path=path, what="pin", problem=f"{pin.project} is no project's folder")]
    return []
