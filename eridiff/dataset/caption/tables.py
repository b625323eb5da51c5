"""Captions by rows: `metadata.jsonl`, `.csv`, `.parquet` and tables of other names => rows and problems.

A row names a picture and holds its caption. JSON files of whole data sets (kohya's `meta_cap.json`) are tables too.
"""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from eridiff.dataset.caption.files import MAX_TABLE_BYTES, opened, read_text
from eridiff.dataset.caption.json_values import NotJson, caption_in, parse_json, records_in
from eridiff.dataset.caption.rows import (
    INPUTS,
    Found,
    MetadataRow,
    checked_row,
    columns_of,
    columns_problem,
    row_of,
    shown_cell,
    sorted_out,
)
from eridiff.formats.parquet_pages import Read, check_pages

FILE_NAME = re.compile(r"\S\.[A-Za-z]{3,4}$")
ALBUM = ": says something of one album or picture, as Google Takeout does"
MAX_PARQUET_BYTES = 1 << 36  # it may hold the pictures too
MAX_TEXT_BYTES = 1 << 28  # of the two columns, unpacked
MAX_PAGE_BYTES = 1 << 28  # of one of its pages, unpacked
ROWS_AT_A_TIME = 1024
THRIFT: dict[str, Any] = {"thrift_string_size_limit": 1 << 24, "thrift_container_size_limit": 1 << 20}


def read_metadata(path: Path, folder: Path | None = None) -> Found:
    """The captions of a table, and what is wrong with rows that cannot be read, by their places.

    folder: what the file must lie in. Raises: DataError as captionfiles.read_text.
    """
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path, folder)
    text = read_text(path, folder, at_most=MAX_TABLE_BYTES)
    match path.suffix.lower():
        case ".jsonl":
            return _read_jsonl(text)
        case ".json":
            return _read_json(text)
        case suffix:
            return _read_csv(text, "\t" if suffix == ".tsv" else ",")


def _read_jsonl(text: str) -> Found:
    return sorted_out(_jsonl_line(f" line {number}", line) for number, line in _lines(text))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that hold something, with their numbers. Not splitlines: that would also cut at U+2028 in a caption."""
    number, end = 1, 0
    for hit in re.finditer(r"[^\n]+", text):
        number += text.count("\n", end, hit.start())
        end = hit.end()
        if hit[0].strip():
            yield number, hit[0]


def _jsonl_line(place: str, line: str) -> MetadataRow | str:
    try:
        record = parse_json(line)
    except NotJson as error:
        return f"{place}: no JSON ({error})"
    if not isinstance(record, dict):
        return f'{place}: no JSON object such as {{"file_name": "cat.png", "text": "a cat"}}'
    return checked_row(place, record)


def _read_json(text: str) -> Found:
    """One object of picture => caption (or an object that holds it), a list of rows, or an object a line."""
    try:
        value = parse_json(text)
    except NotJson as error:
        return _read_jsonl(text) if _starts_with_an_object(text) else ([], [f": no JSON ({error})"])
    records = [value] if _is_a_row(value) else records_in(value)
    if records is not None:
        return sorted_out(checked_row(f" row {number}", record) for number, record in enumerate(records, 1))
    if isinstance(value, dict) and value.keys() >= {"title", "description"}:
        return [], [ALBUM]
    if not isinstance(value, dict) or not value or not all(_holds(one) for one in value.values()):
        return [], [": holds no captions by pictures' names, such as {'cat.png': {'caption': 'a cat'}}"]
    items = ((name, caption_in(one)) for name, one in value.items())
    return sorted_out(
        row_of(f" key {shown_cell(name)}", ("its name", name), ("its caption", text)) for name, text in items if text
    )


def _starts_with_an_object(text: str) -> bool:
    """Whether a text's first line is all of a JSON object: ControlNet's `prompt.json` has one a line."""
    try:
        return isinstance(parse_json(next(_lines(text), (0, ""))[1]), dict)
    except NotJson:
        return False


def _is_a_row(value: object) -> bool:
    """Whether an object is a row, not the captions of pictures called `image` and `text`."""
    if not isinstance(value, dict) or columns_problem(value):
        return False
    name = value[columns_of(value)[0]]
    return isinstance(name, str) and FILE_NAME.search(name) is not None


def _holds(value: object) -> bool:
    """Whether a value may be what a data set's JSON says of one picture: an object may have no caption yet."""
    return isinstance(value, str) or (isinstance(value, dict) and not any(isinstance(v, dict) for v in value.values()))


