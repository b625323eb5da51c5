"""Parquet tables whose bytes are a function of their rows: the small tables that stages hand on."""

import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, overload

from eridiff.errors import DataError
from eridiff.files import canonical_json, map_file
from eridiff.seals import BLANK, KEY, check_out, sealed, write_sealed

Row = dict[str, Any]

ROWS_AT_A_TIME = 8192  # of those that are turned into columns, or columns into rows
TYPES = {"str": "string", "int": "int64", "float": "float64", "strs": "list<string>"}


class TableRows(Collection[Row]):
    """The rows of a table, read anew from its file by each loop, some at a time; the columns named, or all."""

    def __init__(self, path: Path, columns: Sequence[str] | None = None) -> None:
        self.path, self.columns = path, None if columns is None else list(columns)

    def __iter__(self) -> Iterator[Row]:
        with opened(self.path) as file:
            for batch in file.iter_batches(ROWS_AT_A_TIME, columns=self.columns, use_threads=False):
                yield from batch.to_pylist()

    def __len__(self) -> int:
        with opened(self.path) as file:
            return int(file.metadata.num_rows)

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
    """Rows as the bytes of a Parquet file, sealed (eridiff/seals.py).

    columns: name -> one of TYPES, in the file's order. facts: plain values about the whole table, kept in the
    schema. No clock, no library version: `created_by` is the only trace of pyarrow in the file.
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


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A Parquet file, checked as a whole before anything of it is read.

    Raises: DataError that names the file where it is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        data = map_file(path)
        check_out(data, path)
        with pq.ParquetFile(pa.BufferReader(pa.py_buffer(data))) as file:
            yield file
    except FileNotFoundError:
        raise DataError(f"{path} is missing: run `dvc repro`, which makes it.") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a table ({error}): remove it and run `dvc repro`.") from None


def read_table(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """Rows and facts of a table.

    Raises: DataError that names the file where it is missing or damaged.
    """
    with opened(path) as file:
        return file.read().to_pylist(), json.loads((file.schema_arrow.metadata or {}).get(b"eridiff", b"{}"))


def read_facts(path: Path) -> dict[str, Any]:
    """Facts of a table, without its rows.

    Raises: DataError that names the file where it is missing or damaged.
    """
    with opened(path) as file:
        return dict(json.loads((file.schema_arrow.metadata or {}).get(b"eridiff", b"{}")))
