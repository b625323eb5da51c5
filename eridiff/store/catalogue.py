"""Which entries a store has: the headers of its files, those of shards remembered in one Parquet file.

    STORE/KIND/catalogue.sealed.parquet    key, checksum and bytes of each entry, shard by shard; in the metadata, as
                                           JSON, name, bytes, time and number of entries of each shard

The headers are the truth. What is remembered of a shard counts while its size and time are the ones that it was read
with; the file is written again where a shard is new or gone, and may be removed at any time. No object is made for an
entry, neither here nor in the file's columns.
"""

import io
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eridiff.core.errors import DataError, StoreError
from eridiff.core.files import atomic_write, canonical_json, map_file
from eridiff.core.json_files import parse_json
from eridiff.formats.seals import BLANK, KEY, check_seal, seal_into
from eridiff.store.entries import CHECKSUM_LETTERS, KEY_LETTERS, WAY_OUT, open_shard, read_catalogue, shard_id
from eridiff.store.entry_table import ALONE, Columns, EntryTable, Rows

NAME = "catalogue.sealed.parquet"
UNSEALED = "catalogue.parquet"  # of before, not read
COLUMNS = ("key", "checksum", "size")
Facts = tuple[int, int]  # bytes and mtime_ns of a shard file


@dataclass
class Catalogue:
    """The entries of one kind, and the files that hold them."""

    entries: EntryTable
    """Key -> where it lies. Shards in sorted order, then loose entries: the first wins."""
    shards: set[Path] = field(default_factory=set)
    """Shards whose header is sound."""
    damaged: dict[Path, str] = field(default_factory=dict)
    """Files whose header cannot be read, and why. What they held counts as missing."""


def read_store(folder: Path) -> Catalogue:
    """The catalogue of STORE/KIND. Files that other processes move or remove meanwhile make it look again."""
    while True:
        with suppress(FileNotFoundError):  # an entry moved into a shard that was not there when they were listed
            return _read_once(folder)


def _read_once(folder: Path) -> Catalogue:
    loose = list(list_loose(folder / "entries"))
    shards = sorted(_list_shards(folder / "shards"))
    remembered = _recall(folder / NAME)
    found, columns = Catalogue(entries=EntryTable(folder)), Columns()
    now: dict[str, tuple[Facts, int]] = {}  # name of a sound shard -> its facts and entries
    paths: list[Path] = []
    for path, facts in shards:
        before = len(columns)
        known = remembered.get(path.name)
        if known is not None and known[0] == facts:
            columns.extend(known[1], len(paths))
        elif not _read_file(path, found, columns, len(paths)):
            continue
        paths.append(path)
        now[path.name] = facts, len(columns) - before
    found.shards = set(paths)
    if now != {name: (facts, len(part)) for name, (facts, part) in remembered.items()}:
        _remember(folder / NAME, now, columns)
    remembered.clear()  # its columns are as large as those here
    for name in loose:
        _read_file(folder / "entries" / name[:2] / name, found, columns, ALONE)
    found.entries = EntryTable(folder, paths, columns)
    return found


def list_loose(folder: Path, prefix: str = "") -> Iterator[str]:
    """Names of the files of single entries below STORE/KIND/entries whose keys begin with the prefix, sorted."""
    places = [prefix[:2]] if len(prefix) > 1 else sorted(os.listdir(folder)) if folder.is_dir() else []
    for place in places:
        if place.startswith(prefix[:2]) and (folder / place).is_dir():
            for name in sorted(os.listdir(folder / place)):
                if name.startswith(prefix) and name.endswith(".safetensors") and not name.startswith("."):
                    yield name


def _list_shards(folder: Path) -> Iterator[tuple[Path, Facts]]:
    if not folder.is_dir():
        return
    with os.scandir(folder) as items:
        for item in items:
            if item.name.endswith(".safetensors") and not item.name.startswith("."):
                facts = item.stat()
                yield folder / item.name, (facts.st_size, facts.st_mtime_ns)


def _read_file(path: Path, found: Catalogue, columns: Columns, number: int) -> bool:
    """Add the entries that a file's header names; noted, and False, where it is damaged or has another file's name."""
    try:
        entries = read_catalogue(open_shard(path))
    except StoreError as error:
        found.damaged[path] = str(error)
        return False
    names = {shard_id({key: entry.checksum for key, entry in entries.items()}), *entries}  # of a shard, of an entry
    if path.stem not in names:
        found.damaged[path] = f"{path} holds something else than its name says. {WAY_OUT}"
        return False
    for key, entry in entries.items():
        columns.add(key, entry.checksum, entry.size, number)
    return True


def _recall(path: Path) -> dict[str, tuple[Facts, Rows]]:
    """Shard name -> its facts and entries, as remembered; {} where nothing is, or it cannot be read."""
    import pyarrow
    from pyarrow import parquet

    if not path.exists():
        return {}
    try:
        data = map_file(path)
        check_seal(data, path)
        table = parquet.read_table(pyarrow.BufferReader(pyarrow.py_buffer(data)), use_threads=False)
        text = table.schema.metadata[b"shards"]
        keys, checksums, sizes = (_buffer(table.column(name)) for name in COLUMNS)
        parts, start = {}, 0
        for name, size, mtime_ns, count in parse_json(text):
            parts[str(name)] = (int(size), int(mtime_ns)), Rows(keys, checksums, sizes, start, start + count)
            start += count
        return parts
    except (DataError, OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException):
        return {}


def _buffer(column: Any) -> memoryview:
    """The bytes of a column of fixed width, without a copy where it is one piece."""
    array = column.combine_chunks()
    width = array.type.bit_width // 8
    return memoryview(array.buffers()[1])[array.offset * width : (array.offset + len(array)) * width]


def _remember(path: Path, shards: dict[str, tuple[Facts, int]], columns: Columns) -> None:
    """Write what the shards' headers say. In a store that cannot be written they are read each time."""
    import pyarrow
    from pyarrow import parquet

    widths = (pyarrow.binary(KEY_LETTERS), pyarrow.binary(CHECKSUM_LETTERS), pyarrow.int64())
    buffers = (columns.keys, columns.checksums, columns.sizes)
    arrays = [
        pyarrow.Array.from_buffers(kind, len(columns), [None, pyarrow.py_buffer(bytes(buffer))])
        for kind, buffer in zip(widths, buffers, strict=True)
    ]
    text = canonical_json([[name, *facts, count] for name, (facts, count) in shards.items()])
    table = pyarrow.table(arrays, names=list(COLUMNS)).replace_schema_metadata({"shards": text})
    buffer = io.BytesIO()
    with parquet.ParquetWriter(buffer, table.schema, use_dictionary=False, compression="none") as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({KEY: BLANK})
    with suppress(OSError), atomic_write(path) as file:
        seal_into(file, [buffer.getvalue()])
