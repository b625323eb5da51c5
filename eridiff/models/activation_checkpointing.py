"""Activation checkpointing: fewer activations on the device between forward and backward pass, with equal results.

none       all activations are kept
selective  those of every other block; the others are computed again in the backward pass
full       only the inputs of the blocks
offload    nothing: the inputs of the blocks wait in RAM
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
    """Set which blocks of a denoiser of diffusers are checkpointed: more than before, never fewer."""
    model: Any = denoiser
    if level != "none":
        model.enable_gradient_checkpointing(_every_other_block() if level == "selective" else None)


def _every_other_block() -> Callable[..., Any]:
    """A function of (block, its inputs) that checkpoints every second block that it is called with."""
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
    """A context in which saved activations go to RAM at level `offload`, and stay on the device otherwise."""
    if level != "offload":
        return nullcontext()
    if device.type == "meta":  # which cannot be copied from
        return torch.autograd.graph.saved_tensors_hooks(lambda t: (t.shape, t.dtype), _empty)
    return torch.autograd.graph.save_on_cpu(pin_memory=device.type == "cuda")
