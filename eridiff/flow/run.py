"""Stages run by DVC in supervised processes: one at a time in place, or all of them as one experiment."""

import json
import queue
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eridiff.core.errors import ConfigError
from eridiff.flow.nodes import Node
from eridiff.flow.outcomes import Outcome, announced, own_message, read_outcome, worth_showing
from eridiff.flow.supervise import STOPPED, Crew, Supervised

Log = Callable[[str], None]
STOPPED_AT = re.compile(r"stopped after step \d+ of \d+: ")  # a training's last words


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where commands run, with which environment, and what stops them."""

    crew: Crew
    folder: Path
    environment: Mapping[str, str]
    prefix: tuple[str, ...] = ()
    """Options of the supervisor."""
    keep: int = -1
    """The open lock that a command's supervisor keeps."""

    def start(self, *arguments: str) -> Supervised:
        """Start `dvc` with arguments."""
        command = [*self.prefix, sys.executable, "-m", "dvc", "--wait-for-lock", *arguments]
        return self.crew.start(command, self.folder, self.environment, keep=self.keep)


def read_status(place: Place) -> dict[str, Any]:
    """What `dvc status` calls changed.

    Raises: ConfigError with DVC's own message where it fails.
    """
    job = place.start("status", "--json")
    lines = list(job.lines())
    if job.wait():
        raise ConfigError(own_message(lines))
    found = next((line for line in reversed(lines) if line.startswith("{")), "{}")
    status: dict[str, Any] = json.loads(found)
    return status


def run_stage(place: Place, node: Node, seconds: float | None, log: Log) -> tuple[Outcome, list[str]]:
    """Run one stage in place, unless DVC finds nothing changed: what came of it, and what it printed."""
    job = place.start("repro", "--single-item", node.name)
    lines = []
    with job.limit(seconds):
        for line in job.lines():
            lines.append(line)
            if worth_showing(line):
                log(line)
        code = job.wait()
    return _outcome(job, code, lines, node.name, seconds), lines


def _outcome(job: Supervised, code: int, lines: list[str], name: str, seconds: float | None) -> Outcome:
    if job.timed_out:
        message = f"stage '{name}' was stopped: it ran longer than {seconds:g} s. What it kept is used by the next run."
        return Outcome(state="TimedOut", message=message)
    if code == STOPPED:
        raise InterruptedError(
            next((line for line in reversed(lines) if STOPPED_AT.match(line)), "the run was stopped")
        )
    return read_outcome(code, lines)


@dataclass
class Turn:
    """One stage's part of an experiment's output, as it comes."""

    name: str
    job: Supervised
    _lines: "queue.SimpleQueue[str | int]" = field(default_factory=queue.SimpleQueue)

    def put(self, line: str) -> None:
        """A line of this stage."""
        self._lines.put(line)

    def end(self, code: int) -> None:
        """The stage's turn is over: 0, or the exit code of the experiment that ended with it."""
        self._lines.put(code)

    def follow(self, seconds: float | None, log: Log) -> tuple[Outcome, list[str]]:
        """Read the stage's lines to its end: what came of it, and what it printed."""
        lines: list[str] = []
        with self.job.limit(seconds):
            while isinstance(item := self._lines.get(), str):
                lines.append(item)
                if worth_showing(item):
                    log(item)
        return _outcome(self.job, item, lines, self.name, seconds), lines


def run_experiment(
    place: Place, name: str, changes: Sequence[str], stop_at: str | None, prepared: Callable[[], None], log: Log
) -> Iterator[Turn]:
    """Run an experiment in a copy of the project; yields each stage's turn when it comes.

    prepared: called once the copy is made. Until then DVC moves the checkout's files about.

    Raises: ConfigError with DVC's message where it fails before any stage.
    """
    sets = [part for change in changes for part in ("--set-param", change)]
    job = place.start("exp", "run", "--temp", "--name", name, *sets, *([stop_at] if stop_at else []))
    turn: Turn | None = None
    before: list[str] = []
    code = STOPPED
    try:
        for line in job.lines():
            if line.startswith("Reproducing experiment"):
                prepared()
            if next_name := announced(line):
                if turn:
                    turn.end(0)
                turn = Turn(next_name, job)
                yield turn
            if turn:
                turn.put(line)
            elif not line.startswith("WARNING: No file hash info"):  # of every out, since the copy has none yet
                before.append(line)
                log(line)
        code = job.wait()
    finally:  # the run may be cancelled, and somebody waits for the turn's end
        if turn:
            turn.end(code)
    if turn is None and code == STOPPED:
        raise InterruptedError("the run was stopped")
    if turn is None and code:
        raise ConfigError(own_message(before))
