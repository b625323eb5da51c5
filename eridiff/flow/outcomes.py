"""What came of a stage, read from the output of `dvc repro` and its exit code."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

# What DVC prints before a stage's own output, and instead of it.
ANNOUNCED = re.compile(
    r"(?:Running stage|Stage|Verifying data sources in stage:) '([^']+)'|'([^']+\.dvc)' didn't change, skipping$"
)
ADVICE = re.compile(
    r"(Generating|Updating) lock file |Use `dvc |Ran experiment|To (track|enable|apply|promote) |\t"
    r"|WARNING: The following untracked files were present in the experiment"
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a stage: Cached, Restored, Completed, Failed or TimedOut, and a sentence."""

    state: str
    message: str

    @property
    def well(self) -> bool:
        """Whether what reads its outs may run."""
        return self.state not in ("Failed", "TimedOut")


CACHED = Outcome(state="Cached", message="nothing that it depends on changed")


def announced(line: str) -> str | None:
    """The stage whose turn a line of DVC's output says it is."""
    match = ANNOUNCED.match(line)
    return match[1] or match[2] if match else None


def read_outcome(code: int, lines: Sequence[str]) -> Outcome:
    """What came of a stage, from DVC's exit code and the lines since its turn came."""
    if code:
        return Outcome(state="Failed", message=own_message(lines))
    first = next((line for line in lines if announced(line)), "")
    if first.endswith("didn't change, skipping"):
        return CACHED
    if "is cached - skipping run" in first:
        return Outcome(state="Restored", message="taken from the run-cache: it ran with these inputs before")
    ours = [line for line in lines if line and not _is_of_dvc(line)]
    return Outcome(state="Completed", message=ours[-1] if ours else "done")


def own_message(lines: Sequence[str]) -> str:
    """What a failed stage says itself (`error: ...` and the lines indented under it), else what DVC says."""
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if starts:
        block = [lines[starts[-1]].removeprefix("error: ")]
        for line in lines[starts[-1] + 1 :]:
            if not line.startswith("  "):
                break
            block.append(line.strip())
        return "\n".join(block)
    said = [line for line in lines if line]
    theirs = [line for line in said if not _is_of_dvc(line)]
    of_dvc = [line for line in said if line.startswith("ERROR: ")]
    parts = [*theirs[-1:], *of_dvc[-1:]]
    return "\n".join(parts) or "it failed without a word"


def worth_showing(line: str) -> bool:
    """Whether a line is more than DVC's advice on what to type next, or nothing."""
    return bool(line) and not ADVICE.match(line)


def _is_of_dvc(line: str) -> bool:
    starts = ("> ", "ERROR: ", "WARNING: ")
    return bool(announced(line) or ADVICE.match(line)) or line.startswith(starts) or "up to date." in line
