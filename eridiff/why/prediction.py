"""What the next `dvc repro` would do, as data, as JSON and as text."""

import json
import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

RUNS, MAY_RUN, RESTORED, UP_TO_DATE = "runs", "may run", "restored", "-"
MAX_REASONS = 4
MAX_LINES = 20
MAX_NAMES = 3  # samples with one and the same reason
MAX_TOUCHED = 5
MAX_LETTERS = 80


@dataclass(kw_only=True)
class StagePlan:
    """What happens to one stage."""

    state: str  # RUNS, MAY_RUN, RESTORED or UP_TO_DATE
    reasons: list[str] = field(default_factory=list)
    encoded: int | None = None  # of the caching stages, when they run
    reused: int | None = None


@dataclass(kw_only=True)
class SamplePlan:
    """One sample that would be encoded, and why its key is new. changes: part of the key -> [before, now]."""

    stage: str
    name: str  # picture or caption
    reason: str
    changes: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(kw_only=True)
class EncoderPlan:
    """An encoder whose numbers are others with the libraries of now, which DVC does not see.

    command: starts the stage; None where it runs anyway. Counts: of the run that it starts.
    """

    stage: str
    message: str
    command: str | None = None
    encoded: int | None = None
    reused: int | None = None


@dataclass(kw_only=True)
class HiddenEdit:
    """A file whose bytes changed while name, size, time and inode did not; command: makes DVC read it again."""

    path: str
    command: str


@dataclass(kw_only=True)
class Prediction:
    """The next `dvc repro`; with hidden edits, the one after their commands."""

    stages: dict[str, StagePlan] = field(default_factory=dict)
    samples: list[SamplePlan] = field(default_factory=list)
    encoders: list[EncoderPlan] = field(default_factory=list)
    hidden: list[HiddenEdit] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what cannot be said here, and what was done
    error: str | None = None  # what the check stage would say

    def to_json(self) -> str:
        """The prediction as JSON, in ASCII: names that are no UTF-8 and what a terminal obeys are escapes."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).replace("\x7f", "\\u007f")


def shorten(text: str) -> str:
    """The start of a long caption."""
    return text if len(text) <= MAX_LETTERS else text[:MAX_LETTERS] + "..."


def touch_command(paths: Iterable[str]) -> str:
    """The command that gives files a new time, so that DVC reads them again."""
    return "touch " + " ".join(shlex.quote(path) for path in paths)


def render(prediction: Prediction) -> list[str]:
    """The prediction as lines: one a stage, its reasons, the samples to encode, what DVC does not see."""
    lines = [f"error: {prediction.error}"] if prediction.error else []
    for name, plan in prediction.stages.items():
        counts = "" if plan.encoded is None else f"{plan.encoded} to encode, {plan.reused} reused; "
        lines.append(f"{name:9} {plan.state:9} {counts}{_shorten(plan.reasons)}".rstrip().removesuffix(";"))
    lines += _shorten_lines(_sample_lines(prediction.samples))
    if prediction.hidden:
        lines += _shorten_lines([f"  {edit.path}: edited, but DVC does not see it" for edit in prediction.hidden])
        lines.append(f"  first run: {_touch_all(prediction.hidden)}")
    for encoder in prediction.encoders:
        lines.append(f"{encoder.stage}: {encoder.message}")
        if encoder.command:
            counts = f": {encoder.encoded} to encode, {encoder.reused} reused" if encoder.encoded is not None else ""
            lines.append(f"  DVC does not see this; to start the stage: {encoder.command}{counts}")
    lines += [f"note: {note}" for note in prediction.notes]
    if not any(plan.state in (RUNS, MAY_RUN) for plan in prediction.stages.values()):
        lines.append("nothing runs")
    return lines


def _sample_lines(samples: Iterable[SamplePlan]) -> list[str]:
    """A line a sample; those of one stage with the same reason share a line where they are many."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for sample in samples:
        name = repr(shorten(sample.name)) if sample.stage == "text" else sample.name
        grouped.setdefault((sample.stage, sample.reason), []).append(name)
    lines = []
    for (stage, reason), names in grouped.items():
        if len(names) <= MAX_NAMES:
            lines += [f"  {stage}: {name}: {reason}" for name in names]
        else:
            named = ", ".join(names[:MAX_NAMES])
            lines.append(f"  {stage}: {named} and {len(names) - MAX_NAMES} more: {reason}")
    return lines


def _touch_all(hidden: list[HiddenEdit]) -> str:
    """One command for all hidden edits, short where they are many: new times for a whole folder do no harm."""
    if len(hidden) <= MAX_TOUCHED or not all(edit.path.startswith("data/raw/") for edit in hidden):
        return touch_command(edit.path for edit in hidden)
    return "find data/raw -type f -exec touch {} +"


def _shorten_lines(lines: list[str]) -> list[str]:
    """The first lines, then how many more there are."""
    more = [f"  and {len(lines) - MAX_LINES} more"] if len(lines) > MAX_LINES else []
    return lines[:MAX_LINES] + more


def _shorten(reasons: list[str]) -> str:
    """The first few reasons in one line."""
    more = f"; and {len(reasons) - MAX_REASONS} more" if len(reasons) > MAX_REASONS else ""
    return "; ".join(reasons[:MAX_REASONS]) + more
