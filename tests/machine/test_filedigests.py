"""Remembered digests: when they count, when they do not, and that nothing depends on the cache."""

import hashlib
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from eridiff.machine.filedigests import FileDigests
from tests.support.processes import begin


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    path.write_bytes(b"one")
    settle(path, 100)
    return path


def settle(path: Path, seconds: float) -> None:
    """Make a file look as if it was written some seconds ago."""
    then = time.time_ns() - int(seconds * 1e9)
    os.utime(path, ns=(then, then))


def counted(value: str) -> tuple[Callable[[], str], list[str]]:
    calls: list[str] = []

    def compute() -> str:
        calls.append(value)
        return value

    return compute, calls


def test_sha256_is_the_files_digest(tmp_path: Path, file: Path) -> None:
    with FileDigests(tmp_path / "d.sqlite") as digests:
        assert digests.sha256(file) == hashlib.sha256(b"one").hexdigest()


def test_a_digest_is_remembered_across_runs_and_by_what_it_is(tmp_path: Path, file: Path) -> None:
    compute, calls = counted("digest")
    for _ in range(3):
        with FileDigests(tmp_path / "d.sqlite") as digests:
            assert digests.remember(file, "pixels 1", compute) == "digest"
            assert digests.remember(file, "pixels 2", compute) == "digest"
    assert len(calls) == 2


def test_relative_and_absolute_paths_are_one(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute, calls = counted("digest")
    with FileDigests(tmp_path / "d.sqlite") as digests:
        digests.remember(file, "x", compute)
    monkeypatch.chdir(tmp_path)
    with FileDigests(tmp_path / "d.sqlite") as digests:
        digests.remember(Path(file.name), "x", compute)
    assert len(calls) == 1


def rewrite(path: Path) -> None:
    path.write_bytes(b"longer")
    settle(path, 100)


def replace(path: Path) -> None:
    state, other = path.stat(), path.with_name("other")
    other.write_bytes(b"two")
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    other.replace(path)


def edit_in_place(path: Path) -> None:
    path.write_bytes(b"two")
    settle(path, 50)


@pytest.mark.parametrize("change", [rewrite, replace, edit_in_place])
def test_a_change_of_size_time_or_inode_is_seen(tmp_path: Path, file: Path, change: Callable[[Path], None]) -> None:
    with FileDigests(tmp_path / "d.sqlite") as digests:
        digests.sha256(file)
    change(file)
    with FileDigests(tmp_path / "d.sqlite") as digests:
        assert digests.sha256(file) == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("age", [0, -3600])  # just written; a clock that is ahead
def test_a_file_just_modified_is_not_remembered(tmp_path: Path, file: Path, age: float) -> None:
    compute, calls = counted("digest")
    settle(file, age)
    for _ in range(2):
        with FileDigests(tmp_path / "d.sqlite") as digests:
            digests.remember(file, "x", compute)
    assert len(calls) == 2


def test_a_file_that_changes_while_it_is_read_is_not_remembered(tmp_path: Path, file: Path) -> None:
    def compute() -> str:
        rewrite(file)
        return "of the old bytes"

    with FileDigests(tmp_path / "d.sqlite") as digests:
        digests.remember(file, "x", compute)
    settled, calls = counted("new")
    with FileDigests(tmp_path / "d.sqlite") as digests:
        assert digests.remember(file, "x", settled) == "new"
    assert calls


def test_computed_digests_are_kept_when_the_run_fails(tmp_path: Path, file: Path) -> None:
    with pytest.raises(KeyboardInterrupt), FileDigests(tmp_path / "d.sqlite") as digests:
        digests.remember(file, "x", lambda: "digest")
        raise KeyboardInterrupt
    with FileDigests(tmp_path / "d.sqlite") as digests:
        assert digests.remember(file, "x", lambda: "anew") == "digest"


def test_a_damaged_cache_is_one_warning_and_no_error(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "d.sqlite").write_bytes(b"no database at all" * 100)
    with FileDigests(tmp_path / "d.sqlite") as digests:
        for _ in range(3):
            assert digests.sha256(file) == hashlib.sha256(b"one").hexdigest()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"warning: {tmp_path / 'd.sqlite'} is not used (file is not a database)")
    assert line.endswith("Remove it if it is damaged.")


