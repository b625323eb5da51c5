"""Digests of files, remembered on this machine: a file that did not change is not read again.

A digest counts while path, size, modification time and inode are the ones it was taken with; some for a number of days
only, since damage on a disk changes none of these. Each row carries a checksum of itself. The cache is a convenience:
nothing depends on it, and where it cannot be used every digest is calculated again.
"""

import math
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from eridiff.core.files import digest_file, digest_json
from eridiff.core.progress import say
from eridiff.machine.local import user_cache

SETTLED_SECONDS = 2.0  # a file younger than this may change again within the clock's grain
BATCH = 500
SECONDS_BETWEEN_COMMITS = 1.0
BUSY_SECONDS = 10.0

CREATE = """
create table if not exists checked (
    path blob, what text, size integer, mtime_ns integer, inode integer, digest text, taken real, checksum text,
    primary key (path, what)
)
"""  # rows of before lie in a table `digests`, without checksums: they are calculated again
SELECT = """
select digest, taken, checksum from checked where path = ? and what = ? and size = ? and mtime_ns = ? and inode = ?
"""
INSERT = "insert or replace into checked values (?, ?, ?, ?, ?, ?, ?, ?)"
DAY_SECONDS = 86400.0

State = tuple[bytes, str, int, int, int]
Record = tuple[bytes, str, int, int, int, str, float, str]


def _state(path: Path, what: str) -> State:
    """What a digest counts for: the file as it is now."""
    status = path.stat()
    return os.fsencode(os.path.abspath(path)), what, status.st_size, status.st_mtime_ns, status.st_ino


def _record(state: State, digest: str, taken: float) -> Record:
    """A row with its checksum."""
    path, *rest = state
    text = digest_json([path.hex(), *rest, digest, taken])
    return (*state, digest, taken, text)


class FileDigests:
    """Remembered digests in one SQLite file that processes share: a context manager, for one thread."""

    def __init__(
        self,
        path: Path | None = None,
        *,
        anew: Callable[[Path], bool] = lambda _: False,
        days: float | None = None,
    ) -> None:
        """Open the cache. path: default `digests.sqlite` in the user's cache folder.

        anew: for which files every digest is calculated again and remembered in place of what was known. days: for how
        long digests count; None: for ever.
        """
        self._anew, self._since = anew, -math.inf if days is None else time.time() - days * DAY_SECONDS
        self._path = path or user_cache() / "digests.sqlite"
        self._pending: list[Record] = []
        self._committed = time.monotonic()
        self._connection: sqlite3.Connection | None = None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
            self._connection.execute(CREATE)
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def __enter__(self) -> Self:
        """Return the cache itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Keep what was computed, also when the block failed."""
        self.close()

    def sha256(self, path: Path) -> str:
        """sha256 (hex) of a file's bytes."""
        return self.remember(path, "sha256", lambda: digest_file(path))

    def remember(self, path: Path, what: str, compute: Callable[[], str]) -> str:
        """Some digest of a file, computed only if it is not remembered. what: its name, with its version."""
        state = _state(path, what)
        known = None if self._anew(path) else self._look_up(state)
        if known is not None:
            return known
        digest = compute()
        if state == _state(path, what) and time.time() - path.stat().st_mtime > SETTLED_SECONDS:
            self._add(_record(state, digest, time.time()))
        return digest

    def note(self, path: Path, what: str, digest: str) -> None:
        """Remember the digest of a file that this process has just written under its name, whole."""
        self._add(_record(_state(path, what), digest, time.time()))

    def close(self) -> None:
        """Write what is pending and close the file."""
        self._commit()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _add(self, record: Record) -> None:
        self._pending.append(record)
        late = time.monotonic() - self._committed > SECONDS_BETWEEN_COMMITS
        if late or len(self._pending) >= BATCH:
            self._commit()

    def _look_up(self, state: State) -> str | None:
        if self._connection is None:
            return None
        try:
            row = self._connection.execute(SELECT, state).fetchone()
        except sqlite3.Error as error:
            self._give_up(error)
            return None
        if row is None or not (isinstance(row[0], str) and isinstance(row[1], float)):
            return None
        if (*state, *row) != _record(state, row[0], row[1]):
            return None  # a damaged one
        return str(row[0]) if self._since < row[1] <= time.time() else None

    def _commit(self) -> None:
        """One transaction for many digests: each would cost a disk sync."""
        self._committed = time.monotonic()
        if self._connection is None or not self._pending:
            return
        try:
            self._connection.execute("begin immediate")
            self._connection.executemany(INSERT, self._pending)
            self._connection.execute("commit")
        except sqlite3.Error as error:
            self._give_up(error)
        self._pending.clear()

    def _give_up(self, error: Exception) -> None:
        say(f"warning: {self._path} is not used ({error}); files are read again. Remove it if it is damaged.")
        if self._connection is not None:
            self._connection.close()
            self._connection = None
