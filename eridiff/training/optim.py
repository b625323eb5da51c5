"""Optimizers, the learning rate by step, and the moving average of the adapters."""

import importlib
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from eridiff.params.train import OPTIMIZERS, OptimParams

if TYPE_CHECKING:
    import torch
    from torch import Tensor


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
    kind = OPTIMIZERS[params.name]
    make = getattr(importlib.import_module(kind.module), kind.name)
    common = {"lr": params.lr, "betas": params.betas, "eps": params.eps, "weight_decay": params.weight_decay}
    optimizer: torch.optim.Optimizer = make(tensors, **common, **kind.options)
    return optimizer


class MovingAverage:
    """Exponential moving average of tensors, fp32: average <- decay average + (1 - decay) tensor."""

    def __init__(self, tensors: "Mapping[str, Tensor]", decay: float) -> None:
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def update(self, tensors: "Mapping[str, Tensor]") -> None:
        """Take one step's tensors in."""
        for name, average in self.tensors.items():
            average.lerp_(tensors[name].detach(), 1 - self.decay)