def test_a_cache_that_cannot_be_made_is_a_warning(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FileDigests(file / "below" / "d.sqlite") as digests:
        assert digests.sha256(file) == hashlib.sha256(b"one").hexdigest()
    assert "is not used" in capsys.readouterr().out


def test_the_default_place_is_the_users_cache(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with FileDigests() as digests:
        digests.sha256(file)
    assert (tmp_path / "cache" / "eridiff" / "digests.sqlite").exists()


def test_some_digests_are_remembered_for_days_only(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute, calls = counted("sound")
    began = time.time()
    for day, expected in ((0.0, 1), (6.9, 1), (7.1, 2), (7.2, 2), (3.0, 3)):  # the last: a clock that was set back
        monkeypatch.setattr(time, "time", lambda day=day: began + day * 86400)
        with FileDigests(tmp_path / "d.sqlite", days=7) as digests:
            assert digests.remember(file, "shard", compute) == "sound"
        assert len(calls) == expected, day
    with FileDigests(tmp_path / "d.sqlite", days=0) as digests:
        digests.remember(file, "shard", compute)
    assert len(calls) == 4


@pytest.mark.parametrize("column", ["digest", "taken", "checksum"])
def test_a_damaged_row_is_taken_anew(tmp_path: Path, file: Path, column: str) -> None:
    with FileDigests(tmp_path / "d.sqlite") as digests:
        digests.sha256(file)
    with sqlite3.connect(tmp_path / "d.sqlite") as connection:
        value = "1.5" if column == "taken" else "'abc'"
        connection.execute(f"update checked set {column} = {value}")
    connection.close()
    with FileDigests(tmp_path / "d.sqlite") as digests:
        assert digests.sha256(file) == hashlib.sha256(b"one").hexdigest()


WRITER = """
import sys, pathlib
from eridiff.machine.filedigests import FileDigests
folder = pathlib.Path(sys.argv[1])
for _ in range(20):
    with FileDigests(folder / "d.sqlite") as digests:
        for path in sorted(folder.glob(sys.argv[2])):
            digests.sha256(path)
            digests._commit()
"""


def test_two_processes_share_a_cache(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}{number}.bin" for name in "ab" for number in range(10)]
    for path in paths:
        path.write_bytes(path.name.encode())
        settle(path, 100)
    root = Path(__file__).parent.parent.parent
    processes = [
        begin([sys.executable, "-c", WRITER, str(tmp_path), pattern], cwd=root, stdout=subprocess.PIPE, text=True)
        for pattern in ("a*.bin", "*.bin")
    ]
    assert [(process.communicate()[0], process.returncode) for process in processes] == [("", 0)] * 2
    with FileDigests(tmp_path / "d.sqlite") as digests:
        for path in paths:
            assert digests.remember(path, "sha256", lambda: "lost") == hashlib.sha256(path.name.encode()).hexdigest()


@pytest.mark.slow
def test_ten_thousand_digests_are_quick(tmp_path: Path, file: Path) -> None:
    start = time.monotonic()
    for _ in range(2):
        with FileDigests(tmp_path / "d.sqlite") as digests:
            for number in range(10_000):
                digests.remember(file, f"what {number}", lambda: "digest")
    assert time.monotonic() - start < 5


def test_what_is_noted_counts_until_the_file_changes(tmp_path: Path, file: Path) -> None:
    compute, calls = counted("computed")
    with FileDigests(tmp_path / "d.sqlite") as digests:
        digests.note(file, "x", "noted")
    with FileDigests(tmp_path / "d.sqlite") as digests:
        assert digests.remember(file, "x", compute) == "noted"
        settle(file, 50)
        assert digests.remember(file, "x", compute) == "computed"
    assert len(calls) == 1
