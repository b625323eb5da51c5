"""What a Parquet file unpacks to is known, and bounded, before anything is unpacked."""

import io
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eridiff import parquetpages, tables
from eridiff.captiontables import read_metadata
from eridiff.errors import DataError
from eridiff.parquetpages import Pages, check_pages
from eridiff.seals import BLANK, MARK, sealed
from eridiff.tables import TableRows, read_facts, read_table, table_bytes
from tests.test_bounds_fuzz import in_time

LARGEST = (1 << 31) - 1  # what a page's header can claim


def varint(number: int) -> bytes:
    """A positive number as Thrift has it."""
    number, found = number << 1, []
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def claiming(data: bytes, size: int) -> bytes:
    """A Parquet file whose first page claims so many bytes, its checksum as it must be."""
    start = re.match(rb"PAR1\x15.\x15[\x80-\xff]*[\x00-\x7f]", data, re.DOTALL)
    assert start
    changed = data[:7] + varint(size) + data[start.end() :]
    changed = re.sub(re.escape(MARK) + rb"[0-9a-f]{64}", BLANK.encode(), changed)
    return sealed(changed) if BLANK.encode() in changed else changed


def parquet(rows: dict[str, list[Any]], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(rows), buffer, **options)
    return buffer.getvalue()


def check(data: bytes, largest: int = 1 << 20, columns: tuple[str, ...] | None = None) -> Pages:
    return check_pages(lambda at, count: data[at : at + count], len(data), largest, columns)


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Time, and what pyarrow takes."""
    before = pa.default_memory_pool().max_memory()
    with in_time():
        yield
    assert pa.default_memory_pool().max_memory() < max(before, 64 << 20) + (16 << 20)


ROWS = {"file_name": ["a.png", "b.png"], "text": ["a fox", "a hare"]}


def test_a_page_of_two_gigabytes_in_a_table(tmp_path: Path) -> None:
    path = tmp_path / "t.sealed.parquet"
    good = table_bytes([{"path": "a"}, {"path": "b"}], {"path": "str"}, {"n": 1})
    path.write_bytes(claiming(good, 40))
    read_facts(path)  # sealed as it must be
    path.write_bytes(claiming(good, LARGEST))
    for read in (read_table, read_facts, lambda path: list(TableRows(path))):
        with pytest.raises(DataError, match=rf"t\.sealed\.parquet cannot be read .*unpacks to {LARGEST} bytes, more"):
            read(path)


@pytest.mark.parametrize("use_dictionary", [True, False])
def test_a_page_of_two_gigabytes_in_a_table_of_captions(use_dictionary: bool, tmp_path: Path) -> None:
    path = tmp_path / "metadata.parquet"
    data = parquet(ROWS, use_dictionary=use_dictionary)
    path.write_bytes(data)
    assert [row.text for row in read_metadata(path)[0]] == ["a fox", "a hare"]
    path.write_bytes(claiming(data, LARGEST))
    rows, problems = read_metadata(path)
    assert not rows and re.fullmatch(r": no Parquet \(a page unpacks to 2147483647 bytes, more than .*\)", problems[0])


def test_columns_that_are_not_read_may_be_of_any_size() -> None:
    data = parquet({"image": [bytes(1 << 21)], **{name: values[:1] for name, values in ROWS.items()}})
    assert check(data, columns=("file_name", "text"))
    with pytest.raises(ValueError, match=r"a page unpacks to 20971.. bytes, more than 1048576"):
        check(data)


@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "zstd"}, {"data_page_version": "2.0"}, {"use_dictionary": False}, {"row_group_size": 1}],
)
def test_whatever_pyarrow_writes_is_understood(options: dict[str, Any]) -> None:
    found = check(
        parquet({"a": ["x" * 100, "y" * 100], "b": [["u"], []], "c": [1.5, None], "d": [True, False]}, **options)
    )
    assert found.largest_dictionary == {False: 0}.get(options.get("use_dictionary", True), found.largest_dictionary)
    assert found.largest_dictionary or options == {"use_dictionary": False}


def test_more_values_than_a_file_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    data = parquet({"a": ["x"] * 300_000})
    assert check(data)
    monkeypatch.setattr(parquetpages, "FEW_VALUES", 1000)
    with pytest.raises(ValueError, match=r"a column has 300000 values in a file of \d+ bytes"):
        check(data)


def test_values_that_copy_each_other_are_refused() -> None:
    data = parquet({"a": ["x", "xy"]}, use_dictionary=False, column_encoding={"a": "DELTA_BYTE_ARRAY"})
    with pytest.raises(ValueError, match="DELTA_BYTE_ARRAY"):
        check(data)


def test_a_long_word_in_every_row_is_unpacked_some_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.sealed.parquet"
    path.write_bytes(table_bytes(({"path": "x" * 10_000} for _ in range(3000)), {"path": "str"}, {}))
    monkeypatch.setattr(tables, "MAX_BATCH_BYTES", 100_000)
    assert len(path.read_bytes()) < 5000 and len(read_table(path)[0]) == 3000
    monkeypatch.setattr(tables, "MAX_UNPACKED_BYTES", 1_000_000)
    with pytest.raises(DataError, match="its rows unpack to more than 1000000 bytes"):
        read_table(path)


FOOTERS = {
    "nothing": b"",
    "lists in lists": b"\x19" * 50 + b"\x00",
    "a list without end": b"\x49\xf1" + b"\xff" * 4 + b"\x0f" + bytes(50),
    "structs in structs": b"\x1c" * 3000 + bytes(3000),
    "a number without end": b"\x16" + b"\xff" * 200,
    "a text that is longer than all": b"\x18\xff\xff\xff\x7f",
    "more fields than are read": b"\x29\xf1\xff\xff\x7f" + b"\x01" * 1_000_000,
    "groups that are numbers": b"\x46\x02\x00",
    "a name that is a number": b"\x49\x1c\x19\x1c\x3c\x39\x16\xff\xff\xff\xff\x0f\x00\x00\x00\x00",
    "chunks without a place": b"\x49\x1c\x19\x1c\x00\x00\x00",
}


@pytest.mark.parametrize("name", FOOTERS)
def test_footers_of_any_kind_are_refused(name: str, tmp_path: Path) -> None:
    footer = FOOTERS[name]
    data = b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1"
    path = tmp_path / "t.sealed.parquet"
    if name != "nothing":
        with pytest.raises(ValueError, match=r"\w"):
            check(data)
    path.write_bytes(data)
    with pytest.raises(DataError):
        read_table(path)


@pytest.mark.parametrize("data", [b"", b"P", b"PAR1", b"PAR1" + bytes(8), b"PAR1\xff\xff\xff\xffPAR1"])
def test_what_is_no_parquet(data: bytes) -> None:
    with pytest.raises(ValueError, match="no footer of Parquet"):
        check(data)
