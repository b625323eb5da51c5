"""The step as the loop calls it: plain, or fast where the card allows it."""

from collections.abc import Callable
from typing import Protocol

import torch

from eridiff.acceleration.choose import choose_levers
from eridiff.core.progress import say
from eridiff.training.fast import FastStep
from eridiff.training.plain import PlainStep
from eridiff.training.run import Run
from eridiff.training.step import Example, TrainStep

Reading = Callable[[], dict[str, float]]  # waits for a step's row of the table of losses


class Step(Protocol):
    """All micro-batches of one optimizer step and the optimizer's move."""

    late: int  # rows that may be left unread, so that the device need not wait

    def __call__(self, examples: list[Example], step: int) -> Reading:
        """Do the step, or queue it."""


def prepare(train_step: TrainStep, run: Run, optimizer: torch.optim.Optimizer) -> Step:
    """The step that this run takes from here on."""
    levers = choose_levers(run.device, deterministic=run.params.deterministic)
    if levers is None:
        return PlainStep(train_step, run, optimizer)
    say(f"train: {levers.described()}")
    return FastStep(train_step, run, optimizer, levers)
