"""Parquet tables whose bytes are a function of their rows: the small tables that stages hand on."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eridiff.errors import DataError
from eridiff.files import atomic_write, canonical_json

Row = dict[str, Any]

TYPES = {"str": "string", "int": "int64", "float": "float64", "strs": "list<string>"}


def table_bytes(rows: Sequence[Row], columns: Mapping[str, str], facts: Mapping[str, Any]) -> bytes:
    """Rows as the bytes of a Parquet file.

    columns: name -> one of TYPES, in the file's order. facts: plain values about the whole table, kept in the
    schema. No clock, no library version: `created_by` is the only trace of pyarrow in the file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "strs": pa.list_(pa.string())}
    schema = pa.schema([pa.field(name, kinds[kind], nullable=False) for name, kind in columns.items()])
    schema = schema.with_metadata({"eridiff": canonical_json(dict(facts))})
    arrays = [pa.array([row[name] for row in rows], type=kinds[kind]) for name, kind in columns.items()]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), buffer, compression="zstd")
    return buffer.getvalue()


def write_table(
    path: Path, rows: Sequence[Row], columns: Mapping[str, str], facts: Mapping[str, Any] | None = None
) -> None:
    """Write rows as a Parquet file, atomically. The caller sorts them."""
    with atomic_write(path) as file:
        file.write(table_bytes(rows, columns, facts or {}))


def read_table(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """Rows and facts of a table.

    Raises: DataError that names the file where it is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        facts = (table.schema.metadata or {}).get(b"eridiff", b"{}")
        return table.to_pylist(), json.loads(facts)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: run `dvc repro`, which makes it.") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a table ({error}): remove it and run `dvc repro`.") from None


def read_facts(path: Path) -> dict[str, Any]:
    """Facts of a table, without its rows.

    Raises: DataError that names the file where it is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return dict(json.loads((pq.read_schema(path).metadata or {}).get(b"eridiff", b"{}")))
    except FileNotFoundError:
        raise DataError(f"{path} is missing: run `dvc repro`, which makes it.") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a table ({error}): remove it and run `dvc repro`.") from None
