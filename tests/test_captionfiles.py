"""Captions in files: encodings, JSON lines, CSV and Parquet, and what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eridiff.captionfiles import read_text
from eridiff.captiontables import MetadataRow, read_metadata
from eridiff.errors import DataError


def found(path: Path, content: str | bytes) -> tuple[list[tuple[str, str, str | None]], list[str]]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    rows, problems = read_metadata(path)
    return [(row.place, row.file_name, row.text) for row in rows], problems


def test_text_is_utf8_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("ein Bär\r\n".encode("utf-8-sig"))
    assert read_text(path) == "ein Bär\r\n"
    path.write_bytes("ein Bär".encode())
    assert read_text(path) == "ein Bär"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("a Bär".encode("latin-1"), "a.txt: byte 3 (0xE4) is no UTF-8. Save the file as UTF-8."),
        (b"\xef\xbb\xbfB\xe4r", "a.txt: byte 4 (0xE4) is no UTF-8. Save"),
        ("a".encode("utf-16"), "a.txt: byte 0 (0xFF) is no UTF-8 (it looks like UTF-16). Save"),
    ],
)
def test_another_encoding_is_refused_with_its_place(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_text(tmp_path / "a.txt")
    assert words in str(caught.value)


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    lines = [
        '{"file_name": "a.png", "text": "a\u2028b", "width": 3}',
        "",
        '{"file_name": "b.png", "caption": "c"}',
        '{"file_name": "c.png", "text": null}',
    ]
    rows, problems = found(path, "\ufeff" + "\r\n".join(lines))
    assert rows == [
        (" line 1", "a.png", "a\u2028b"),
        (" line 3", "b.png", "c"),
        (" line 4", "c.png", None),
    ]
    assert problems == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"file_name": "a.png"', " line 2: no JSON (Expecting ',' delimiter: line 1 column 22 (char 21))"),
        ("[1]", " line 2: no JSON object such as"),
        ('"a.png"', " line 2: no JSON object such as"),
        ('{"text": "a"}', " line 2: needs the columns file_name and text (or caption), has: text"),
        ('{"file_name": "a.png"}', " line 2: needs the columns file_name and text (or caption), has: file_name"),
        ('{"file_name": "a", "text": "", "caption": ""}', " line 2: has both columns text and caption: keep one"),
        ('{"file_name": 3, "text": "a"}', " line 2: file_name is 3, no file's name"),
        ('{"file_name": "a.png", "text": [1]}', " line 2: text is 'list', no text"),
        ('{"file_name": "a.png", "text": "\\ud83d"}', " line 2: text holds half a letter (U+D83D): write the letter"),
        ('{"file_name": "\\udc00.png", "text": "a"}', " line 2: file_name holds half a letter (U+DC00)"),
        ('{"file_name": "a", "text": "x", "text": "y"}', " line 2: no JSON (the key 'text' stands twice)"),
        (
            '{"file_name": "a", "text": "' + "x" * 300_000 + '"}',
            " line 2: text has 300,000 letters, and at most 262,144",
        ),
        ('{"file_name": "a", "text": ' + "9" * 5_000 + "}", " line 2: no JSON (a number of 5000 digits)"),
        ("[" * 100_000, " line 2: no JSON (lists or objects in each other, deeper than is read)"),
    ],
)
def test_broken_lines_are_named_and_the_others_read(tmp_path: Path, line: str, problem: str) -> None:
    good = json.dumps({"file_name": "good.png", "text": "good"})
    rows, problems = found(tmp_path / "metadata.jsonl", f"{good}\n{line}\n{good}")
    assert rows == [(" line 1", "good.png", "good"), (" line 3", "good.png", "good")]
    assert len(problems) == 1 and problems[0].startswith(problem)


def test_csv(tmp_path: Path) -> None:
    text = 'id,file_name,caption\r\n1,a.png,"a, b\nc"\r\n\r\n2,b.png,\r\n'
    rows, problems = found(tmp_path / "metadata.csv", "\ufeff" + text)
    assert rows == [(" line 3", "a.png", "a, b\nc"), (" line 5", "b.png", "")]
    assert problems == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", " line 1: needs the columns file_name and text (or caption), has: none"),
        ("file;text\na.png;a", " line 1: needs the columns file_name and text (or caption), has: file;text"),
        ("file_name,text\na.png,a, b", " line 2: 3 fields for 2 columns: put a caption that holds commas in double"),
        ("file_name,text\na.png", " line 2: 1 fields for 2 columns"),
        ('file_name,text\na.png,"a" b', " line 2: no CSV (',' expected after '\"')"),
        ('file_name,text\na.png,"a', " line 2: no CSV (unexpected end of data)"),
    ],
)
def test_broken_csv_is_named(tmp_path: Path, text: str, problem: str) -> None:
    rows, problems = found(tmp_path / "metadata.csv", text)
    assert rows == []
    assert len(problems) == 1 and problems[0].startswith(problem)


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_parquet(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "metadata.parquet", {"file_name": ["a.png", "b.png"], "text": ["a", None], "n": [1, 2]}
    )
    assert read_metadata(path) == (
        [
            MetadataRow(place=" row 1", file_name="a.png", text="a"),
            MetadataRow(place=" row 2", file_name="b.png", text=None),
        ],
        [],
    )


def test_broken_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metadata.parquet"
    assert found(path, b"not parquet")[1][0].startswith(": no Parquet (")
    assert found(path, b"")[1][0].startswith(": no Parquet (")
    assert read_metadata(write_parquet(path, {"image": ["a.png"]}))[1] == [
        ": needs the columns file_name and text (or caption), has: image"
    ]
    assert read_metadata(write_parquet(path, {"file_name": ["a.png"], "text": [3]}))[1] == [
        ": the column text holds int64, no text"
    ]
