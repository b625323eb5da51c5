"""One side of one row, in a process of its own, which does what benchmarks/step.py tells it over a pipe.

Sides do not share a process: a mode of one (deterministic kernels, the attention that is allowed) would be the other's
too, and cuDNN plans attention's backward once a shape, so that one side's call would decide the other's gradients.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.eridiffstep import eridiff_step, params_of
from benchmarks.peerstep import PEERS
from benchmarks.randombase import random_base
from benchmarks.scriptstep import script_step
from benchmarks.steprow import ROWS, Row

GIB = 2**30
WARM_UP = 4
CUBE = 8192  # side of the matrices whose product tells the card's rate


class Side:
    """A step, the device, and what was seen of both."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.row: Row = ROWS[arguments.row]
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        self.ballast = self._take_away(self.row.gib)
        self.step: Callable[[], Tensor] = lambda: torch.zeros(())

    def _take_away(self, gib: float | None) -> Tensor | None:
        """Hold the memory that a card of `gib` has not."""
        if gib is None or self.device.type != "cuda":
            return None
        free, total = torch.cuda.mem_get_info()
        return torch.empty(max(0, free - int(gib * GIB) + (total - free)), dtype=torch.uint8, device=self.device)

    def build(self) -> dict[str, Any]:
        """Make the model and the step, run the first one; seconds of each."""
        start = time.monotonic()
        self.step = make_step(self.row, self.arguments, self.device)
        self.synchronize()
        built = time.monotonic()
        loss = float(self.step())
        self.synchronize()
        first = time.monotonic() - built
        return {"build s": built - start, "first s": first, "first loss": loss}

    def warm_up(self) -> dict[str, Any]:
        """A few steps that do not count, with no loss read between them; seconds of one of the later ones."""
        self.turn(2)
        seconds = self.turn(WARM_UP - 2)["seconds"]
        return {"step s": sum(seconds) / len(seconds)}

    def turn(self, steps: int) -> dict[str, Any]:
        """Run steps without waiting for the device between them; seconds of each on the device, and losses."""
        self.synchronize()
        start, losses, marks = time.monotonic(), [], [self.mark()]
        for _ in range(steps):
            losses.append(self.step().detach().clone())
            marks.append(self.mark())
        self.synchronize()
        wall = time.monotonic() - start
        seconds = [self.between(*pair) for pair in pairwise(marks)]
        return {"seconds": seconds, "wall s": wall, "losses": [float(loss) for loss in losses]}

    def memory(self) -> dict[str, Any]:
        """Most memory from the start on, without the ballast: a CUDA graph allocates while it is recorded."""
        if self.device.type != "cuda":
            return {"peak GiB": 0.0, "reserved GiB": 0.0}
        held = self.ballast.numel() if self.ballast is not None else 0
        return {
            "peak GiB": (torch.cuda.max_memory_allocated() - held) / GIB,
            "reserved GiB": (torch.cuda.max_memory_reserved() - held) / GIB,
        }

    def rate(self) -> dict[str, Any]:
        """Teraflops of a product of two large bf16 matrices."""
        cube, repeats = (CUBE, 20) if self.device.type == "cuda" else (256, 3)
        left, right = (torch.randn(cube, cube, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        for _ in range(3):
            left @ right
        before = self.mark()
        for _ in range(repeats):
            left @ right
        after = self.mark()
        self.synchronize()
        return {"TFLOP/s": repeats * 2 * cube**3 / self.between(before, after) / 1e12}

    def mark(self) -> Any:
        """A point in time: the device's, where it has a clock."""
        if self.device.type != "cuda":
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, before: Any, after: Any) -> float:
        """Seconds between two marks."""
        return float(before.elapsed_time(after) / 1000 if self.device.type == "cuda" else after - before)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def make_step(row: Row, arguments: argparse.Namespace, device: torch.device) -> Callable[[], Tensor]:
    """The side's step."""
    base = random_base(row.family, row.model, tiny=arguments.tiny)
    if arguments.side in PEERS:
        return PEERS[arguments.side](Path(arguments.checkout), base, row, device)
    if arguments.side == "script":
        return script_step(base, row.batch, row.targets, row.script_quantise, device)
    changes: dict[str, Any] = {
        "precision": base.precision,
        "batch_size": row.batch,
        "deterministic": arguments.side == "plain",
    }
    changes |= {"lora": {"rank": 16, "alpha": 16.0, "targets": row.targets}, **(row.options or {})}
    changes |= {"quantise": row.quantise} if row.quantise else {}
    is_larger = row.gib is not None and not row.quantise  # than the card, maybe: weights come to the CPU first
    place = torch.device("cpu") if is_larger else None
    return eridiff_step(base, params_of(changes), device, Path(arguments.store), place)


def machine(device: torch.device) -> dict[str, str]:
    """What the figures hold for."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    versions = {"torch": torch.__version__, "cudnn": str(torch.backends.cudnn.version())}
    return {"device": name, **versions, "cores": str(len(os.sched_getaffinity(0)))}


@contextmanager
def answers() -> Iterator[Callable[[Any], None]]:
    """A way to answer on standard output, where nothing else writes: prints go to standard error."""
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)

        def answer(record: Any) -> None:
            out.write(json.dumps(record) + "\n")
            out.flush()

        yield answer


def main() -> None:
    """Answer each line `NAME ARGUMENTS` with a line of JSON, until none is left."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--row", required=True, choices=ROWS)
    parser.add_argument("--side", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--store", required=True)
    parser.add_argument("--checkout", default="")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    with answers() as answer:
        side = Side(arguments)
        todo = {"build": side.build, "warm_up": side.warm_up, "turn": side.turn, "memory": side.memory}
        todo |= {"rate": side.rate}
        answer(machine(side.device))
        for line in sys.stdin:
            name, *numbers = line.split()
            try:
                answer(todo[name](*map(int, numbers)))
            except Exception as error:  # what fails is a note in the table: the other side still counts
                answer({"error": f"{type(error).__name__}: {error}".replace("\n", " ").replace("|", "/")[:400]})
                raise


if __name__ == "__main__":
    main()
