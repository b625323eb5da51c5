"""Captions in text files and in `metadata.jsonl`, `.csv` and `.parquet`: files => rows and problems."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eridiff.errors import DataError

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
TEXT_COLUMNS = ("text", "caption")
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True)
class MetadataRow:
    """One caption of a metadata file. place: ` line 3` or ` row 3`; text: None where the row holds none."""

    place: str
    file_name: str
    text: str | None


Found = tuple[list[MetadataRow], list[str]]  # rows, and problems as ` line 3: what is wrong`


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without a byte order mark.

    Raises: DataError that names the file and the first wrong byte.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}). Check its permissions.") from None
    start = len(BOM) if data.startswith(BOM) else 0
    try:
        return data[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        at = start + error.start
        kind = " (it looks like UTF-16)" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        place = f"{path}: byte {at} (0x{data[at]:02X})"
        raise DataError(f"{place} is no UTF-8{kind}. Save the file as UTF-8.") from None


def read_metadata(path: Path) -> Found:
    """The captions of a metadata file, and what is wrong with rows that cannot be read, by their places.

    Raises: DataError for a text file that is no UTF-8.
    """
    if path.suffix == ".parquet":
        return _read_parquet(path)
    text = read_text(path)
    return _read_jsonl(text) if path.suffix == ".jsonl" else _read_csv(text)


def _columns_problem(columns: Iterable[str]) -> str | None:
    """What is wrong with the columns of a row; None where it has what is needed."""
    columns = list(columns)
    texts = [name for name in TEXT_COLUMNS if name in columns]
    if "file_name" not in columns or not texts:
        return f"needs the columns file_name and text (or caption), has: {', '.join(columns) or 'none'}"
    if len(texts) > 1:
        return "has both columns text and caption: keep one"
    return None


def _check(place: str, record: Mapping[str, Any]) -> MetadataRow | str:
    """A record as a row, or what is wrong with it."""
    problem = _columns_problem(record)
    if problem:
        return f"{place}: {problem}"
    column = next(name for name in TEXT_COLUMNS if name in record)
    file_name, text = record["file_name"], record[column]
    if not isinstance(file_name, str):
        return f"{place}: file_name is {file_name!r}, no file's name"
    if not isinstance(text, str | None):
        return f"{place}: {column} is {text!r}, no text"
    return MetadataRow(place=place, file_name=file_name, text=text)


def _sorted_out(checked: Iterable[MetadataRow | str]) -> Found:
    rows: list[MetadataRow] = []
    problems: list[str] = []
    for item in checked:
        if isinstance(item, str):
            problems.append(item)
        else:
            rows.append(item)
    return rows, problems


def _read_jsonl(text: str) -> Found:
    # split, not splitlines: that would also cut at U+2028 inside a caption
    lines = [(f" line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return _sorted_out(_jsonl_line(place, line) for place, line in lines)


def _jsonl_line(place: str, line: str) -> MetadataRow | str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"{place}: no JSON ({error})"
    if not isinstance(record, dict):
        return f'{place}: no JSON object such as {{"file_name": "cat.png", "text": "a cat"}}'
    return _check(place, record)


def _read_csv(text: str) -> Found:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    checked: list[MetadataRow | str] = []
    try:
        header = next(reader, [])
        problem = _columns_problem(header)
        if problem:
            return [], [f" line 1: {problem}"]
        for fields in reader:
            place = f" line {reader.line_num}"
            if len(fields) == len(header):
                checked.append(_check(place, dict(zip(header, fields, strict=True))))
            elif fields:
                hint = "put a caption that holds commas in double quotes"
                checked.append(f"{place}: {len(fields)} fields for {len(header)} columns: {hint}")
    except csv.Error as error:
        checked.append(f" line {reader.line_num}: no CSV ({error})")
    return _sorted_out(checked)


def _read_parquet(path: Path) -> Found:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        return [], [f": no Parquet ({error})"]
    problem = _columns_problem(table.column_names)
    if problem:
        return [], [f": {problem}"]
    records = enumerate(table.to_pylist(), 1)
    return _sorted_out(_check(f" row {number}", record) for number, record in records)
