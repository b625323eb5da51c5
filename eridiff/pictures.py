"""The folder of pictures: which pictures it holds, how often each counts, and the caption of each.

Which caption is whose is said by eridiff/captionowners.py. Nothing is dropped in silence: what is neither a picture
nor a caption is returned by name, and what contradicts itself is an error that names all offenders.
"""

import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from eridiff.captionfiles import is_caption_file
from eridiff.captionowners import find_captions
from eridiff.errors import DataError, all_of, listing
from eridiff.filedigests import FileDigests
from eridiff.images import PICTURE_SUFFIXES, PictureHeader, read_header
from eridiff.progress import track

UNREAD_SUFFIXES = (".heic", ".heif", ".jxl", ".jp2", ".psd", ".svg", ".tga", ".dng", ".cr2", ".nef", ".arw")
MAX_REPEATS = 1000
HEADER = "header 1"  # what is remembered of a file; raised by hand when read_header says something else


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture. path: relative, posix; width, height: as stored; caption: raw, None without one."""

    path: str
    file_digest: str
    width: int
    height: int
    orientation: int
    repeats: int
    caption: str | None
    caption_source: str | None


@dataclass(frozen=True, kw_only=True)
class Ignored:
    """A file of the folder that is not used, and why."""

    path: str
    reason: str


def scan_pictures(folder: Path, digests: FileDigests) -> tuple[list[Picture], list[Ignored]]:
    """Read the folder: pictures and ignored files, each sorted by path.

    Raises: DataError for a missing or empty folder; for all unreadable pictures and captions and all contradictions.
    """
    files, ignored = _walk(folder)
    paths = [path for path in files if _suffix(path) in PICTURE_SUFFIXES]
    ignored += [Ignored(path=path, reason=reason) for path in files if (reason := _why_unused(path))]
    problems: list[str] = []  # of every kind: one run names them all
    captions, unused = find_captions(folder, files, paths, problems)
    ignored = sorted([*ignored, *(Ignored(path=path, reason=why) for path, why in unused)], key=lambda item: item.path)
    if not paths:
        raise DataError(_no_pictures(folder, ignored))
    repeats = _all_repeats(folder, paths, problems)
    # before any digest: a damaged file is named within seconds
    headers = _all_headers(folder, paths, digests, problems)
    if problems:
        raise DataError(all_of(problems))
    pictures = []
    for path in track(paths, what="digests", total=len(paths), unit="pictures"):
        header, caption = headers[path], captions.get(path)
        picture = Picture(
            path=path,
            file_digest=digests.sha256(folder / path),
            width=header.width,
            height=header.height,
            orientation=header.orientation,
            repeats=repeats[path],
            caption=caption.text if caption else None,
            caption_source=caption.source if caption else None,
        )
        pictures.append(picture)
    return pictures, ignored


def _suffix(path: str) -> str:
    return posixpath.splitext(path)[1].lower()


def _stem(path: str) -> str:
    return posixpath.splitext(path)[0]


def _walk(folder: Path) -> tuple[list[str], list[Ignored]]:
    """All files, relative and sorted, less hidden ones and DVC's own; links to folders are not followed."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder. Make it and put pictures there, or run `dvc checkout` or `dvc pull`.")

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}). Check the folder's permissions.")

    files: list[str] = []
    links: list[Ignored] = []
    for top, folders, names in os.walk(folder, onerror=refuse):
        here = Path(top).relative_to(folder)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if (Path(top) / name).is_symlink():
                link = (here / name).as_posix()
                links.append(Ignored(path=link, reason="a link to a folder: copy the folder here"))
        files += [(here / name).as_posix() for name in names if name[0] != "." and not name.endswith(".dvc")]
    odd = [ascii(path) for path in files if not _is_unicode(path)]
    if odd:
        raise DataError(f"{folder}: names that are no UTF-8. Rename these files:{listing(odd)}")
    return sorted(files), links


def _is_unicode(path: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in path)


def _why_unused(path: str) -> str | None:
    """Why a file is neither a picture nor able to hold captions; None where it is one of them."""
    suffix = _suffix(path)
    if suffix in PICTURE_SUFFIXES or is_caption_file(path):
        return None
    if suffix in UNREAD_SUFFIXES:
        return f"{suffix} pictures are not read: save it as PNG or JPEG"
    return "neither a picture nor a caption"


def _no_pictures(folder: Path, ignored: Sequence[Ignored]) -> str:
    found = [f"{item.path}: {item.reason}" for item in ignored]
    only = f" It holds only:{listing(found)}" if found else ""
    return f"{folder} holds no pictures ({', '.join(PICTURE_SUFFIXES)}): put some there.{only}"


def _all_headers(
    folder: Path, paths: Sequence[str], digests: FileDigests, problems: list[str]
) -> dict[str, PictureHeader]:
    """Each picture's header; that of an unchanged file is remembered."""
    headers, wrong = {}, []
    for path in track(paths, what="headers", total=len(paths), unit="pictures"):
        try:
            headers[path] = _header(folder / path, digests)
        except DataError as error:
            wrong.append(str(error))
    if wrong:
        problems.append(f"{_count(wrong, 'picture')} of {folder} cannot be used:{listing(wrong)}")
    return headers


def _header(path: Path, digests: FileDigests) -> PictureHeader:
    """Raises: DataError as read_header."""

    def read() -> str:
        header = read_header(path)
        return f"{header.width} {header.height} {header.orientation}"

    try:
        width, height, orientation = map(int, digests.remember(path, HEADER, read).split())
    except OSError:  # before it was opened: read_header says why
        return read_header(path)
    return PictureHeader(width=width, height=height, orientation=orientation)


def _all_repeats(folder: Path, paths: Sequence[str], problems: list[str]) -> dict[str, int]:
    """How often each picture counts: N where the nearest folder `N_name` says so, else 1."""
    of_folders, wrong = {}, []
    for name in sorted({posixpath.dirname(path) for path in paths}):
        inside = PurePosixPath(name)
        counting = [place for place in (inside, *inside.parents) if re.match("[0-9]+_", place.name)]
        of_folders[name] = int(counting[0].name.split("_")[0]) if counting else 1
        if not 1 <= of_folders[name] <= MAX_REPEATS:
            wrong.append(f"{folder / counting[0]}: {of_folders[name]} repeats")
    if wrong:
        problems.append(
            f"a folder `N_name` counts each of its pictures N times, and N must be 1 to {MAX_REPEATS}. "
            f"Rename these folders, such as `name_N`, or take them away:{listing(sorted(set(wrong)))}"
        )
    return {path: of_folders[posixpath.dirname(path)] for path in paths}


def _count(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"
