"""Which entries a store has: the headers of its files, those of shards remembered in one Parquet file.

    STORE/KIND/catalogue.parquet    shard, its bytes and time; key, checksum and bytes of each entry in it

The headers are the truth. What is remembered of a shard counts while its size and time are the ones that it was read
with; the file is written again where a shard is new or gone, and may be removed at any time.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from eridiff.entries import WAY_OUT, Location, open_shard, read_catalogue, shard_id
from eridiff.errors import StoreError
from eridiff.files import atomic_write

NAME = "catalogue.parquet"
COLUMNS = ("shard", "bytes", "mtime_ns", "key", "checksum", "size")
Facts = tuple[int, int]  # bytes and mtime_ns of a shard file


@dataclass
class Catalogue:
    """The entries of one kind, and the files that hold them."""

    entries: dict[str, Location] = field(default_factory=dict)
    """Key -> where it lies. Shards in sorted order, then loose entries: the first wins."""
    shards: set[Path] = field(default_factory=set)
    """Shards whose header is sound."""
    loose: set[str] = field(default_factory=set)
    """Keys that have a file of their own."""
    damaged: dict[Path, str] = field(default_factory=dict)
    """Files whose header cannot be read, and why. What they held counts as missing."""


def read_store(folder: Path) -> Catalogue:
    """The catalogue of STORE/KIND. Files that other processes move or remove meanwhile make it look again."""
    while True:
        with suppress(FileNotFoundError):  # an entry moved into a shard that was not there when they were listed
            return _read_once(folder)


def _read_once(folder: Path) -> Catalogue:
    loose = sorted(folder.glob("entries/*/*.safetensors"))
    shards = sorted(_list_shards(folder / "shards"))
    remembered = _recall(folder / NAME)
    found = Catalogue()
    rows: dict[str, tuple[Facts, list[Location]]] = {}
    for path, facts in shards:
        known = remembered.get(path.name)
        entries = known[1] if known is not None and known[0] == facts else _read_file(path, found)
        if entries is not None:
            rows[path.name] = facts, entries
            found.shards.add(path)
            for entry in entries:
                found.entries.setdefault(entry.key, entry)
    for path in loose:
        for entry in _read_file(path, found) or []:
            found.entries.setdefault(entry.key, entry)
            found.loose.add(path.stem)
    if {name: facts for name, (facts, _) in rows.items()} != {name: facts for name, (facts, _) in remembered.items()}:
        _remember(folder / NAME, rows)
    return found


def _list_shards(folder: Path) -> Iterator[tuple[Path, Facts]]:
    if not folder.is_dir():
        return
    with os.scandir(folder) as items:
        for item in items:
            if item.name.endswith(".safetensors") and not item.name.startswith("."):
                facts = item.stat()
                yield folder / item.name, (facts.st_size, facts.st_mtime_ns)


def _read_file(path: Path, found: Catalogue) -> list[Location] | None:
    """The entries that a file's header names; None, and noted, where it is damaged or has another file's name."""
    try:
        entries = read_catalogue(open_shard(path))
    except StoreError as error:
        found.damaged[path] = str(error)
        return None
    names = {shard_id({key: entry.checksum for key, entry in entries.items()}), *entries}  # of a shard, of an entry
    if path.stem not in names:
        found.damaged[path] = f"{path} holds something else than its name says. {WAY_OUT}"
        return None
    return [replace(entry, known=None) for entry in entries.values()]  # parts of many entries are many bytes


def _recall(path: Path) -> dict[str, tuple[Facts, list[Location]]]:
    """Shard name -> its facts and entries, as remembered; {} where nothing is, or it cannot be read."""
    import pyarrow
    from pyarrow import parquet

    if not path.exists():
        return {}
    try:
        table = parquet.read_table(path, columns=list(COLUMNS), page_checksum_verification=True, use_threads=False)
        columns = [table.column(name).to_pylist() for name in COLUMNS]
    except (OSError, ValueError, KeyError, pyarrow.ArrowException):
        return {}
    found: dict[str, tuple[Facts, list[Location]]] = {}
    folder, last = path.parent / "shards", None
    entries: list[Location] = []
    for name, size, mtime_ns, key, total, length in zip(*columns, strict=True):
        if name != last:
            last, place, entries = name, folder / name, []
            found[name] = (size, mtime_ns), entries
        entries.append(Location(key, place, total, length))
    return found


def _remember(path: Path, rows: dict[str, tuple[Facts, list[Location]]]) -> None:
    """Write what the shards' headers say. In a store that cannot be written they are read each time."""
    import pyarrow
    from pyarrow import parquet

    flat = [(name, *facts, e.key, e.checksum, e.size) for name, (facts, found) in rows.items() for e in found]
    types = [pyarrow.string(), pyarrow.int64(), pyarrow.int64(), pyarrow.string(), pyarrow.string(), pyarrow.int64()]
    schema = pyarrow.schema(list(zip(COLUMNS, types, strict=True)))
    columns = list(zip(*flat, strict=True)) or [()] * len(COLUMNS)
    table = pyarrow.table([list(column) for column in columns], schema=schema)
    with suppress(OSError), atomic_write(path) as file:
        parquet.write_table(table, file, write_page_checksum=True)
