"""The folder of pictures: which pictures it holds, how often each counts, and the caption of each.

What a file is, is told by its first bytes; what belongs to another picture or program is left out by its name
(eridiff/dataset/companions.py); which caption is whose is said by eridiff/dataset/caption/owners.py. Nothing is dropped
in silence: what is neither a picture nor a caption is returned by name, and what contradicts itself is an error that
names all of it.
"""

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from eridiff.core.errors import DataError, all_of, listing
from eridiff.core.progress import track
from eridiff.dataset.caption.owners import find_captions
from eridiff.dataset.caption.precedence import Caption
from eridiff.dataset.companions import Companion, captions_of_left_out, find_companions
from eridiff.dataset.folder_files import Ignored as Ignored
from eridiff.dataset.folder_files import find_pictures, real_files, walk, why_unused
from eridiff.dataset.image.decode import shows_nothing
from eridiff.dataset.image.header import PICTURE_SUFFIXES, PictureHeader, read_header
from eridiff.machine.filedigests import FileDigests

MAX_REPEATS = 1000
HEADER = "header 2"  # what is remembered of a file; raised by hand when read_header says something else
INPUT = "what {} was made from, or its mask, as a table says: give it a caption if it is a picture of its own"
BLANK = "blank 1"  # the same of shows_nothing


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture. path: relative, posix; width, height: as stored; caption: raw, None without one.

    colour: what becomes of its colours, where they are not sRGB's; blank: why it shows nothing, where it does not.
    """

    path: str
    file_digest: str
    width: int
    height: int
    orientation: int
    repeats: int
    caption: str | None
    caption_source: str | None
    colour: str = field(default="", compare=False)
    blank: str = field(default="", compare=False)


def scan_pictures(folder: Path, digests: FileDigests) -> tuple[list[Picture], list[Ignored]]:
    """Read the folder: pictures and ignored files, each sorted by path.

    Raises: DataError for a missing or empty folder; for all unreadable pictures and captions and all contradictions.
    """
    problems: list[str] = []  # of every kind: one run names them all
    files, ignored = walk(folder)
    files = real_files(folder, files, ignored, problems)
    paths = find_pictures(folder, files)
    companions = find_companions(files, paths)
    equal = _equal_copies(companions, folder, digests)
    copies = {path: first for path in equal if (first := _first_of(path, equal)) not in companions}
    ignored += [_belonging(companion, equal) for companion in companions.values()]
    files, paths = _leave_out(files, paths, companions, copies, ignored)
    ignored += [
        Ignored(path=path, reason=reason)
        for path in sorted(set(files).difference(paths))
        if (reason := why_unused(path, folder))
    ]
    captions, unused, inputs = find_captions(folder, files, paths, problems, companions, copies)
    paths = [path for path in paths if path not in inputs]
    ignored += [
        Ignored(path=path, reason=INPUT.format(owner), kind="control picture") for path, owner in inputs.items()
    ]
    ignored = sorted([*ignored, *(Ignored(path=path, reason=why) for path, why in unused)], key=lambda item: item.path)
    if not paths:
        raise DataError(_no_pictures(folder, ignored))
    repeats = _all_repeats(folder, paths, problems)
    # before any digest: a damaged file is named within seconds
    headers = _all_headers(folder, paths, digests, problems)
    if problems:
        raise DataError(all_of(problems))
    pictures = [
        _picture(folder, path, headers[path], captions.get(path), repeats[path], digests)
        for path in track(paths, what="digests", total=len(paths), unit="pictures")
    ]
    return pictures, ignored


def _picture(
    folder: Path, path: str, header: PictureHeader, caption: Caption | None, repeats: int, digests: FileDigests
) -> Picture:
    """All about one picture; only one whose header leaves a doubt is decoded, and that is remembered."""
    look = partial(shows_nothing, folder / path)
    return Picture(
        path=path,
        file_digest=digests.sha256(folder / path),
        width=header.width,
        height=header.height,
        orientation=header.orientation,
        repeats=repeats,
        caption=caption.text if caption else None,
        caption_source=caption.source if caption else None,
        colour=header.colour,
        blank=digests.remember(folder / path, BLANK, look) if header.doubtful else "",
    )


def _leave_out(
    files: Sequence[str],
    paths: Sequence[str],
    companions: dict[str, Companion],
    copies: Mapping[str, str],
    ignored: list[Ignored],
) -> tuple[list[str], list[str]]:
    """The files and pictures that stay; those that belong to others, and their captions, become ignored.

    Captions of equal copies stay: they are their pictures' where these have none.
    """
    captions = captions_of_left_out(files, paths, companions)
    captions = {path: owner for path, owner in captions.items() if owner not in copies}
    for path, owner in captions.items():
        what = "folder" if owner.endswith("/") else "picture"
        ignored.append(Ignored(path=path, reason=f"left out with its {what}: {owner}"))
    gone = companions.keys() | captions.keys()
    return [path for path in files if path not in gone], [path for path in paths if path not in gone]


def _belonging(companion: Companion, equal: Mapping[str, str]) -> Ignored:
    """Why a companion is not used; of a copy with what its bytes say."""
    reason = companion.reason
    if companion.path in equal:
        reason = f"a copy of {companion.owner}, equal to the byte"
    elif companion.kind == "copy":
        reason += " (its bytes differ)"
    return Ignored(path=companion.path, reason=reason, kind=companion.kind)


def _equal_copies(companions: Mapping[str, Companion], folder: Path, digests: FileDigests) -> dict[str, str]:
    """Copy -> the picture that it is called after, where their bytes are equal."""
    called = ((one.path, one.owner) for one in companions.values() if one.kind == "copy")
    return {path: of for path, of in called if of is not None and _are_equal(folder / path, folder / of, digests)}


def _first_of(path: str, copies: Mapping[str, str]) -> str:
    """The picture at the end of copies of copies: an owner's name is shorter, so there is an end."""
    while path in copies:
        path = copies[path]
    return path


def _are_equal(one: Path, other: Path, digests: FileDigests) -> bool:
    try:
        return one.stat().st_size == other.stat().st_size and digests.sha256(one) == digests.sha256(other)
    except OSError:
        return False


def _suffix(path: str) -> str:
    return posixpath.splitext(path)[1].lower()


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
        return f"{header.width} {header.height} {header.orientation} {int(header.doubtful)} {header.colour}"

    try:
        *numbers, colour = digests.remember(path, HEADER, read).split(" ", 4)
    except OSError:  # before it was opened: read_header says why
        return read_header(path)
    width, height, orientation, doubtful = map(int, numbers)
    return PictureHeader(width=width, height=height, orientation=orientation, colour=colour, doubtful=bool(doubtful))


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
