"""Progress of anything that takes more than two seconds: a bar in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from eridiff.core.printable import encodable, indented, printable

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 5.0


def say(message: str) -> None:
    """Print one line at once, also where the output is a pipe; further lines of it never begin at the margin.

    All that eridiff prints goes through here, `warn` and `errors.report`: a test looks for other ways out.
    """
    print(encodable(indented(message), sys.stdout), flush=True)


def warn(message: str) -> None:
    """Print one line of warning at once, apart from what a command answers."""
    print(encodable(f"warning: {indented(message)}", sys.stderr), file=sys.stderr, flush=True)


def track(items: Iterable[Item], *, what: str, total: int, unit: str = "it") -> Iterator[Item]:
    """Yield the items and show how many are done, the rate, and the time left."""
    if sys.stderr.isatty():
        yield from _bar(items, what=what, total=total, unit=unit)
    else:
        yield from _lines(items, what=what, total=total, unit=unit)


def _bar(items: Iterable[Item], *, what: str, total: int, unit: str) -> Iterator[Item]:
    from tqdm import tqdm

    yield from tqdm(items, desc=printable(what), total=total, unit=unit, dynamic_ncols=True, leave=False)


def _lines(items: Iterable[Item], *, what: str, total: int, unit: str) -> Iterator[Item]:
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            rate = done / (now - start)
            say(f"{what}: {done}/{total}, {rate:.2f} {unit}/s, {(total - done) / rate:.0f} s left")
            last = now
