"""`make repro`: `dvc repro`, with DVC's files mended before it and nothing of it left running after it.

`python -m eridiff.reproduce ARGUMENTS...` in a project's folder. Where a stage was stopped, what it says of the next
run is printed last, after DVC's own lines. Killed, by SIGKILL too, it takes DVC and the stage with it.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from eridiff.core.errors import run_main
from eridiff.core.progress import warn
from eridiff.core.stopping import SIGNALS, STOPPED_WORDS, end_with_make, last_words
from eridiff.dataset.unbounded import refuse_unbounded
from eridiff.dvc.before_versions import refuse_early
from eridiff.dvc.repair import mend
from eridiff.flow.supervise import STEPS, adopt_orphans, end_descendants, run_guarded, send_descendants

AGAIN_SECONDS = 2.0  # so much later a second signal is no double of the first


def reproduce(arguments: Sequence[str]) -> int:
    """Run `dvc repro`; its exit code, 128 + N where signal N ended it, 0 where make is interrupted in its place.

    Raises: ConfigError, DataError for what DVC would read without end, and for a dvc.lock of before versions.
    """
    end_with_make()
    refuse_unbounded(Path())
    for line in mend(Path()):
        warn(line)
    refuse_early(Path())
    adopt_orphans()
    # Of a script's `&`: a terminal's Ctrl-C is not meant for it. What it starts hears one, in a group of its own.
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    with last_words() as words, _passed_on() as asked:
        command = [sys.executable, "-m", "dvc", "repro", *arguments]
        group = 0 if ignored else None
        code = run_guarded(command, {**os.environ, **words.environment}, group=group)
        end_descendants(STEPS[1:] if asked() else STEPS)  # one interrupt is enough
        if words.say(STOPPED_WORDS if asked() and code else ""):
            return 0
    return 128 + (asked() or 0) if asked() else code if code >= 0 else 128 - code


@contextmanager
def _passed_on() -> Iterator[Callable[[], int | None]]:
    """Pass signals on as Ctrl-C, which a stage puts in order and DVC lets it; yields which came first, if any.

    Ctrl-C itself reaches all of them without help. DVC would die of the others, and leave its stage running. Between
    two stages it may miss one: another one, later, ends it all the same, and the stage then has its time.
    """
    asked: list[int] = []
    since: list[float] = []

    def note(signum: int, frame: FrameType | None) -> None:
        asked.append(signum)  # first: make and its group may both send one, and the second comes in here
        since.append(time.monotonic())
        if signum == signal.SIGINT:
            return
        if len(asked) == 1:
            send_descendants(signal.SIGINT)
        elif since[-1] - since[0] > AGAIN_SECONDS:
            send_descendants(signal.SIGTERM)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, note)
        elif number == signal.SIGINT:  # children inherit what is ignored, but no handler
            signal.signal(number, lambda *_: None)
    try:
        yield lambda: asked[0] if asked else None
    finally:
        for number in SIGNALS:
            signal.signal(number, before[number])


def main() -> None:
    """Run it in the current folder."""
    sys.exit(reproduce(sys.argv[1:]))


if __name__ == "__main__":
    run_main(main)
