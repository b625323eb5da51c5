"""A folder of pictures, copied into a project: what is copied, and what cannot be.

DVC's own words for such files name neither all of them nor the way out, so they are looked for first.
"""

import os
import subprocess
from pathlib import Path

from eridiff.core.errors import DataError, listing
from eridiff.dataset.folder_files import NO_FILE, leads_outside
from eridiff.dataset.image.first_bytes import is_picture
from eridiff.dataset.image.header import PICTURE_SUFFIXES

MAX_LINES = 3  # on a full disk `cp` says the same of every file
FILES_A_CALL = 200  # of `cp`; a path has at most 4096 bytes, a command line two million


def list_files(images: Path) -> list[str]:
    """The files to copy, relative and sorted: links are followed, hidden files stay behind, as no stage reads them.

    Raises: DataError for what is no folder or holds no pictures, and with all files that cannot be copied or tracked.
    """
    if not images.is_dir():
        raise DataError(f"{images} is no folder of pictures.")
    files, problems = look_through(images)
    if problems:
        raise DataError(
            f"{images} cannot be copied as it is. Mend or remove these, then run it again:{listing(problems)}"
        )
    if not any(name.lower().endswith(PICTURE_SUFFIXES) or is_picture(images / name) for name in files):
        raise DataError(f"{images} holds no pictures. Known kinds: {', '.join(PICTURE_SUFFIXES)}.")
    return files


def look_through(images: Path) -> tuple[list[str], list[str]]:
    """The files of a folder that DVC can track, and what is wrong with the others, both sorted; hidden ones in none."""
    files: list[str] = []
    problems: list[str] = []
    _walk(images, "", (os.path.realpath(images),), files, problems)
    return sorted(files), sorted(problems)


def refuse_endless(pictures: Path) -> None:
    """Refuse pipes and devices among the pictures, before DVC is started: it would read them without end.

    Raises: DataError that names them.
    """
    endless = (
        [problem for problem in look_through(pictures)[1] if problem.endswith(NO_FILE)] if pictures.is_dir() else []
    )
    if endless:
        raise DataError(f"{pictures} holds what DVC would read without end. Remove these:{listing(endless)}")


def copy_files(images: Path, files: list[str], target: Path) -> None:
    """Copy files (reflinked where the file system can) with their folders, writable; links become what they name.

    Raises: DataError with what `cp` says, as where the disk is full.
    """
    target.mkdir(parents=True)
    command = ["cp", "--dereference", "--parents", "--reflink=auto", "-t", str(target.resolve()), "--"]
    for start in range(0, len(files), FILES_A_CALL):
        names = files[start : start + FILES_A_CALL]
        done = subprocess.run([*command, *names], cwd=images, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DataError(f"{images} could not be copied to {target}:{listing(done.stderr.splitlines()[:MAX_LINES])}")
    for path in (target, *target.rglob("*")):
        path.chmod(path.stat().st_mode | (0o700 if path.is_dir() else 0o600))


def _walk(folder: Path, below: str, above: tuple[str, ...], files: list[str], problems: list[str]) -> None:
    """Add a folder's files and problems; `above`: the real paths of the folders that it lies in, and its own."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        problems.append(f"{below or folder}: cannot be read ({error.strerror})")
        return
    for entry in entries:
        name = f"{below}{entry.name}"
        problem = _problem(entry, above)
        if entry.name.startswith("."):
            continue
        if problem:
            problems.append(f"{ascii(name) if problem == NO_UNICODE else name}: {problem}")
        elif entry.is_dir():
            _walk(Path(entry.path), f"{name}/", (*above, os.path.realpath(entry.path)), files, problems)
        else:
            files.append(name)


NO_UNICODE = "its name is no UTF-8"


def _problem(entry: "os.DirEntry[str]", above: tuple[str, ...]) -> str | None:
    """Why a file or folder cannot be copied and tracked; None where it can."""
    if any("\ud800" <= letter <= "\udfff" for letter in entry.name):
        return NO_UNICODE
    if entry.is_dir():
        return "a link to a folder that it lies in" if os.path.realpath(entry.path) in above else None
    if not entry.is_file():
        return "a link to nothing" if entry.is_symlink() and not os.path.exists(entry.path) else NO_FILE
    if elsewhere := leads_outside(Path(above[0]), entry.path):
        return f"a link that leaves the folder, to {elsewhere}"
    return None if os.access(entry.path, os.R_OK) else "cannot be read (Permission denied)"
