"""Temporary files and folders: ignored by git and DVC by their names' end, which say whose they are.

    .NAME.HOST-PID-RANDOM.tmp

What a killed process left is taken away by the next start in the same project; what a living one writes is not touched.
"""

import os
import re
import secrets
import shutil
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

OURS = re.compile(r"\..+\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.tmp", re.DOTALL)
# Names that tell no owner: those of earlier versions, and what DVC calls a copy that is not whole yet.
OTHERS = re.compile(r"\..+\.[0-9a-f]{12}\.tmp|\.export-[a-z0-9_]{8}|.*\.[\w-]{22}\.tmp", re.DOTALL)
# So long they may still be somebody's. Another machine's processes, or another container's, cannot be seen from here.
OTHERS_SECONDS, FOREIGN_SECONDS = 3600.0, 86400.0
ENDED = ("zombie", "dead")  # psutil's states of what runs no more
CLOCK_SECONDS = 2.0  # a process may look that much younger than a file that it has just written
PLACES = ("data", "runs")  # of a project, with all that is below; of the project's own folder the files alone
PICTURES = "raw"  # data/raw is the user's: nothing is taken away there


def temporary_path(path: Path) -> Path:
    """A name beside `path` that nobody has, for what becomes `path` once it is whole."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def lives(pid: int, seen: float) -> bool:
    """Whether the process that was there at a time (s since 1970) still runs, and not another that got its number.

    One that ended and that its parent has not taken note of (a zombie) does not: containers without an init keep them.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        return process.create_time() <= seen + CLOCK_SECONDS and process.status() not in ENDED
    except psutil.NoSuchProcess:
        return False


def is_left(path: Path) -> bool:
    """Whether a path is a temporary one that nobody works on any more."""
    name = path.name
    try:
        written = path.lstat().st_mtime
    except FileNotFoundError:  # it has just been taken away, or become what it was written for
        return False
    age = time.time() - written
    if ours := OURS.fullmatch(name):
        if ours["host"] != _host():
            return age > FOREIGN_SECONDS
        return not lives(int(ours["pid"]), written)
    return OTHERS.fullmatch(name) is not None and age > OTHERS_SECONDS


def take_away(folder: Path, *, below: bool = True) -> list[Path]:
    """Remove what killed processes left in a folder (and below); returns what was removed.

    What cannot be removed stays: nothing reads it, and whatever else cannot be written there will say so.
    """
    return [path for path in _candidates(folder, below) if is_left(path) and _remove(path)]


def take_away_of(path: Path) -> list[Path]:
    """Remove what killed processes left of what was to become one path, in a folder that may be anybody's."""
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    left = [one for one in beside if OURS.fullmatch(one.name) and one.name.startswith(f".{path.name}.")]
    return [one for one in left if is_left(one) and _remove(one)]


def _remove(path: Path) -> bool:
    """Remove a file or folder; whether it could be."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        return True
    return False


def _candidates(folder: Path, below: bool) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        yield from (Path(place, name) for name in [*files, *folders] if OURS.fullmatch(name) or OTHERS.fullmatch(name))
        folders[:] = [name for name in folders if not name.endswith(".tmp")] if below else []
        if Path(place) == folder and folder.name == PLACES[0] and PICTURES in folders:
            folders.remove(PICTURES)


def clear_project(project: Path) -> list[Path]:
    """Take away what killed processes left in a project; nothing where the folder is none."""
    if not (project / "dvc.yaml").exists():
        return []
    below = [path for place in PLACES for path in take_away(project / place)]
    return take_away(project, below=False) + below
