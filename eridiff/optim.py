"""Optimizers, the learning rate by step, and the moving average of the adapters."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from eridiff.config import MAX_STEPS, Section

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class OptimParams(Section):
    """How the adapters are moved."""

    name: Literal["adamw", "adamw8bit"] = "adamw"
    """AdamW; or bitsandbytes' AdamW with 8-bit moments (other numbers, less memory)."""
    lr: Annotated[float, Field(gt=0, le=100)] = 1e-4
    """Peak learning rate."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay of the two moments."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 0.01
    """Decoupled weight decay."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant (more steps can be added later), or a cosine to zero."""
    warmup_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 0
    """Steps over which the learning rate rises linearly."""
    max_grad_norm: Annotated[float, Field(gt=0, le=1e12)] = 1.0
    """Gradients are scaled down to this norm over all adapters."""


def learning_rate(params: OptimParams, step: int, steps: int) -> float:
    """The learning rate of a step (from 1), closed form, so that a resumed run needs no history."""
    if step <= params.warmup_steps:
        return params.lr * step / params.warmup_steps
    if params.schedule == "constant":
        return params.lr
    progress = (step - 1 - params.warmup_steps) / max(1, steps - params.warmup_steps)
    return params.lr * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(params: OptimParams, tensors: "Iterable[Tensor]") -> "torch.optim.Optimizer":
    """The optimizer by name over the adapters' tensors."""
    import torch

    common: dict[str, Any] = {"lr": params.lr, "betas": params.betas, "eps": params.eps}
    if params.name == "adamw8bit":
        import bitsandbytes as bnb

        optimizer: torch.optim.Optimizer = bnb.optim.AdamW8bit(tensors, weight_decay=params.weight_decay, **common)
        return optimizer
    return torch.optim.AdamW(tensors, weight_decay=params.weight_decay, foreach=True, **common)


class MovingAverage:
    """Exponential moving average of tensors, fp32: average <- decay average + (1 - decay) tensor."""

    def __init__(self, tensors: "Mapping[str, Tensor]", decay: float) -> None:
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def update(self, tensors: "Mapping[str, Tensor]") -> None:
        """Take one step's tensors in."""
        for name, average in self.tensors.items():
            average.lerp_(tensors[name].detach(), 1 - self.decay)
