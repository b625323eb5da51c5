"""Files written whole or not at all; tables whose bytes are a function of their rows."""

import errno
import os
from pathlib import Path

import pytest

from eridiff.core.errors import DataError
from eridiff.core.files import atomic_write, canonical_json, digest_file, digest_json, link_or_copy, write_text
from eridiff.formats.tables import TableRows, read_facts, read_table, table_bytes, write_table
from tests.support import processes

COLUMNS = {"path": "str", "count": "int", "share": "float", "tags": "strs"}
ROWS = [
    {"path": "a.png", "count": 1, "share": 0.25, "tags": ["x", "ü"]},
    {"path": "ключ/b.png", "count": -(2**40), "share": 1e-300, "tags": []},
]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    write_text(path, "whole ü")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_text("utf-8") == "whole ü"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    """The system's own error of a write names none."""
    with pytest.raises(OSError, match="No space left") as caught, atomic_write(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a.txt")


def test_a_file_is_not_seen_before_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_write(path) as file:
        file.write(b"1")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"1"


def test_canonical_json() -> None:
    assert canonical_json({"b": 1, "a": [1.5, None, "ü"]}) == '{"a":[1.5,null,"ü"],"b":1}'
    assert digest_json({"b": 1, "a": 2}) == digest_json({"a": 2, "b": 1})
    assert digest_json({"a": (1, 2)}) == digest_json({"a": [1, 2]})
    assert len({digest_json(value) for value in (1, 1.0, "1", True, None, [1], {"1": 1})}) == 7
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_digest_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert digest_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(bytes((1 << 20) + 1))
    assert digest_file(path) == "2cb74edba754a81d121c9db6833704a8e7d417e5b13d1a19f4a52f007d644264"  # two chunks


def test_link_or_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"data")
    link_or_copy(source, tmp_path / "x" / "linked")
    assert (tmp_path / "x" / "linked").samefile(source)
    monkeypatch.setattr(os, "link", refuse_links)
    link_or_copy(source, tmp_path / "x" / "copied")
    assert not (tmp_path / "x" / "copied").samefile(source)
    assert (tmp_path / "x" / "copied").read_bytes() == b"data"


def refuse_links(*_: object) -> None:
    raise OSError(18, "Invalid cross-device link")


def test_rows_and_facts_come_back(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    facts = {"trigger": None, "scale": 0.13025, "list": [1, "ü"]}
    write_table(path, ROWS, COLUMNS, facts)
    assert read_table(path) == (ROWS, facts)
    write_table(path, [], COLUMNS)
    assert read_table(path) == ([], {})


TABLE = """
import hashlib, json, sys
from eridiff.formats.tables import table_bytes
columns, rows = json.loads(sys.argv[1])
facts = {name: len(name) for name in {"alpha", "beta", "gamma"}}
print(hashlib.sha256(table_bytes(rows, columns, facts)).hexdigest())
"""


@pytest.mark.slow
def test_processes_write_the_same_table() -> None:
    given = canonical_json([COLUMNS, ROWS])
    assert len({processes.run(TABLE, given, seed=seed) for seed in range(3)}) == 1


def test_bytes_depend_on_rows_columns_and_facts() -> None:
    tables = [
        table_bytes(ROWS, COLUMNS, {}),
        table_bytes(ROWS[::-1], COLUMNS, {}),
        table_bytes(ROWS, dict(reversed(COLUMNS.items())), {}),
        table_bytes(ROWS, COLUMNS, {"a": 1}),
    ]
    assert len(set(tables)) == 4
    assert table_bytes(ROWS, COLUMNS, {}) == tables[0]


def test_missing_and_damaged_tables_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with pytest.raises(DataError, match=r"t\.parquet is missing: run `dvc repro`"):
        read_table(path)
    data = table_bytes(ROWS * 50, COLUMNS, {"a": 1})
    for damaged in (b"", b"PAR1", data[: len(data) // 2], data[:-1], b"text" * 9, data[:-8] + b"\0" * 8):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"t\.parquet is damaged: .* Run `eridiff store repair`, then `dvc repro`"):
            read_table(path)


def test_a_flipped_bit_of_a_table_is_found(tmp_path: Path) -> None:
    """By every way to read one; tests/formats/test_seals.py flips every bit."""
    path, data = tmp_path / "t.parquet", table_bytes(ROWS, COLUMNS, {"a": 1})
    for place in range(0, len(data), 11):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        with pytest.raises(DataError, match=r"t\.parquet is damaged"):
            read_table(path)
    for read in (read_facts, lambda path: list(TableRows(path)), lambda path: len(TableRows(path, ["b"]))):
        with pytest.raises(DataError, match=r"t\.parquet is damaged"):
            read(path)
