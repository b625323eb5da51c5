"""Parquet tables whose bytes are a function of their rows: the small tables that stages hand on."""

import io
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, overload

from eridiff.core.errors import DataError
from eridiff.core.files import canonical_json, map_file
from eridiff.core.json_files import parse_json
from eridiff.formats.parquet_pages import Pages, check_pages
from eridiff.formats.seals import BLANK, KEY, check_out, sealed, write_sealed

Row = dict[str, Any]

ROWS_AT_A_TIME = 8192  # of those that are turned into columns, or columns into rows
MAX_FILE_BYTES = 1 << 30  # of a table: five million pictures have that much
MAX_PAGE_BYTES = 1 << 26  # of a page, unpacked: they are written with 1 MiB and what the last value has
MAX_BATCH_BYTES = 1 << 28  # of a batch, were each value the longest of the dictionary
MAX_UNPACKED_BYTES = 1 << 32  # of all rows
THRIFT: dict[str, Any] = {"thrift_string_size_limit": 1 << 27, "thrift_container_size_limit": 1 << 20}


class TableRows(Collection[Row]):
    """The rows of a table, read again from its file by each loop, some at a time; the columns named, or all."""

    def __init__(self, path: Path, columns: Sequence[str] | None = None) -> None:
        self.path, self.columns = path, None if columns is None else list(columns)

    def __iter__(self) -> Iterator[Row]:
        with opened(self.path) as file:
            yield from file.rows(self.columns)

    def __len__(self) -> int:
        with opened(self.path) as file:
            return file.count

    def __contains__(self, row: object) -> bool:
        return any(row == other for other in self)


def values_of(rows: Iterable[Row], column: str) -> Iterator[Any]:
    """One column of rows; of a table's file nothing else is read."""
    some = TableRows(rows.path, [column]) if isinstance(rows, TableRows) else rows
    return (row[column] for row in some)


class ColumnRows(Sequence[Row]):
    """Rows that are made when asked for, some at a time and by columns: nobody holds all of them."""

    def __init__(self, count: int, make: Callable[[range], dict[str, list[Any]]]) -> None:
        """make: the columns of the rows at some places."""
        self._count, self._make = count, make

    def pieces(self) -> Iterator[dict[str, list[Any]]]:
        """The columns of all rows, ROWS_AT_A_TIME."""
        for start in range(0, self._count, ROWS_AT_A_TIME):
            yield self._make(range(start, min(start + ROWS_AT_A_TIME, self._count)))

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...
    def __getitem__(self, place: int | slice) -> Row | list[Row]:
        """One row, or some."""
        if isinstance(place, slice):
            return [self[one] for one in range(self._count)[place]]
        one = range(self._count)[place]
        return {name: values[0] for name, values in self._make(range(one, one + 1)).items()}

    def __iter__(self) -> Iterator[Row]:
        for columns in self.pieces():
            yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)


def _pieces(rows: Iterable[Row], names: Iterable[str]) -> Iterator[dict[str, list[Any]]]:
    """Columns of any rows, ROWS_AT_A_TIME."""
    if isinstance(rows, ColumnRows):
        yield from rows.pieces()
        return
    left = iter(rows)
    while some := list(islice(left, ROWS_AT_A_TIME)):
        yield {name: [row[name] for row in some] for name in names}


def table_bytes(rows: Iterable[Row], columns: Mapping[str, str], facts: Mapping[str, Any]) -> bytes:
    """Rows as the bytes of a Parquet file, sealed (eridiff/formats/seals.py).

    columns: name -> str, int, float or strs (a list of texts), in the file's order. facts: plain values about the
    whole table, kept in the schema. No clock, no library version: `created_by` is the only trace of pyarrow.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "strs": pa.list_(pa.string())}
    schema = pa.schema([pa.field(name, kinds[kind], nullable=False) for name, kind in columns.items()])
    schema = schema.with_metadata({"eridiff": canonical_json(dict(facts))})
    pieces: dict[str, list[Any]] = {name: [pa.array([], type=kinds[kind])] for name, kind in columns.items()}
    for some in _pieces(rows, columns):
        for name, kind in columns.items():
            pieces[name].append(pa.array(some[name], type=kinds[kind]))
    arrays = [pa.concat_arrays(pieces.pop(name)) for name in columns]
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        writer.add_key_value_metadata({KEY: BLANK})  # of the file's footer: in the schema it would stand twice
    return sealed(buffer.getvalue())


def write_table(
    path: Path, rows: Iterable[Row], columns: Mapping[str, str], facts: Mapping[str, Any] | None = None
) -> None:
    """Write rows as a Parquet file, atomically. The caller sorts them."""
    write_sealed(path, table_bytes(rows, columns, facts or {}))


class OpenTable:
    """An open table whose bytes were checked, and whose pages unpack to no more than they may."""

    def __init__(self, file: Any, pages: Pages) -> None:
        """file: pyarrow's."""
        self._file, self._pages = file, pages

    @property
    def count(self) -> int:
        """How many rows it has."""
        return int(self._file.metadata.num_rows)

    @property
    def facts(self) -> dict[str, Any]:
        """Facts about the whole table."""
        return dict(parse_json((self._file.schema_arrow.metadata or {}).get(b"eridiff", b"{}")))

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """The rows, some at a time.

        Raises: ValueError where they unpack to more than any table has.
        """
        longest = max(1, self._pages.largest_dictionary)  # each of a dictionary's values may stand in every row
        at_a_time = max(1, min(ROWS_AT_A_TIME, MAX_BATCH_BYTES // longest))
        size = 0
        for batch in self._file.iter_batches(at_a_time, columns=columns, use_threads=False):
            size += batch.nbytes
            if size > MAX_UNPACKED_BYTES:
                raise ValueError(f"its rows unpack to more than {MAX_UNPACKED_BYTES} bytes")
            yield from batch.to_pylist()


@contextmanager
def opened(path: Path) -> Iterator[OpenTable]:
    """A Parquet file, checked as a whole before anything of it is read.

    Raises: DataError that names the file where it is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        data = map_file(path)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"it has {len(data)} bytes, more than {MAX_FILE_BYTES}")
        check_out(data, path)
        pages = check_pages(lambda at, count: bytes(data[at : at + count]), len(data), MAX_PAGE_BYTES)
        with pq.ParquetFile(pa.BufferReader(pa.py_buffer(data)), **THRIFT) as file:
            yield OpenTable(file, pages)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: run `dvc repro`, which makes it.") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a table ({error}): remove it and run `dvc repro`.") from None


def read_table(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """Rows and facts of a table.

    Raises: DataError that names the file where it is missing or damaged.
    """
    with opened(path) as file:
        return list(file.rows()), file.facts


def read_facts(path: Path) -> dict[str, Any]:
    """Facts of a table, without its rows.

    Raises: DataError that names the file where it is missing or damaged.
    """
    with opened(path) as file:
        return file.facts
