"""One caption each picture, where several files hold one: the first kind of RANKS that has one counts."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from eridiff.core.errors import listing

RANKS = (
    "cat.txt, cat.caption or a metadata file",
    "cat.png.txt",
    "cat.tags",
    "captions/cat.txt",
    "cat.json",
    "a table",
    "any of these, of an equal copy",
)
FILE, FULL_NAME, TAGS, FOLDER, JSON, TABLE, COPY = range(len(RANKS))

Unused = tuple[str, str]  # a file, and why it is not used


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption as found. source: its file, with the line or row; rank: of RANKS, the lower counts."""

    picture: str
    text: str
    source: str
    rank: int = FILE


def one_each(captions: Iterable[Caption], folder: Path, problems: list[str]) -> tuple[dict[str, Caption], list[Unused]]:
    """Picture -> its caption, and the captions that another one goes before."""
    by_picture: dict[str, list[Caption]] = {}
    for caption in captions:
        by_picture.setdefault(caption.picture, []).append(caption)
    chosen: dict[str, Caption] = {}
    unused: list[Unused] = []
    twice: list[str] = []
    for path, found in sorted(by_picture.items()):
        files = [one for one in found if one.rank == FILE]
        spoken = [one for one in found if one.text.strip()] or found
        best = min(one.rank for one in spoken)
        first = [one for one in spoken if one.rank == best]
        if len(files) > 1 or len({one.text.strip() for one in first}) > 1:
            sources = sorted(one.source for one in (files if len(files) > 1 else first))
            twice.append(f"{folder / path}: {' and '.join(sources)}")
        chosen[path] = first[0]
        unused += [
            (one.source, f"not used: {path} has its caption from {first[0].source}")
            for one in found
            if one.text.strip() not in ("", first[0].text.strip())
        ]
    if twice:
        problems.append(f"pictures with more than one caption. Keep one source for each:{listing(twice)}")
    return chosen, unused
