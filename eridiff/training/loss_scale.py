"""Loss scaling: gradients in fp16 vanish below 6e-8, so the loss is multiplied before they are made, and they divided.

A step whose gradients overflow is done again at half the scale, so none is lost; every draw is a function of the step.
The scale of a step is a function of the loss table, so a resumed training has the same. Doubling after 2000 steps and
the first scale are those of torch.amp.GradScaler, which skips steps that overflow.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

FIRST_SCALE = 2.0**16
STEPS_TO_DOUBLE = 2000


def next_scale(scales: Sequence[float]) -> float:
    """The scale that a step begins with. scales: of all the steps before it."""
    if not scales:
        return FIRST_SCALE
    recent = scales[-STEPS_TO_DOUBLE:]
    has_held = len(recent) == STEPS_TO_DOUBLE and min(recent) == max(recent)
    return recent[-1] * 2 if has_held else recent[-1]


def unscale(tensors: Iterable[Tensor], scale: float) -> bool:
    """Divide the tensors' gradients by the scale, in place; False where one of them is not finite."""
    gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
    torch._foreach_div_(gradients, scale)
    return bool(torch.stack(torch._foreach_norm(gradients, ord=float("inf"))).isfinite().all())
