"""Captions in files: encodings, JSON lines, CSV and Parquet, and what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eridiff.core.errors import DataError
from eridiff.dataset.caption.files import read_text
from eridiff.dataset.caption.rows import MetadataRow
from eridiff.dataset.caption.tables import read_metadata
from tests.support import processes


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


def test_only_the_two_columns_of_parquet_are_read(tmp_path: Path) -> None:
    """Times that Python has no word for, and pictures, may stand beside them."""
    times = pa.array([2**62, -(2**62)], type=pa.timestamp("us"))
    path = write_parquet(
        tmp_path / "metadata.parquet", {"file_name": ["a.png", "b.png"], "text": ["a", "b"], "time": times}
    )
    rows, problems = read_metadata(path)
    assert ([row.text for row in rows], problems) == (["a", "b"], [])
    path = write_parquet(path, {"file_name": ["a.png", "b.png"], "text": times})
    assert read_metadata(path) == ([], [": the column text holds timestamp[us], no text"])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_texts_of_parquet_in_every_type(tmp_path: Path, kind: Any) -> None:
    texts = pa.array(["a", None, "a", "Bär"]).cast(kind)
    path = write_parquet(tmp_path / "metadata.parquet", {"file_name": ["1", "2", "3", "4"], "caption": texts})
    assert [row.text for row in read_metadata(path)[0]] == ["a", None, "a", "Bär"]


def test_bad_utf8_in_parquet_is_named_by_its_row(tmp_path: Path) -> None:
    texts = pa.Array.from_buffers(pa.string(), 3, pa.array([b"ok", b"B\xe4r", b"fine"]).buffers())
    path = write_parquet(tmp_path / "metadata.parquet", {"file_name": ["a.png", "b.png", "c.png"], "text": texts})
    rows, problems = read_metadata(path)
    assert [row.text for row in rows] == ["ok", "fine"]
    assert problems == [" row 2: text is no UTF-8: b'B\\xe4r'"]


def test_a_small_parquet_of_much_text_takes_little_memory(tmp_path: Path) -> None:
    """Three gigabytes in twelve kilobytes: an equal text is one object."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000), ["x" * 150_000])
    path = write_parquet(tmp_path / "metadata.parquet", {"file_name": ["a.png"] * 20_000, "text": texts})
    assert path.stat().st_size < 1 << 20
    rows, problems = read_metadata(path)
    assert len(rows) == 20_000 and problems == [] and len({id(row.text) for row in rows}) < 30


def test_columns_that_stand_twice_are_refused(tmp_path: Path) -> None:
    assert found(tmp_path / "metadata.csv", "file_name,text,text\na.png,b,c\n")[1] == [
        " line 1: has the column text twice: keep one"
    ]
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], ["file_name", "text", "text"])
    pq.write_table(table, tmp_path / "metadata.parquet")
    assert read_metadata(tmp_path / "metadata.parquet")[1] == [": has the column text twice: keep one"]


def test_a_json_of_brackets_is_not_unpacked(tmp_path: Path) -> None:
    """Each empty list of two letters would take 64 bytes."""
    rows, problems = found(tmp_path / "captions.json", "[" + "[]," * 3_500_000 + "[]]")
    assert rows == [] and problems[0].startswith(": no JSON (more than 3,000,000 values, and no more are read")


@pytest.mark.parametrize(
    ("name", "start", "line"),
    [("metadata.csv", "file_name,text\n", "\n"), ("metadata.csv", "file_name,text\n", ",,\n"), ("m.jsonl", "", "\n"),
     ("m.jsonl", "", "1\n"), ("m.tsv", "file\ttext\n", "\t\n")],
)  # fmt: skip
def test_files_of_short_lines_are_read_within_bounds(
    tmp_path: Path, name: str, start: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eridiff.dataset.caption.rows.MAX_ROWS", 5_000)
    rows, problems = found(tmp_path / name, start + line * 50_000)
    assert len(rows) <= 5_001 and len(problems) <= 1_002
    assert line == "\n" or problems[-1] == ": more than 5,000 rows or 1,000 mistakes, and no more are read"


def test_a_text_file_of_many_gigabytes_is_not_read(tmp_path: Path) -> None:
    for name in ("metadata.jsonl", "metadata.csv", "captions.json"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(1 << 40)  # a hole
        with pytest.raises(DataError, match=f"{name}: 1,099,511,627,776 bytes, and at most 67,108,864 are read"):
            read_metadata(tmp_path / name)


TABLES = [
    ("jsonl", b'{"file_name": "a.png", "text": "a cat"}\n{"file_name": "b.png", "text": "b"}\n'),
    ("json", b'{"a.png": {"caption": "a cat", "tags": ["x", "y"]}, "b.png": {"tags": "z"}}'),
    ("csv", b'file_name,text\na.png,"a, cat"\nb.png,b\n'),
    ("tsv", b"image\tcaption\na.png\ta cat\n"),
]


def check_reading(path: Path, data: bytes) -> None:
    """Any bytes give rows of text that can be written, problems in one line each, or an error for the user."""
    path.write_bytes(data)
    try:
        rows, problems = read_metadata(path)
    except DataError:
        return
    for row in rows:
        assert row.file_name.encode() is not None and (row.text is None or row.text.encode() is not None)
    assert all(problem.startswith((":", " ")) for problem in problems)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from(TABLES), st.lists(st.tuples(st.integers(0, 90), st.binary(max_size=4)), max_size=4))
def test_damaged_tables_are_read_or_refused(
    tmp_path: Path, table: tuple[str, bytes], edits: list[tuple[int, bytes]]
) -> None:
    suffix, data = table
    for at, new in edits:
        data = data[:at] + new + data[at + len(new) :]
    check_reading(tmp_path / f"metadata.{suffix}", data)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.sampled_from(["\ud800", "a.png"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["file_name", "text", "caption", "tags", "a.png", "\udfff"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(JSON_VALUES, st.sampled_from(["json", "jsonl"]))
def test_any_json_is_read_or_refused(tmp_path: Path, value: Any, suffix: str) -> None:
    check_reading(tmp_path / f"metadata.{suffix}", json.dumps(value).encode())


@pytest.mark.slow
def test_damaged_parquet_is_read_or_refused(tmp_path: Path) -> None:
    """In a process of its own: a fault of the library would end it."""
    path = write_parquet(
        tmp_path / "good.parquet", {"file_name": [f"{n}.png" for n in range(40)], "text": ["a cat", "b"] * 20}
    )
    assert processes.run(FLIP, str(path), str(tmp_path / "metadata.parquet")) == "300\n"


FLIP = """
import random, sys
from pathlib import Path
from tests.dataset.caption.test_files import check_reading
data, draw = Path(sys.argv[1]).read_bytes(), random.Random(0)
for number in range(300):
    damaged = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5))):
        damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    check_reading(Path(sys.argv[2]), bytes(damaged))
print(number + 1)
"""
