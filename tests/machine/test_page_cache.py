"""What the system holds in memory, and which weights are therefore digested again before they are loaded."""

import os
from pathlib import Path

import psutil
import pytest

from eridiff.machine import page_cache
from eridiff.machine.filedigests import FileDigests
from eridiff.machine.page_cache import forget, in_memory, worth_reading


def on_disk(folder: Path) -> Path:
    """A file that was written to the disk and is in no memory."""
    path = folder / "weights"
    path.write_bytes(os.urandom(4 << 20))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    forget(path)
    if in_memory(path):
        pytest.skip("this file system keeps its files in memory")
    return path


def test_what_was_read_is_in_memory(tmp_path: Path) -> None:
    path = on_disk(tmp_path)
    path.read_bytes()
    assert in_memory(path)


def test_an_empty_file_is_in_memory(tmp_path: Path) -> None:
    (tmp_path / "none").touch()
    assert in_memory(tmp_path / "none")


def test_worth_reading_are_files_on_the_disk_where_cores_and_memory_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = on_disk(tmp_path)
    monkeypatch.setattr(page_cache, "shared_cores", lambda: 8)
    assert worth_reading(path)
    monkeypatch.setattr(page_cache, "shared_cores", lambda: 7)
    assert not worth_reading(path)
    monkeypatch.setattr(page_cache, "shared_cores", lambda: 8)
    little = psutil.virtual_memory()._replace(available=path.stat().st_size)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    assert not worth_reading(path)


def test_a_remembered_digest_is_taken_again_where_it_is_worth_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    os.utime(path, (1, 1))
    with FileDigests(tmp_path / "digests", anew=lambda _: True) as digests:
        first = digests.sha256(path)
        path.write_bytes(b"beFore")  # as a disk does: neither size nor time moves
        os.utime(path, (1, 1))
        assert digests.sha256(path) != first
