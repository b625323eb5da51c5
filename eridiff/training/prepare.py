"""The step as the loop calls it: plain, or fast where the card allows it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from eridiff.acceleration.attention import AttentionShape, keep_compiled_attention, recorded_shapes, use_attention
from eridiff.acceleration.attention_check import choose_attention
from eridiff.acceleration.choose import choose_levers
from eridiff.core.progress import say
from eridiff.training.data import TrainingSet
from eridiff.training.fast import FastStep
from eridiff.training.plain import PlainStep
from eridiff.training.run import Run
from eridiff.training.step import Example, Reading, TrainStep, examples_of


class Step(Protocol):
    """All micro-batches of one optimizer step and the optimizer's move."""

    late: int  # rows that may be left unread, so that the device need not wait

    def __call__(self, examples: list[Example], step: int) -> Reading:
        """Do the step, or queue it."""


@contextmanager
def prepare(train_step: TrainStep, run: Run, optimizer: torch.optim.Optimizer, data: TrainingSet) -> Iterator[Step]:
    """The step that this run takes, for as long as the context lasts.

    The fast one checks the attention kernel first, on the shapes of the data's buckets.
    """
    if not run.is_fast or run.store is None:
        yield PlainStep(train_step, run, optimizer)
        return
    levers = choose_levers(run.denoiser, run.device)
    attention = choose_attention(attention_shapes(train_step, run, data), run.device, run.store)
    keep_compiled_attention()
    run.levers = f"{levers.described()}, {attention.note}"
    say(f"train: {run.levers}")
    with use_attention(attention.kernel):
        yield FastStep(train_step, run, optimizer, levers)


def attention_shapes(train_step: TrainStep, run: Run, data: TrainingSet) -> set[AttentionShape]:
    """Shapes of attention in this training: of a forward pass for each bucket."""
    number_of = {sample.bucket: number for number, sample in enumerate(data.samples)}
    complete, found = examples_of(run), set[AttentionShape]()
    for number in number_of.values():
        example = complete(data.batch([number] * run.params.batch_size, 1, 0), 1).to(run.device)

        def work(example: Example = example) -> None:
            with torch.no_grad():
                train_step(run, example.batch, example.draws)

        found.update(recorded_shapes(work))
    return found
