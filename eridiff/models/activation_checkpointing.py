"""Checkpointing between the forward and the backward pass: exact ways to hold fewer of them on the device.

keep       all of them
selective  those of every other block, the others are computed again in the backward pass
recompute  none but the blocks' inputs
offload    those inputs too wait in the host's memory
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, get_args

import torch
from torch import Tensor, nn

from eridiff.machine.local import Checkpointing

LEVELS: tuple[Checkpointing, ...] = get_args(
    Checkpointing
)  # each takes less memory, and more time, than the one before


def checkpoint_activations(denoiser: nn.Module, level: Checkpointing) -> None:
    """Say which blocks of a denoiser of diffusers are computed again: more than before, never fewer."""
    model: Any = denoiser
    if level != "keep":
        model.enable_gradient_checkpointing(_every_other_block() if level == "selective" else None)


def _every_other_block() -> Callable[..., Any]:
    """A function of (block, its inputs) that computes every second of the blocks that it meets again."""
    again: dict[nn.Module, bool] = {}

    def run(block: nn.Module, *inputs: Any) -> Any:
        if again.setdefault(block, len(again) % 2 == 0):
            return torch.utils.checkpoint.checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    return run


def _empty(shape_and_dtype: tuple[torch.Size, torch.dtype]) -> Tensor:
    shape, dtype = shape_and_dtype
    return torch.empty(shape, dtype=dtype, device="meta")


def offload_activations(level: Checkpointing, device: torch.device) -> AbstractContextManager[object]:
    """Where a step's activations wait for the backward pass: on the device, or on the host."""
    if level != "offload":
        return nullcontext()
    if device.type == "meta":  # which cannot be copied from
        return torch.autograd.graph.saved_tensors_hooks(lambda t: (t.shape, t.dtype), _empty)
    return torch.autograd.graph.save_on_cpu(pin_memory=device.type == "cuda")
