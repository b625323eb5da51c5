"""What a person must know of a folder's pictures, in lines: what was left out, converted, or shows nothing."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from eridiff.core.errors import MAX_NAMED
from eridiff.core.printable import printable
from eridiff.dataset.folder_files import Ignored
from eridiff.dataset.pictures import Picture


def notes(pictures: Sequence[Picture], ignored: Iterable[Ignored]) -> list[str]:
    """Lines for the stage: how many files were left out as which kind, and each picture that is not as it seems.

    The files that were left out are named one by one by who reports all that is ignored.
    """
    kinds = Counter(item.kind for item in ignored if item.kind)
    lines = []
    if kinds:
        counts = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
        lines.append(f"left out by name: {kinds.total()} that belong to another picture or program: {counts}")
    lines += _by_words("colour", {picture.path: picture.colour for picture in pictures if picture.colour})
    lines += _by_words("nothing to see", blank_of(pictures))
    return [printable(line) for line in lines]


def blank_of(pictures: Iterable[Picture]) -> dict[str, str]:
    """Pictures that show nothing, by path."""
    return {picture.path: picture.blank for picture in sorted(pictures, key=lambda one: one.path) if picture.blank}


def image_facts(pictures: Iterable[Picture]) -> dict[str, Any]:
    """What images.parquet says beside its rows: nothing where every picture shows something."""
    blank = blank_of(pictures)
    return {"blank": blank} if blank else {}


def _by_words(title: str, words: Mapping[str, str]) -> Iterator[str]:
    """One line for each thing that is said: how many pictures it is said of, and which."""
    paths: dict[str, list[str]] = {}
    for path, said in sorted(words.items()):
        paths.setdefault(said, []).append(path)
    for said, named in sorted(paths.items()):
        more = f" and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
        count = f"{len(named)} picture{'' if len(named) == 1 else 's'}"
        yield f"{title}: {count} {said}: {', '.join(named[:MAX_NAMED])}{more}"
