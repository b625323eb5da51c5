"""A row of a table of captions: which columns name its picture and its caption, and whether both can be read."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from eridiff.dataset.caption.json_values import answers_in, caption_in, lone_surrogate

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
NEEDS = "needs the columns file_name and text (or caption), has: "
MAX_CELL = 1 << 18  # letters of a caption, as in a file of its own
MAX_ROWS = 1_000_000
MAX_PROBLEMS = 1_000


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


def columns_problem(columns: Iterable[str]) -> str | None:
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


def columns_of(columns: Iterable[str]) -> tuple[str, str]:
    """The names of the two columns that are read: of the picture, and of the caption."""
    columns = set(columns)
    name = next(name for name in NAME_COLUMNS if name in columns)
    return name, next(name for name in (*TEXT_COLUMNS, *OTHER_TEXTS) if name in columns)


def checked_row(place: str, record: Mapping[str, Any]) -> MetadataRow | str:
    """A record as a row, or what is wrong with it."""
    answers = None if any(name in record for name in TEXT_COLUMNS) else answers_in(record)
    if answers is not None:
        if len(answers) > 1:
            return f"{place}: a conversation of {len(answers)} answers, any of which may be the caption: keep one"
        record = {**record, TEXT_COLUMNS[0]: answers[0] if answers else None}
    problem = columns_problem(record)
    if problem:
        return f"{place}: {problem}"
    name_column, column = columns_of(record)
    name, text = record[name_column], record[column]
    if isinstance(text, list):
        text = caption_in({column: text}) or text
    if isinstance(name, list) and len(name) == 1:
        name = name[0]
    conditioning = next((one for key in INPUTS if isinstance(one := record.get(key), str)), None)
    return row_of(place, (name_column, name), (column, text), conditioning)


def row_of(
    place: str, name: tuple[str, Any], text: tuple[str, Any], conditioning: str | None = None
) -> MetadataRow | str:
    """A row of two cells, each with its column; or what is wrong with them."""
    for column, cell in (name, text):
        if isinstance(cell, bytes):
            return f"{place}: {column} is no UTF-8: {cell[:40]!r}"
    if not isinstance(name[1], str):
        return f"{place}: {name[0]} is {shown_cell(name[1])}, no file's name"
    if not isinstance(text[1], str | None):
        return f"{place}: {text[0]} is {shown_cell(text[1])}, no text"
    for column, cell in (name, text):
        half = lone_surrogate(cell) if cell and not cell.isascii() and len(cell) <= MAX_CELL else None
        if half:
            return f"{place}: {column} holds half a letter ({half}): write the letter"
        if len(cell or "") > MAX_CELL:
            return f"{place}: {column} has {len(cell):,} letters, and at most {MAX_CELL:,} are read"
    return MetadataRow(place=place, file_name=name[1], text=text[1], conditioning=conditioning)


def shown_cell(value: object) -> str:
    """A cell as a message can print it: ASCII, cut."""
    return ascii(value if not isinstance(value, list | dict) else type(value).__name__)[:60]


def sorted_out(checked: Iterable[MetadataRow | str]) -> Found:
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
