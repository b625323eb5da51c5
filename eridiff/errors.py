"""Errors that a user can act on.

EridiffError
├── ConfigError    a key of params.yaml or local.yaml is unknown, of a wrong type, or does not fit another
├── DataError      a picture, a caption or a table is missing, unreadable or contradicts another
├── BaseError      weights are missing, of another kind, or not the ones that the pointer names
├── StoreError     the store cannot be read or written, or an entry in it is damaged
├── TrainError     training cannot start or go on
└── ExportError    the exported file would not load everywhere at the trained strength
"""

import difflib
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType

from eridiff.leftovers import clear_project
from eridiff.printable import INDENT, encodable, indented, printable, printable_lines
from eridiff.stopping import Stopped, say_last

# What the file system may refuse, and the way out. Files are written whole or not at all, so a rerun goes on.
DISK_ERRORS = {
    errno.ENOSPC: "Free some space and run it again: what was finished is kept.",
    errno.EDQUOT: "Free some of your quota and run it again: what was finished is kept.",
    errno.EROFS: "The file system is read-only: choose another place.",
    errno.EACCES: "Give yourself the right to it, or choose another place.",
    errno.EPERM: "Give yourself the right to it, or choose another place.",
    errno.EIO: "The disk or the network behind it failed.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ELOOP: "A symbolic link leads back to itself: remove it.",
    errno.ENOTDIR: "A file stands where a folder is wanted.",
    errno.EISDIR: "A folder stands where a file is wanted.",
    errno.ENXIO: "Remove it, or put the file there.",
    errno.EFBIG: "It is no such file: remove it, or put the right one there.",
    errno.EILSEQ: "It is damaged, or of another kind: remove it, or put the right one there.",
}

MAX_NAMED = 100  # files that one message names: enough to mend them in one go


class EridiffError(Exception):
    """A mistake that the user can mend: names the file or field, the value, the choices, the way out."""

    def __str__(self) -> str:
        """The message. What it quotes is shown, never obeyed by a terminal (eridiff/printable.py)."""
        return printable_lines(super().__str__())

    @property
    def message(self) -> str:
        """The message as it was raised, for `report`."""
        return self.args[0] if self.args and isinstance(self.args[0], str) else str(self)


class ConfigError(EridiffError):
    """A key of params.yaml or local.yaml is unknown, of a wrong type, or does not fit another."""


class DataError(EridiffError):
    """A picture, a caption or a table is missing, unreadable or contradicts another."""


class BaseError(EridiffError):
    """Weights are missing, of another kind, or not the ones that the pointer names."""


class StoreError(EridiffError):
    """The store cannot be read or written, or an entry in it is damaged."""


class TrainError(EridiffError):
    """Training cannot start or go on."""


class ExportError(EridiffError):
    """The exported file would not load everywhere at the trained strength."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Name the nearest known name and all choices, as the end of an error message."""
    choices = sorted(known)
    nearest = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return f"{hint} Known: {', '.join(choices) if choices else '(none)'}."


def listing(lines: Sequence[str]) -> str:
    """Up to a hundred lines, indented under a message, then how many more there are.

    Names may hold a line's end: it is shown, as every unsafe character is.
    """
    more = [f"and {len(lines) - MAX_NAMED} more"] if len(lines) > MAX_NAMED else []
    return "".join(f"\n{INDENT}{printable(line)}" for line in [*lines[:MAX_NAMED], *more])


class Mistakes(str):
    """Several mistakes as one text, which still knows where each begins."""

    def __new__(cls, parts: Sequence[str]) -> "Mistakes":
        """Joined as they will be printed."""
        made = super().__new__(cls, "\nerror: ".join(parts))
        made.parts = tuple(parts)
        return made

    parts: tuple[str, ...]

    def __getnewargs__(self) -> tuple[Sequence[str]]:  # type: ignore[override]
        return (self.parts,)


def all_of(mistakes: Sequence[str]) -> str:
    """Mistakes of several kinds as one message: each begins with `error: `, as the first will when it is printed."""
    return Mistakes(mistakes)


def report(message: str) -> None:
    """Print an error. Only what begins one stands at the margin: a line's end in a name makes no second error."""
    parts = message.parts if isinstance(message, Mistakes) else (message,)
    text = "\n".join(f"error: {indented(part)}" for part in parts)
    print(encodable(text, sys.stderr), file=sys.stderr, flush=True)


def quiet_libraries() -> None:
    """Keep the libraries' advice about optional packages out of a stage's lines; their errors stay.

    By environment and before they are imported: nothing heavy is imported for it.
    """
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


NO_ATTENTION = ("No available kernel", "Invalid backend")  # torch's words where the plain kernel is switched off


def run_main(main: Callable[[], None]) -> None:
    """Run a stage or command: a user's mistake ends it with one message and exit code 1.

    A stage ended by a signal must exit non-zero: DVC would otherwise commit half a result. What killed processes left
    in this project is taken away first.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, stop)
    clear_project(Path())
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait leave the cores to other stages
    quiet_libraries()
    try:
        main()
    except EridiffError as error:
        sys.stdout.flush()
        report(error.message)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Stopped as stopped:
        say_last(str(stopped))
        raise SystemExit(128 + stopped.signum) from None
    except RuntimeError as error:
        if not any(words in str(error) for words in NO_ATTENTION):
            raise
        report(
            f"no fused kernel of torch takes this model's attention on this GPU ({error}), and the plain one is "
            "slow and large, so it is not taken instead. Ways out: precision (or dtype) bf16 or fp16, a newer torch."
        )
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        report(f"{error.filename or 'a file'}: {error.strerror}. {DISK_ERRORS[error.errno]}")
        raise SystemExit(1) from None
