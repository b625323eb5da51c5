"""The plain path: forward and backward pass, clip and optimizer, one after the other, bit for bit as written."""

import torch
from torch import Tensor, nn

from eridiff.core.errors import TrainError
from eridiff.core.progress import say
from eridiff.training.loss_scale import unscale
from eridiff.training.optim import learning_rate, set_rate
from eridiff.training.run import Run
from eridiff.training.step import Example, Reading, TrainStep, add_gradients


class PlainStep:
    """All micro-batches of one step and the optimizer's move. Each number is there when a call returns."""

    late = 0

    def __init__(self, train_step: TrainStep, run: Run, optimizer: torch.optim.Optimizer) -> None:
        self.train_step, self.run, self.optimizer = train_step, run, optimizer

    def __call__(self, examples: list[Example], step: int) -> Reading:
        """Move the adapters; returns what reads the step's row of the loss table."""
        run, optimizer = self.run, self.optimizer
        params = run.params
        while (loss := self._accumulate(examples, step)) is None or not unscaled(run, loss):
            optimizer.zero_grad(set_to_none=True)  # of the step before memory, or the range of fp16, ran out
            if loss is None:
                keep_less(run, step)
            else:
                halve_scale(run, step)
        norm = nn.utils.clip_grad_norm_(list(run.adapters.values()), params.optimizer.max_grad_norm)
        rate = learning_rate(params.optimizer, step, params.steps)
        set_rate(optimizer, rate)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        row = table_row(run, loss.item(), norm.item(), rate)
        return lambda: row

    def _accumulate(self, examples: list[Example], step: int) -> Tensor | None:
        """Add a step's gradients up; its loss, or None where memory ran out and a next level is left."""
        run = self.run
        loss = torch.zeros((), device=run.device)
        try:
            for example in examples:
                here = example.to(run.device)
                with run.kept.step():
                    loss += add_gradients(run, self.train_step(run, here.batch, here.draws))
        except torch.OutOfMemoryError as error:
            if run.can_keep_less:
                return None
            raise too_little_memory(run, step, error) from None
        return loss


def table_row(run: Run, loss: float, norm: float, rate: float) -> dict[str, float]:
    """A step's row of the table of losses."""
    scale = {"loss_scale": run.loss_scale} if run.params.precision == "fp16" else {}
    return {"loss": loss, "grad_norm": norm, "lr": rate, **scale}


def too_little_memory(run: Run, step: int, error: Exception) -> TrainError:
    """What is said where no level of memory is left."""
    return TrainError(
        f"step {step}: {run.device} has too little memory ({str(error).splitlines()[0]}). Nothing of this step is "
        "kept. Ways out: no `activation_checkpointing` in local.yaml, or `offload`; in params.yaml a smaller "
        "train.batch_size with more train.accumulation, train.quantise, a lower buckets.resolution."
    )


def unscaled(run: Run, loss: Tensor) -> bool:
    """Divide gradients by the loss's scale; False where they alone overflowed, so that a smaller scale may do."""
    if run.params.precision != "fp16":
        return True
    return unscale(run.adapters.values(), run.loss_scale) or not bool(loss.isfinite())


def halve_scale(run: Run, step: int) -> None:
    """Go on with half the scale of the loss: gradients overflowed."""
    run.loss_scale /= 2
    if run.loss_scale < 1:
        raise TrainError(f"step {step}: gradients overflow fp16 at any scale. Take train.precision bf16 or fp32.")
    say(f"train: step {step}: gradients overflow fp16; again with the loss scaled by {run.loss_scale:g}")


def keep_less(run: Run, step: int) -> None:
    """Go on with the next level of memory: exact, so it may begin at any step."""
    run.kept.fall()
    level = run.kept.described()
    say(f"train: {run.device} has too little memory at step {step}: activation checkpointing {level} from here on")
