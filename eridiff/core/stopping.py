"""Being told to stop: work is put in order first, and what the next run does is the last thing that is said.

Ctrl-C and `kill` reach a stage below DVC, which prints lines of its own after it. So a stage hands its last words to
the process that started DVC (`make repro`, the flow), in a file that the environment names, and it prints them
at the end.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from eridiff.core.progress import say

LAST_WORDS = "ERIDIFF_LAST_WORDS"  # the file's path
MAKE = "ERIDIFF_MAKE"  # the process id of the make that starts us
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
NOTICE = b"stopping after this step; Ctrl-C again stops at once, and loses the steps since the last saved state\n"


STOPPED_WORDS = "stopped: the next run begins with the stage that was stopped; what was finished before it is kept"
PR_SET_PDEATHSIG = 1  # linux/prctl.h

Asked = Callable[[], int | None]


def never() -> None:
    """No signal asks for the end."""


class Stopped(Exception):
    """A signal asked for the end and work was put in order; the message says what the next run does."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


@contextmanager
def stop_in_order(at_once: Callable[[], str]) -> Iterator[Asked]:
    """Within this block a signal only asks for the end; yields what tells which signal did, if any.

    A second Ctrl-C acts as before this block; at_once: what is said then. A second signal of another kind does not:
    supervisors send one after the other. What is ignored (`nohup`, a script's `&`) stays ignored.

    Raises: Stopped at the second Ctrl-C.
    """
    asked: list[int] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def note(signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and signum in asked:
            signal.signal(signum, before[signal.Signals(signum)])
            signal.raise_signal(signum)
            return
        asked.append(signum)
        if len(asked) == 1:
            with suppress(OSError):  # the terminal may be gone; print() must not be entered twice
                os.write(2, NOTICE)

    for number in SIGNALS:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, note)
    try:
        yield lambda: asked[0] if asked else None
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a third would come between this and its last line
        before.pop(signal.SIGINT)
        raise Stopped(signal.SIGINT, at_once()) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say_last(message: str) -> None:
    """Print a stage's last words, and leave them to who prints them after DVC."""
    if path := os.environ.get(LAST_WORDS):
        with suppress(OSError), open(path, "a", encoding="utf-8") as file:  # they are printed here in any case
            file.write(f"{message}\n")
    say(message)


class LastWords:
    """What the stages of a run left to be printed at its end: a file without a name, which nobody has to remove."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.environment = {LAST_WORDS: f"/proc/{os.getpid()}/fd/{number}"}

    def say(self, otherwise: str = "") -> bool:
        """Print them, or else what is given, if there is any; under make then end it too: it would print a line."""
        words = os.pread(self._number, os.fstat(self._number).st_size, 0).decode("utf-8", errors="replace") or otherwise
        if not words:
            return False
        sys.stderr.flush()
        for line in words.splitlines():
            say(line)
        return _end_make()


@contextmanager
def last_words() -> Iterator[LastWords]:
    """The place for the last words of a run that is started within."""
    number = os.memfd_create("last-words")
    try:
        yield LastWords(number)
    finally:
        os.close(number)


def end_with_make() -> None:
    """Have this process told to stop (SIGTERM) when the make that started it ends before it, as by SIGKILL.

    A make that was killed while Python started cannot be seen any more: the Makefile says which it was.
    """
    said = os.environ.pop(MAKE, "")  # not of what is started from here
    if said and said != str(os.getppid()):
        signal.raise_signal(signal.SIGTERM)
    if (make := _make()) is not None:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != make.pid:  # it ended meanwhile
            signal.raise_signal(signal.SIGTERM)


def _make() -> Any:
    """The make that started this process (psutil.Process); None where none did."""
    import psutil

    if "MAKELEVEL" not in os.environ:
        return None
    parent = psutil.Process().parent()
    return parent if parent is not None and parent.name() in ("make", "gmake") else None


def _end_make() -> bool:
    """Interrupt the make that started this process, as Ctrl-C does, if there is one. It ends with the signal.

    With a failed command it prints `make: *** [repro] Error 130` last; with one that ends well, after Ctrl-C, nothing.
    """
    make = _make()
    if make is None or _ignores_sigint(make.pid):
        return False
    make.send_signal(signal.SIGINT)
    return True


def _ignores_sigint(pid: int) -> bool:
    """Whether a process ignores Ctrl-C, as what a script's `&` started: it would take our end for a good one."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    ignored = next((line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:")), "0")
    return bool(int(ignored, 16) >> (signal.SIGINT - 1) & 1)
