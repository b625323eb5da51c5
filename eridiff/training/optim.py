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


def make_optimizer(
    params: OptimParams, tensors: "Iterable[Tensor]", device: "torch.device | None" = None
) -> "torch.optim.Optimizer":
    """The optimizer by name over the adapters' tensors.

    device: a GPU on whose queue the optimizer moves them, without waiting, where it can; None: the plain way.
    """
    import torch

    kind = OPTIMIZERS[params.name]
    make = getattr(importlib.import_module(kind.module), kind.name)
    common = {"lr": params.lr, "betas": params.betas, "eps": params.eps, "weight_decay": params.weight_decay}
    options = {**kind.options, **(kind.on_queue if device else {})}
    if device and kind.on_queue:
        common["lr"] = torch.tensor(params.lr, device=device)  # so that a CUDA graph reads each step's rate
    optimizer: torch.optim.Optimizer = make(tensors, **common, **options)
    return optimizer


def set_rate(optimizer: "torch.optim.Optimizer", rate: float) -> None:
    """The learning rate of the next step; one on the device is written to, since a CUDA graph reads it there."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], float):
            group["lr"] = rate
        else:
            group["lr"].fill_(rate)


class MovingAverage:
    """Exponential moving average of tensors, fp32: average <- decay average + (1 - decay) tensor."""

    def __init__(self, tensors: "Mapping[str, Tensor]", decay: float) -> None:
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def update(self, tensors: "Mapping[str, Tensor]") -> None:
        """Take one step's tensors in."""
        import torch

        current = [tensors[name].detach() for name in self.tensors]
        torch._foreach_lerp_(list(self.tensors.values()), current, 1 - self.decay)
