"""Captions by rows: `metadata.jsonl`, `.csv`, `.parquet` and tables of other names => rows and problems.

A row names a picture and holds its caption. JSON files of whole data sets (kohya's `meta_cap.json`) are tables too.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from eridiff.captionfiles import MAX_TABLE_BYTES, opened, read_text
from eridiff.captionjson import NotJson, answers_in, caption_in, lone_surrogate, parse_json, records_in
from eridiff.parquetpages import Read, check_pages

NAME_COLUMNS = (
    "file_name", "filename", "file", "image", "image_path", "path", "images", "target", "target_image", "file_path",
    "filepath", "image_name", "img", "name", "key", "id",
)  # fmt: skip
TEXT_COLUMNS = ("text", "caption")
OTHER_TEXTS = ("prompt", "description", "tags")  # where none of these is there
INPUTS = (
    "source",
    "source_image",
    "conditioning_image",
    "conditioning",
    "control",
    "control_image",
    "mask",
    "mask_image",
)
FILE_NAME = re.compile(r"\S\.[A-Za-z]{3,4}$")
NEEDS = "needs the columns file_name and text (or caption), has: "
ALBUM = ": says something of one album or picture, as Google Takeout does"
MAX_CELL = 1 << 18  # letters of a caption, as in a file of its own
MAX_PARQUET_BYTES = 1 << 36  # it may hold the pictures too
MAX_TEXT_BYTES = 1 << 28  # of the two columns, unpacked
MAX_PAGE_BYTES = 1 << 28  # of one of its pages, unpacked
MAX_ROWS = 1_000_000
MAX_PROBLEMS = 1_000
ROWS_AT_A_TIME = 1024
THRIFT: dict[str, Any] = {"thrift_string_size_limit": 1 << 24, "thrift_container_size_limit": 1 << 20}


@dataclass(frozen=True, kw_only=True, slots=True)
class MetadataRow:
    """One caption of a table. place: ` line 3` or ` row 3`; text: None where the row holds none.

    conditioning: the picture that this one was conditioned on, where the row names one.
    """

    place: str
    file_name: str
    text: str | None
    conditioning: str | None = None


Found = tuple[list[MetadataRow], list[str]]  # rows, and problems as ` line 3: what is wrong`


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


def _columns_problem(columns: Iterable[str]) -> str | None:
    """What is wrong with the columns of a row; None where it has what is needed."""
    columns = list(columns)
    texts = [name for name in TEXT_COLUMNS if name in columns]
    texts = texts or [name for name in OTHER_TEXTS if name in columns][:1]
    if not any(name in columns for name in NAME_COLUMNS) or not texts:
        return NEEDS + (", ".join(ascii(name)[1:-1][:60] for name in columns[:20]) or "none")
    if len(texts) > 1:
        return "has both columns text and caption: keep one"
    twice = [name for name, count in Counter(columns).items() if count > 1 and name in (*NAME_COLUMNS, *texts)]
    return f"has the column {twice[0]} twice: keep one" if twice else None


def _columns(columns: Iterable[str]) -> tuple[str, str]:
    """The names of the two columns that are read: of the picture, and of the caption."""
    columns = set(columns)
    name = next(name for name in NAME_COLUMNS if name in columns)
    return name, next(name for name in (*TEXT_COLUMNS, *OTHER_TEXTS) if name in columns)


def _check(place: str, record: Mapping[str, Any]) -> MetadataRow | str:
    """A record as a row, or what is wrong with it."""
    answers = None if any(name in record for name in TEXT_COLUMNS) else answers_in(record)
    if answers is not None:
        if len(answers) > 1:
            return f"{place}: a conversation of {len(answers)} answers, any of which may be the caption: keep one"
        record = {**record, TEXT_COLUMNS[0]: answers[0] if answers else None}
    problem = _columns_problem(record)
    if problem:
        return f"{place}: {problem}"
    name_column, column = _columns(record)
    name, text = record[name_column], record[column]
    if isinstance(text, list):
        text = caption_in({column: text}) or text
    if isinstance(name, list) and len(name) == 1:
        name = name[0]
    conditioning = next((one for key in INPUTS if isinstance(one := record.get(key), str)), None)
    return _row(place, (name_column, name), (column, text), conditioning)


def _row(
    place: str, name: tuple[str, Any], text: tuple[str, Any], conditioning: str | None = None
) -> MetadataRow | str:
    """A row of two cells, each with its column; or what is wrong with them."""
    for column, cell in (name, text):
        if isinstance(cell, bytes):
            return f"{place}: {column} is no UTF-8: {cell[:40]!r}"
    if not isinstance(name[1], str):
        return f"{place}: {name[0]} is {_shown(name[1])}, no file's name"
    if not isinstance(text[1], str | None):
        return f"{place}: {text[0]} is {_shown(text[1])}, no text"
    for column, cell in (name, text):
        half = lone_surrogate(cell) if cell and not cell.isascii() and len(cell) <= MAX_CELL else None
        if half:
            return f"{place}: {column} holds half a letter ({half}): write the letter"
        if len(cell or "") > MAX_CELL:
            return f"{place}: {column} has {len(cell):,} letters, and at most {MAX_CELL:,} are read"
    return MetadataRow(place=place, file_name=name[1], text=text[1], conditioning=conditioning)


def _shown(value: object) -> str:
    return ascii(value if not isinstance(value, list | dict) else type(value).__name__)[:60]


def _sorted_out(checked: Iterable[MetadataRow | str]) -> Found:
    """Rows and problems, up to bounds: a file of short lines would take a hundred times its size."""
    rows: list[MetadataRow] = []
    problems: list[str] = []
    for item in checked:
        if isinstance(item, str):
            problems.append(item)
        else:
            rows.append(item)
        if len(rows) > MAX_ROWS or len(problems) > MAX_PROBLEMS:
            problems.append(f": more than {MAX_ROWS:,} rows or {MAX_PROBLEMS:,} mistakes, and no more are read")
            break
    return rows, problems


def _read_jsonl(text: str) -> Found:
    return _sorted_out(_jsonl_line(f" line {number}", line) for number, line in _lines(text))


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
    return _check(place, record)


def _read_json(text: str) -> Found:
    """One object of picture => caption (or an object that holds it), a list of rows, or an object a line."""
    try:
        value = parse_json(text)
    except NotJson as error:
        return _read_jsonl(text) if _starts_with_an_object(text) else ([], [f": no JSON ({error})"])
    records = [value] if _is_a_row(value) else records_in(value)
    if records is not None:
        return _sorted_out(_check(f" row {number}", record) for number, record in enumerate(records, 1))
    if isinstance(value, dict) and value.keys() >= {"title", "description"}:
        return [], [ALBUM]
    if not isinstance(value, dict) or not value or not all(_holds(one) for one in value.values()):
        return [], [": holds no captions by pictures' names, such as {'cat.png': {'caption': 'a cat'}}"]
    items = ((name, caption_in(one)) for name, one in value.items())
    return _sorted_out(
        _row(f" key {_shown(name)}", ("its name", name), ("its caption", text)) for name, text in items if text
    )


def _starts_with_an_object(text: str) -> bool:
    """Whether a text's first line is all of a JSON object: ControlNet's `prompt.json` has one a line."""
    try:
        return isinstance(parse_json(next(_lines(text), (0, ""))[1]), dict)
    except NotJson:
        return False


def _is_a_row(value: object) -> bool:
    """Whether an object is a row, not the captions of pictures called `image` and `text`."""
    if not isinstance(value, dict) or _columns_problem(value):
        return False
    name = value[_columns(value)[0]]
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
    problem = _columns_problem(header)
    return ([], [f" line 1: {problem}"]) if problem else _sorted_out(_csv_rows(reader, header))


def _csv_rows(reader: Any, header: list[str]) -> Iterator[MetadataRow | str]:
    """The rows after the header, or what is wrong with them."""
    columns = _columns(header)
    places = [header.index(column) for column in columns]
    inputs = [header.index(column) for column in INPUTS if column in header]
    try:
        for fields in reader:
            place = f" line {reader.line_num}"
            if len(fields) == len(header):
                name, cell = ((column, fields[at]) for column, at in zip(columns, places, strict=True))
                yield _row(place, name, cell, next((fields[at] for at in inputs if fields[at]), None))
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
            problem = _columns_problem(file.schema_arrow.names) or _parquet_problem(file)
            if problem:
                return [], [f": {problem}"]
            columns = [*_columns(file.schema_arrow.names), *_inputs(file)[:1]]
            check_pages(_reader(source), source.seek(0, 2), MAX_PAGE_BYTES, columns)
            # an equal text is held once a batch. Chunks' own words of their sizes are not asked: pyarrow ends the
            # process on some that are damaged
            file = pq.ParquetFile(source, read_dictionary=columns, **THRIFT)
            return _sorted_out(_parquet_rows(file, columns))
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
            yield _row(f" row {number}", (columns[0], name), (columns[1], text), conditioning)


def _parquet_problem(file: Any) -> str | None:
    """Why the columns of an open Parquet file are not read."""
    wrong = [column for column in _columns(file.schema_arrow.names) if not _holds_text(file, column)]
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
