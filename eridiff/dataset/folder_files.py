"""The files of the folder of pictures: which there are, which of them can be read, and which are pictures."""

import os
import posixpath
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from eridiff.core.errors import DataError, listing
from eridiff.dataset.caption.files import is_caption_file, leads_out
from eridiff.dataset.image.first_bytes import first_bytes, is_picture, what_else
from eridiff.dataset.image.header import PICTURE_SUFFIXES

UNREAD_SUFFIXES = (
    ".heic", ".heif", ".jxl", ".jp2", ".psd", ".svg", ".tga", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".exr", ".hdr",
    ".ppm", ".pgm", ".pnm", ".qoi", ".ico", ".dds", ".pcx", ".xcf", ".kra", ".clip",
)  # fmt: skip
HIDDEN_FILES = 10_000  # of a hidden folder, looked through for pictures
NO_FILE = "no file: a pipe, a socket or a device"


@dataclass(frozen=True, kw_only=True)
class Ignored:
    """A file of the folder that is not used, and why. kind: of what belongs to another picture or program."""

    path: str
    reason: str
    kind: str = field(default="", compare=False)


def find_pictures(folder: Path, files: Iterable[str]) -> list[str]:
    """Those of the files that are pictures by their first bytes, or by their suffix, so that damage is named."""
    return [
        path
        for path in files
        if suffix_of(path) in PICTURE_SUFFIXES or (not is_caption_file(path) and is_picture(folder / path))
    ]


def walk(folder: Path) -> tuple[list[str], list[Ignored]]:
    """All files, relative and sorted, less hidden ones and DVC's own; links to folders are not followed.

    Hidden files are the programs' own, and stay unnamed but where they are pictures.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder. Make it and put pictures there, or run `dvc checkout` or `dvc pull`.")

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}). Check the folder's permissions.")

    files: list[str] = []
    unused: list[Ignored] = []
    for top, folders, names in os.walk(folder, onerror=refuse):
        here = Path(top).relative_to(folder)
        unused += _hidden(folder, here, folders, names)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if (Path(top) / name).is_symlink():
                link = (here / name).as_posix()
                unused.append(Ignored(path=link, reason="a link to a folder: copy the folder here"))
        files += [(here / name).as_posix() for name in names if name[0] != "." and not name.endswith(".dvc")]
    odd = [ascii(path) for path in files if not _is_unicode(path)]
    if odd:
        raise DataError(f"{folder}: names that are no UTF-8. Rename these files:{listing(odd)}")
    return sorted(files), unused


def _hidden(folder: Path, here: Path, folders: Iterable[str], names: Iterable[str]) -> Iterator[Ignored]:
    """What is hidden and yet looks like pictures, of one folder."""
    for name in sorted(names):
        path = (here / name).as_posix()
        if name.startswith("._") and suffix_of(name) in PICTURE_SUFFIXES:
            yield Ignored(path=path, reason=f"macOS's own data of {name[2:]}", kind="other program's file")
        elif name.startswith(".") and is_picture(folder / path):
            yield Ignored(path=path, reason="hidden, since its name starts with a dot: rename it to use it")
    for name in sorted(name for name in folders if name.startswith(".") and name not in (".git", ".dvc")):
        inside = islice((folder / here / name).rglob("*"), HIDDEN_FILES)
        if any(is_picture(path) for path in inside):
            reason = "pictures in a hidden folder, as file managers keep thumbnails: rename it to use them"
            yield Ignored(path=f"{(here / name).as_posix()}/", reason=reason, kind="other program's file")


def leads_outside(folder: Path, path: str | Path) -> str | None:
    """Where a link to text leads that leaves the folder; None for other links and files.

    A picture may be a link to one elsewhere, since it is used only if it is one, and DVC's own links lead to its cache.
    """
    return leads_out(Path(path), folder) if is_caption_file(str(path)) else None


def real_files(folder: Path, files: Iterable[str], ignored: list[Ignored], problems: list[str]) -> list[str]:
    """The files that can be read to an end, and whose words are of this folder; the others become ignored or problems.

    A pipe would wait for its writer, a device has no end, and text outside the folder is no caption of it.
    """
    real: list[str] = []
    wrong: list[str] = []
    for path in files:
        used = suffix_of(path) in PICTURE_SUFFIXES or is_caption_file(path)
        try:
            kind = os.stat(folder / path).st_mode
        except OSError:  # a link to nothing: who reads it says so
            real.append(path)
            continue
        if not stat.S_ISREG(kind) and used:
            wrong.append(f"{folder / path}: {NO_FILE}")
            continue
        if not stat.S_ISREG(kind):
            ignored.append(Ignored(path=path, reason=NO_FILE))
            continue
        if used and (target := leads_outside(folder, folder / path)):
            wrong.append(f"{folder / path}: a link that leaves the folder, to {target}")
            continue
        real.append(path)
    if wrong:
        problems.append(
            f"files of {folder} that are not read. Put files in their place, or remove them:{listing(wrong)}"
        )
    return real


def _is_unicode(path: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in path)


def why_unused(path: str, folder: Path) -> str | None:
    """Why a file that is no picture cannot hold captions either; None where it can."""
    suffix = suffix_of(path)
    if is_caption_file(path):
        return None
    if suffix in UNREAD_SUFFIXES:
        return f"{suffix} pictures are not read: save it as PNG or JPEG"
    told = what_else(first_bytes(folder / path))
    return told if "which is not read" in told else "neither a picture nor a caption"


def suffix_of(path: str) -> str:
    """A path's suffix in small letters, with its dot."""
    return posixpath.splitext(path)[1].lower()