def _read_csv(text: str, delimiter: str) -> Found:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        header = next(reader, [])
    except csv.Error as error:
        return [], [f" line {reader.line_num}: no CSV ({error})"]
    problem = columns_problem(header)
    return ([], [f" line 1: {problem}"]) if problem else sorted_out(_csv_rows(reader, header))


def _csv_rows(reader: Any, header: list[str]) -> Iterator[MetadataRow | str]:
    """The rows after the header, or what is wrong with them."""
    columns = columns_of(header)
    places = [header.index(column) for column in columns]
    inputs = [header.index(column) for column in INPUTS if column in header]
    try:
        for fields in reader:
            place = f" line {reader.line_num}"
            if len(fields) == len(header):
                name, cell = ((column, fields[at]) for column, at in zip(columns, places, strict=True))
                yield row_of(place, name, cell, next((fields[at] for at in inputs if fields[at]), None))
            elif fields:
                hint = "put a caption that holds commas in double quotes"
                yield f"{place}: {len(fields)} fields for {len(header)} columns: {hint}"
    except csv.Error as error:
        yield f" line {reader.line_num}: no CSV ({error})"


def _read_parquet(path: Path, folder: Path | None) -> Found:
    """Only these columns, a thousand rows at a time: others may hold the pictures, or what Python has no word for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with opened(path, folder, at_most=MAX_PARQUET_BYTES) as source:
        try:
            file = pq.ParquetFile(source, **THRIFT)
            problem = columns_problem(file.schema_arrow.names) or _parquet_problem(file)
            if problem:
                return [], [f": {problem}"]
            columns = [*columns_of(file.schema_arrow.names), *_inputs(file)[:1]]
            check_pages(_reader(source), source.seek(0, 2), MAX_PAGE_BYTES, columns)
            # an equal text is held once a batch. Chunks' own words of their sizes are not asked: pyarrow ends the
            # process on some that are damaged
            file = pq.ParquetFile(source, read_dictionary=columns, **THRIFT)
            return sorted_out(_parquet_rows(file, columns))
        except (pa.ArrowException, OSError, ValueError) as error:
            return [], [f": no Parquet ({ascii(str(error))[1:200]})"]


def _reader(source: BinaryIO) -> Read:
    def read(at: int, count: int) -> bytes:
        source.seek(at)
        return source.read(count)

    return read


def _parquet_rows(file: Any, columns: list[str]) -> Iterator[MetadataRow | str]:
    """The rows of an open Parquet file, or what is wrong with them."""
    number = size = 0
    for batch in file.iter_batches(ROWS_AT_A_TIME, columns=columns, use_threads=False):
        cells = [_cells(batch.column(column)) for column in columns]
        size += sum(len(text) for column in cells for text in {id(one): one for one in column if one}.values())
        if size > MAX_TEXT_BYTES:
            yield f" row {number}: more than {MAX_TEXT_BYTES:,} letters to here, and no more are read"
            return
        for name, text, *inputs in zip(*cells, strict=True):
            number += 1
            conditioning = next((one for one in inputs if isinstance(one, str)), None)
            yield row_of(f" row {number}", (columns[0], name), (columns[1], text), conditioning)


def _parquet_problem(file: Any) -> str | None:
    """Why the columns of an open Parquet file are not read."""
    wrong = [column for column in columns_of(file.schema_arrow.names) if not _holds_text(file, column)]
    return f"the column {wrong[0]} holds {_cell_type(file, wrong[0])}, no text" if wrong else None


def _inputs(file: Any) -> list[str]:
    """The columns of an open Parquet file that name what a picture was made from."""
    names = file.schema_arrow.names
    return [column for column in INPUTS if names.count(column) == 1 and _holds_text(file, column)]


def _cell_type(file: Any, column: str) -> Any:
    import pyarrow as pa

    kind = file.schema_arrow.field(column).type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _holds_text(file: Any, column: str) -> bool:
    import pyarrow as pa

    kind = _cell_type(file, column)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _cells(column: Any) -> list[str | bytes | None]:
    """The cells of a column of texts; as bytes where they are no UTF-8. Equal texts of a dictionary are one object."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        return [_decoded(cell) for cell in column.cast(pa.large_binary()).to_pylist()]
    places = column.indices.to_pylist()
    wanted = sorted(set(places) - {None})
    texts = column.dictionary.take(pa.array(wanted, pa.int64())).cast(pa.large_binary()).to_pylist()
    known = dict(zip(wanted, map(_decoded, texts), strict=True))
    return [known.get(at) for at in places]


def _decoded(cell: bytes | None) -> str | bytes | None:
    try:
        return None if cell is None else cell.decode("utf-8")
    except UnicodeDecodeError:
        return cell
