"""Names of pictures as people and programs write them => the picture that is meant, where that is certain.

Certain is: exactly one picture has the name, at the first of these looks at it that finds any: as it stands; equal to
the eye (composed or decomposed accents, capitals, wide letters), `\\` for `/`, and without the picture's suffix; and
less the leading folders of a path from elsewhere.
"""

import difflib
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

CAPTION_FOLDERS = {"caption", "captions", "text", "texts", "txt", "txts", "tags"}
PICTURE_FOLDERS = {"image", "images", "img", "imgs", "photos", "pics", "pictures"}
MAX_GUESSED = 2_000  # pictures among which a name of other letters is looked for: each costs some microseconds

Names = Mapping[str, Sequence[str]]  # a name in some form => the pictures that have it


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures by the forms of their names."""

    paths: frozenset[str]
    stems: Names
    """By path less suffix, exactly."""
    seen: Names
    """By path, equal to the eye."""
    seen_stems: Names
    """By path less suffix, equal to the eye."""
    bare: Names
    """As seen_stems, without folders that are called after pictures or captions."""
    depth: int
    """Of the picture in the most folders: how many parts its path has."""
    last: Mapping[str, str]
    """By name or stem less all folders, equal to the eye: the first of them, to be suggested."""


def by_names(paths: Iterable[str]) -> Pictures:
    """An index of pictures, by their paths in the folder."""
    paths = list(paths)
    return Pictures(
        paths=frozenset(paths),
        stems=_grouped((stem(path), path) for path in paths),
        seen=_grouped((eye(path), path) for path in paths),
        seen_stems=_grouped((eye(stem(path)), path) for path in paths),
        bare=_grouped((bare(stem(path)), path) for path in paths),
        depth=max((path.count("/") + 1 for path in paths), default=0),
        last={form: path for path in sorted(paths, reverse=True) for form in _last(path)},
    )


def stem(path: str) -> str:
    """A path without its suffix."""
    return posixpath.splitext(path)[0]


def eye(name: str) -> str:
    """A name in the form that all names have which look like it."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def bare(name: str) -> str:
    """A path less suffix without folders of captions or of pictures: `images/a` and `captions/a` are equal."""
    *folders, last = eye(name).split("/")
    return "/".join([*(one for one in folders if one not in CAPTION_FOLDERS | PICTURE_FOLDERS), last])


def in_caption_folder(path: str) -> bool:
    """Whether a file lies in a folder that is called after captions."""
    return not CAPTION_FOLDERS.isdisjoint(eye(posixpath.dirname(path)).split("/"))


def match_rows(names: Sequence[str], folder: str, pictures: Pictures) -> list[str | None]:
    """The picture of each name of one table that lies in `folder`; None where no picture is certain.

    A picture that a name says exactly is no other's, and none is two names' that only look like it.
    """
    found: list[str | None] = []
    for name in names:
        exact = posixpath.normpath(posixpath.join(folder, name))
        found.append(exact if exact in pictures.paths else None)
    taken = set(found) - {None}
    every = [_parts(name) for name in names]
    shared = _shared(parts[:-1] for parts in every)
    left = {at: parts for at, parts in enumerate(every) if found[at] is None}
    guesses: dict[str, list[int]] = {}
    for at, parts in left.items():
        guess = _guess(parts, eye(folder), shared, pictures)
        if guess is not None and guess not in taken:
            guesses.setdefault(guess, []).append(at)
    for guess, places in guesses.items():
        if len({tuple(left[at]) for at in places}) == 1:  # the same name twice is for the caller to judge
            for at in places:
                found[at] = guess
    return found


def nearest(name: str, pictures: Pictures, *, guess: bool = True) -> str | None:
    """A picture whose name is like one that no picture has, for `did you mean`; guess: also one of other letters."""
    wanted = posixpath.basename(eye(name.replace("\\", "/")))
    same = pictures.last.get(wanted) or pictures.last.get(stem(wanted))
    if same or not guess or len(pictures.paths) > MAX_GUESSED or len(wanted) > 255:
        return same
    close = difflib.get_close_matches(wanted, pictures.last, n=1)
    return pictures.last[close[0]] if close else None


def _last(path: str) -> tuple[str, str]:
    last = posixpath.basename(eye(path))
    return last, stem(last)


def _parts(name: str) -> list[str]:
    """Folders and name of a path of any system, equal to the eye; none for one that climbs out of its folder."""
    parts = [
        part for part in eye(re.sub(r"^[A-Za-z]:", "", name).replace("\\", "/")).split("/") if part not in ("", ".")
    ]
    return [] if ".." in parts else parts


def _shared(folders: Iterable[list[str]]) -> int:
    """How many leading folders all paths share."""
    several = list(folders)
    first, last = (min(several), max(several)) if several else ([], [])
    return next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def _guess(parts: list[str], folder: str, shared: int, pictures: Pictures) -> str | None:
    """The only picture that a path may mean; its leading folders go where all paths of the table share them, or where
    a folder is left that fits."""
    for dropped in range(max(len(parts) - pictures.depth, 0), len(parts)):
        tail = "/".join(parts[dropped:])
        if dropped > shared and dropped == len(parts) - 1:
            return None
        for place in dict.fromkeys((posixpath.join(folder, tail), tail)):
            for index in (pictures.seen, pictures.seen_stems):
                if found := index.get(place):
                    return found[0] if len(found) == 1 else None
    return None


def _grouped(pairs: Iterable[tuple[str, str]]) -> Names:
    groups: dict[str, list[str]] = {}
    for name, path in pairs:
        groups.setdefault(name, []).append(path)
    return groups
