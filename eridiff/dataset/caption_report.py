"""What the stage `captions` did, in lines: pictures, rules and how often each fired, and all that is not used."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

from eridiff.core.printable import printable
from eridiff.dataset.caption.rules import RULES
from eridiff.dataset.caption.syntax import SYNTAX, left_over
from eridiff.dataset.captions import regularises
from eridiff.dataset.folder_files import Ignored
from eridiff.dataset.pictures import Picture
from eridiff.formats.tables import Row
from eridiff.params.captions import CaptionParams

A_REASON = 20  # files that are named for one reason; the others are counted


def report(pictures: Sequence[Picture], rows: Sequence[Row], ignored: Iterable[Ignored], params: CaptionParams) -> str:
    """The lines of the stage."""
    counts = Counter(rule for row in rows for rule in row["rules"])
    order = [*SYNTAX, *RULES, "trigger", "class_word"]
    fired = ", ".join(f"{rule} {counts[rule]}" for rule in order if counts[rule])
    lines = [f"captions: {len(pictures)} pictures; {fired or 'no rule changed anything'}"]
    folders = Counter(_repeat_folder(picture) for picture in pictures if picture.repeats > 1)
    lines += _first("repeats", [_repeated(*one, count) for one, count in sorted(folders.items())])
    bare = [picture.path for picture in pictures if not (picture.caption or "").strip()]
    lines += [f"without a caption of their own: {len(bare)} of them, such as {bare[0]}"] if bare else []
    lines += _unknown_syntax(rows, params)
    plain = sum(regularises(picture.path, params) for picture in pictures)
    lines += [f"regularisation: {plain} pictures without the trigger"] if plain else []
    copies: dict[str, list[str]] = {}
    for picture in pictures:
        copies.setdefault(picture.file_digest, []).append(picture.path)
    lines += _first("same picture", [_some(paths) for paths in copies.values() if len(paths) > 1])
    lines += _ignored(ignored)
    return "\n".join(printable(line) for line in lines)


def _first(what: str, found: Sequence[str]) -> list[str]:
    """The first lines of one kind, and how many more there are."""
    more = [f"{what}: {len(found) - A_REASON} more"] if len(found) > A_REASON else []
    return [*(f"{what}: {one}" for one in found[:A_REASON]), *more]


def _some(paths: Sequence[str]) -> str:
    """The first of many paths, and how many more there are."""
    return ", ".join(paths[:A_REASON]) + (f" and {len(paths) - A_REASON} more" if len(paths) > A_REASON else "")


def _repeated(folder: str, times: int, count: int) -> str:
    return f"{folder}/: {times} times each of {count} {'picture' if count == 1 else 'pictures'}"


def _repeat_folder(picture: Picture) -> tuple[str, int]:
    return PurePosixPath(picture.path).parent.as_posix(), picture.repeats


def _unknown_syntax(rows: Sequence[Row], params: CaptionParams) -> Iterator[str]:
    """Captions with what looks like another program's syntax after all rules."""
    found = []
    for row in rows:
        text = row["clean"].replace(params.trigger or "\0", "")
        left = left_over(text[len(params.prefix) : len(text) - len(params.suffix)])
        found += [(row["path"], left)] if left else []
    if found:
        (path, left), count = found[0], len(found)
        noun = "1 caption" if count == 1 else f"{count} captions"
        yield f"unknown syntax: {noun} with what no rule takes, trained as it stands, such as {path}: {left!r}"


def _ignored(ignored: Iterable[Ignored]) -> Iterator[str]:
    """A line each; of those of one kind, or with one reason (up to its colon), the first, and how many there are."""
    seen: Counter[str] = Counter()
    for item in ignored:
        reason = item.kind or item.reason.split(":")[0]
        seen[reason] += 1
        if seen[reason] <= A_REASON:
            yield f"ignored: {item.path}: {item.reason}"
    yield from (f"ignored: {count - A_REASON} more: {why}" for why, count in seen.items() if count > A_REASON)
