"""A lock on a file is waited for or refused, and lasts as long as any process keeps the file."""

import errno
import os
import threading
from pathlib import Path

import pytest

from eridiff.filelock import hold_file, try_lock
from eridiff.supervise import Crew


def test_a_lock_is_waited_for_refused_and_kept_by_the_command(tmp_path: Path) -> None:
    path, said = tmp_path / "deep" / "lock", []
    with Crew() as crew:
        with hold_file(path) as number:
            with pytest.raises(BlockingIOError), hold_file(path):
                pass
            stopped = threading.Event()
            stopped.set()
            with pytest.raises(InterruptedError), hold_file(path, stopped, said.append):
                pass
            assert said == ["waits for another run in this checkout"]
            job = crew.start(["sleep", "1"], tmp_path, os.environ, keep=number)
        with pytest.raises(BlockingIOError), hold_file(path):  # its supervisor has it still
            pass
        assert list(job.lines()) == [] and job.wait() == 0
        with hold_file(path):
            pass


def test_a_file_system_without_locks_is_no_lock_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("eridiff.filelock.fcntl.flock", refuse)
    with (tmp_path / "lock").open("w") as file, pytest.raises(OSError, match="No locks") as raised:
        try_lock(file.fileno())
    assert not isinstance(raised.value, BlockingIOError)
