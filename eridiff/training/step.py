"""The training step: noise, mix, predict, compare.

Legend: B batch, C H W channels and sides of latents. Every draw is a function of (seed, step, index).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eridiff.core.noise import normal, uniform
from eridiff.models.precision import DTYPES
from eridiff.training.data import Batch
from eridiff.training.objectives import elementwise_loss
from eridiff.training.run import Run


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random numbers of one micro-batch; None: of an option that is off."""

    posterior: Tensor  # [B, C, H, W] normal
    noise: Tensor  # [B, C, H, W] normal
    level: Tensor  # [B]: timesteps (int64) for ddpm, sigmas (fp32, 0..1) for flow
    offset: Tensor | None  # [B, C, 1, 1] normal
    perturbation: Tensor | None  # [B, C, H, W] normal

    def map(self, change: Callable[[Tensor], Tensor]) -> "Draws":
        """The same draws with every tensor changed."""
        own: dict[str, Any] = {
            name: tensor if tensor is None else change(tensor) for name, tensor in vars(self).items()
        }
        return Draws(**own)


@dataclass(frozen=True, kw_only=True)
class Example:
    """A micro-batch with its draws."""

    batch: Batch
    draws: Draws

    def map(self, change: Callable[[Tensor], Tensor]) -> "Example":
        """The same example with every tensor changed."""
        return Example(batch=self.batch.map(change), draws=self.draws.map(change))

    def to(self, device: torch.device) -> "Example":
        """The same example on a device; from pinned memory without waiting."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))


TrainStep = Callable[[Run, Batch, Draws], Tensor]
Reading = Callable[[], dict[str, float]]  # waits for a step's row of the table of losses


def draw(run: Run, batch: Batch, step: int) -> Draws:
    """Draw for a micro-batch, on the CPU, as a function of (seed, step, index of each sample)."""
    seed, indices, shape = run.params.seed, batch.indices, batch.mean.shape[1:]
    num_tokens = shape[1] * shape[2] // run.family.PATCH**2
    offset, perturbation = run.objective.takes_offset, run.objective.takes_perturbation
    return Draws(
        posterior=normal(seed, step, indices, shape, "posterior"),
        noise=normal(seed, step, indices, shape, "noise"),
        level=run.objective.draw_level(uniform(seed, step, indices, "level"), num_tokens),
        offset=normal(seed, step, indices, (shape[0], 1, 1), "offset") if offset else None,
        perturbation=normal(seed, step, indices, shape, "perturbation") if perturbation else None,
    )


def train_step(run: Run, batch: Batch, draws: Draws) -> Tensor:
    """The loss of one micro-batch, fp32, on the device of its tensors; nothing here waits for the device.

    The loss is the mean over C, H, W, then weighted, then the mean over the batch and the micro-batches.
    """
    params = run.params
    raw = batch.mean.float() + batch.std.float() * draws.posterior
    latents = (raw - run.shift_factor) * run.scaling_factor  # raw latents => training space
    mixed = run.objective.mix(latents, draws.noise, draws.level, draws.offset, draws.perturbation)

    dtype = DTYPES[params.precision]
    text = {name: tensor.to(dtype) for name, tensor in batch.text.items()}
    guidance = 1.0 if params.guidance is None else params.guidance
    noisy_latents = mixed.noisy_latents.to(dtype)
    model_pred = run.family.predict(run.denoiser, noisy_latents, draws.level, text, batch.sizes, guidance)

    loss_BCHW = elementwise_loss(params.loss, params.huber_delta, model_pred, mixed.target)
    return (loss_BCHW.mean(dim=(1, 2, 3)) * mixed.loss_weight).mean() / params.accumulation


def add_gradients(run: Run, loss: Tensor) -> Tensor:
    """Add the loss's gradients, times run.loss_scale, to the adapters'; returns the loss, detached."""
    (loss * run.loss_scale).backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def examples_of(run: Run) -> Callable[[Batch, int], Example]:
    """Give a batch its draws; pinned where the device is a GPU, so that it is copied there without waiting."""

    def complete(batch: Batch, step: int) -> Example:
        example = Example(batch=batch, draws=draw(run, batch, step))
        return example.map(torch.Tensor.pin_memory) if run.device.type == "cuda" else example

    return complete
