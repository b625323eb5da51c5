"""What each test costs, in wall and CPU seconds, over several runs of pytest: the list at the end of `.ci/run`.

Where ERIDIFF_COSTS names a file, each test adds a line to it; `python -m tests.costs FILE` prints the slowest twenty
and the sums. CPU seconds are those of the test, of its processes that have ended, and of the process that end-to-end
tests start stages from: they are the same on a busy machine.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e import prefork

SLOWEST = 20
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One test with its fixtures."""

    test: str
    wall: float
    cpu: float


def cpu_seconds() -> float:
    """Of this process, of its children that have ended, and of the server of end-to-end tests, if it runs."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    served = prefork.started()
    return sum(each.ru_utime + each.ru_stime for each in used) + (0.0 if served is None else _of_process(served))


def _of_process(pid: int) -> float:
    """CPU seconds of a process that runs and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15])) / TICKS


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Measure a test, its set-up and its tear-down."""
    path = os.environ.get("ERIDIFF_COSTS")
    if path is None:
        return (yield)
    wall, cpu = time.monotonic(), cpu_seconds()
    result = yield
    cost = {"test": item.nodeid, "wall": time.monotonic() - wall, "cpu": cpu_seconds() - cpu}
    with open(path, "a", encoding="utf-8") as file:  # one short write: the workers of xdist share the file
        file.write(json.dumps(cost) + "\n")
    return result


def table(costs: list[Cost]) -> str:
    """The slowest tests and the sums of all."""
    slowest = sorted(costs, key=lambda cost: cost.wall, reverse=True)[:SLOWEST]
    rows = [f"{'wall s':>8}{'CPU s':>8}  test"]
    rows += [f"{cost.wall:8.1f}{cost.cpu:8.1f}  {cost.test}" for cost in slowest]
    wall, cpu = sum(cost.wall for cost in costs), sum(cost.cpu for cost in costs)
    return "\n".join([*rows, f"{wall:8.0f}{cpu:8.0f}  sum of {len(costs)} tests"])


def main() -> None:
    """Print the table of a file."""
    lines = Path(sys.argv[1]).read_text("utf-8").splitlines()
    print(table([Cost(**json.loads(line)) for line in lines]))


if __name__ == "__main__":
    main()
