"""What the store and a project take on disk.

With hardlinks a shard of the store, DVC's object and the project's file are one inode (eridiff/store/dedupe.py): disk
is payload. Without, the store has one copy, and DVC's cache and the project's folder one each, or one together where
those two can be linked.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from eridiff.dvc.outs import KIND_OF, OwnOut
from eridiff.store.dedupe import BLOCK_BYTES, KINDS, store_shard
from eridiff.store.entries import open_shard, read_catalogue
from eridiff.store.store import Store


@dataclass(frozen=True, kw_only=True)
class KindSize:
    """How much of one kind a store holds."""

    kind: str
    entries: int  # distinct keys
    shards: int
    loose: int
    bytes: int  # of all files


@dataclass(frozen=True, kw_only=True)
class ProjectSize:
    """What a project's caches take: bytes on disk, each inode counted once, in the order store, DVC's cache, folder."""

    payload: int  # bytes of tensors
    store: int
    cache: int  # beyond what the store has
    folder: int  # beyond what the store and DVC's cache have

    @property
    def disk(self) -> int:
        """Bytes on disk in all."""
        return self.store + self.cache + self.folder

    @property
    def factor(self) -> float:
        """Bytes on disk for each byte of payload."""
        return self.disk / self.payload if self.payload else 0.0


def kind_sizes(root: Path) -> list[KindSize]:
    """What a store holds, by kind."""
    found = []
    for kind in KINDS:
        entries = len(Store(root, kind).catalogue)
        shards = [path for path in (root / kind).glob("shards/*.safetensors") if not path.name.startswith(".")]
        loose = [path for path in (root / kind).glob("entries/*/*.safetensors") if not path.name.startswith(".")]
        size = sum(path.stat().st_size for path in [*shards, *loose])
        found.append(KindSize(kind=kind, entries=entries, shards=len(shards), loose=len(loose), bytes=size))
    return found


def project_size(root: Path, outs: Iterable[OwnOut]) -> ProjectSize:
    """What the caches of the current project take in its present state."""
    shards, objects, files, payload = [], [], [], 0
    for out in (out for out in outs if out.stage in KIND_OF):
        for file in out.files:
            objects.append(file.object)
            files.append(file.path)
            place = next((path for path in (file.object, file.path) if path.exists()), None)
            if place is not None and file.path.suffix == ".safetensors":
                entries = read_catalogue(open_shard(place))
                payload += sum(entry.size for entry in entries.values())
                shards.append(store_shard(root, out.stage, entries))
        objects.append(out.listing)
    seen: set[tuple[int, int]] = set()
    store, cache, folder = (_disk(paths, seen) for paths in (shards, objects, files))
    return ProjectSize(payload=payload, store=store, cache=cache, folder=folder)


def disk_of(folder: Path) -> int:
    """Bytes on disk below a folder, each inode once."""
    return _disk((path for path in folder.rglob("*") if path.is_file()), set())


def _disk(paths: Iterable[Path], seen: set[tuple[int, int]]) -> int:
    """Bytes on disk of files whose inodes were not seen yet."""
    total = 0
    for path in paths:
        with suppress(FileNotFoundError):
            facts = path.stat()
            if (facts.st_dev, facts.st_ino) not in seen:
                seen.add((facts.st_dev, facts.st_ino))
                total += facts.st_blocks * BLOCK_BYTES
    return total
