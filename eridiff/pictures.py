"""The folder of pictures: which pictures it holds, how often each counts, and the caption of each.

What a file is, is told by its first bytes; what belongs to another picture or program is left out by its name
(eridiff/companions.py). A caption comes from a file beside the picture (`cat.txt` or `cat.caption` for `cat.png`) or
from a row of `metadata.jsonl`, `.csv` or `.parquet` at or above it. Nothing is dropped in silence: what is neither a
picture nor a caption is returned by name, and what contradicts itself is an error that names all offenders.
"""

import posixpath
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from eridiff.captionfiles import METADATA_NAMES, read_metadata, read_text
from eridiff.companions import Companion, captions_of_left_out, find_companions
from eridiff.errors import DataError, all_of, listing
from eridiff.filedigests import FileDigests
from eridiff.images import PICTURE_SUFFIXES, PictureHeader, read_header, shows_nothing
from eridiff.picturefolder import (
    SIDECAR_SUFFIXES,
    find_pictures,
    real_files,
    walk,
    why_unused,
)
from eridiff.picturefolder import (
    Ignored as Ignored,
)
from eridiff.progress import track

MAX_REPEATS = 1000
HEADER = "header 2"  # what is remembered of a file; raised by hand when read_header says something else
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


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption as found. source: its file, with the line or row."""

    picture: str
    text: str
    source: str


def scan_pictures(folder: Path, digests: FileDigests) -> tuple[list[Picture], list[Ignored]]:
    """Read the folder: pictures and ignored files, each sorted by path.

    Raises: DataError for a missing or empty folder; for all unreadable pictures and captions and all contradictions.
    """
    problems: list[str] = []  # of every kind: one run names them all
    files, ignored = walk(folder)
    files = real_files(folder, files, ignored, problems)
    paths = find_pictures(folder, files)
    companions = find_companions(files, paths)
    files, paths = _leave_out(files, paths, companions, folder, digests, ignored)
    ignored += [
        Ignored(path=path, reason=reason)
        for path in sorted(set(files).difference(paths))
        if (reason := why_unused(path, folder))
    ]
    sidecars, orphans = _sidecars(folder, files, paths, problems)
    ignored = sorted([*ignored, *orphans], key=lambda item: item.path)
    if not paths:
        raise DataError(_no_pictures(folder, ignored))
    captions = _one_each([*sidecars, *_metadata_captions(folder, files, paths, problems, companions)], folder, problems)
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
    folder: Path,
    digests: FileDigests,
    ignored: list[Ignored],
) -> tuple[list[str], list[str]]:
    """The files and pictures that stay; those that belong to others, and their captions, become ignored."""
    for companion in companions.values():
        reason = companion.reason
        if companion.kind == "copy" and companion.owner:
            one, other = folder / companion.path, folder / companion.owner
            if _are_equal(one, other, digests):
                reason = f"a copy of {companion.owner}, equal to the byte"
            else:
                reason += " (its bytes differ)"
        ignored.append(Ignored(path=companion.path, reason=reason, kind=companion.kind))
    captions = captions_of_left_out(files, paths, companions)
    ignored += [Ignored(path=path, reason=f"of {owner}, which is left out") for path, owner in captions.items()]
    gone = companions.keys() | captions.keys()
    return [path for path in files if path not in gone], [path for path in paths if path not in gone]


def _are_equal(one: Path, other: Path, digests: FileDigests) -> bool:
    try:
        return one.stat().st_size == other.stat().st_size and digests.sha256(one) == digests.sha256(other)
    except OSError:
        return False


def _suffix(path: str) -> str:
    return posixpath.splitext(path)[1].lower()


def _stem(path: str) -> str:
    return posixpath.splitext(path)[0]


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


def _one_each(captions: Iterable[Caption], folder: Path, problems: list[str]) -> dict[str, Caption]:
    """Picture -> its only caption."""
    by_picture: dict[str, list[Caption]] = {}
    for caption in captions:
        by_picture.setdefault(caption.picture, []).append(caption)
    twice = [
        f"{folder / path}: {' and '.join(sorted(caption.source for caption in found))}"
        for path, found in sorted(by_picture.items())
        if len(found) > 1
    ]
    if twice:
        problems.append(f"pictures with more than one caption. Keep one source for each:{listing(twice)}")
    return {path: found[0] for path, found in by_picture.items()}


def _sidecars(
    folder: Path, files: Sequence[str], paths: Sequence[str], problems: list[str]
) -> tuple[list[Caption], list[Ignored]]:
    """Captions that stand in files beside their picture, and such files without a picture."""
    by_stem: dict[str, list[str]] = {}
    for path in paths:
        by_stem.setdefault(_stem(path), []).append(path)
    nearly = {name.lower(): path for path in paths for name in (_stem(path), path)}  # cat.jpg.txt, and Cat.txt
    captions, orphans, shared, unread = [], [], [], []
    for path in [path for path in files if _suffix(path) in SIDECAR_SUFFIXES]:
        owners = by_stem.get(_stem(path), [])
        if not owners:
            near = nearly.get(_stem(path).lower())
            hint = f": rename it to {_stem(near)}{_suffix(path)} to give it to {near}" if near else ""
            orphans.append(Ignored(path=path, reason=f"a caption file without a picture of its name{hint}"))
        elif len(owners) > 1:
            shared.append(f"{folder / path}: {' and '.join(owners)}")
        else:
            try:
                captions.append(Caption(picture=owners[0], text=read_text(folder / path), source=path))
            except DataError as error:
                unread.append(str(error))
    if shared:
        problems.append(f"pictures of one name that share a caption file. Rename all but one:{listing(shared)}")
    if unread:
        problems.append(f"{_count(unread, 'caption file')} of {folder} cannot be read:{listing(unread)}")
    return captions, orphans


def _metadata_captions(
    folder: Path, files: Sequence[str], paths: Sequence[str], problems: list[str], left_out: Collection[str]
) -> list[Caption]:
    """Captions that stand in metadata files; a row's file_name is relative to the folder of its file."""
    known, captions = set(paths), []
    unread: list[str] = []
    missing: list[str] = []
    for path in [path for path in files if posixpath.basename(path) in METADATA_NAMES]:
        try:
            rows, wrong = read_metadata(folder / path)
        except DataError as error:
            unread.append(str(error))
            continue
        unread += [f"{folder / path}{problem}" for problem in wrong]
        for row in rows:
            picture = posixpath.normpath(posixpath.join(posixpath.dirname(path), row.file_name))
            if picture in left_out:
                continue
            if picture not in known:
                missing.append(f"{folder / path}{row.place}: {row.file_name!r}")
            elif row.text is not None:
                captions.append(Caption(picture=picture, text=row.text, source=f"{path}{row.place}"))
    if unread:
        problems.append(f"captions that cannot be read. Mend these:{listing(unread)}")
    if missing:
        problems.append(
            "captions of pictures that do not exist (file_name is relative to the folder of the metadata "
            f"file). Add the pictures, or remove these rows:{listing(missing)}"
        )
    return captions


def _count(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"
