"""Locks on open files (flock): the kernel lets go of one when all that keep the file open have ended, by any end."""

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def try_lock(number: int) -> bool:
    """Lock an open file; False where another holds it.

    Raises: OSError where the file system has no locks.
    """
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def hold_file(
    path: Path, stopped: threading.Event | None = None, log: Callable[[str], None] | None = None
) -> Iterator[int]:
    """Lock a file; yields the open file's number. Where it is taken, wait, unless there is nothing to end the wait.

    Raises: BlockingIOError where it is taken and `stopped` is None; InterruptedError where that is set meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not try_lock(number):
            if stopped is None:
                raise BlockingIOError(f"{path} is locked")
            if log:
                log("waits for another run in this checkout")
            while not try_lock(number):
                if stopped.wait(0.5):
                    raise InterruptedError("the run was stopped")
        yield number
    finally:
        os.close(number)
