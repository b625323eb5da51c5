"""Regional compile: the repeated blocks of a denoiser, each kind once for every shape that it sees."""

from collections.abc import Sequence

import torch
from torch import nn

from eridiff.acceleration.recompute import recompute, repeated_blocks
from eridiff.models.precision import compile_fixed_shapes


def compile_blocks(denoiser: nn.Module, classes: Sequence[str], backend: str = "inductor") -> None:
    """Compile each block in place."""
    blocks = repeated_blocks(denoiser, classes)
    recompute(blocks, 0)
    compile_fixed_shapes(blocks, backend)


def use_channels_last(denoiser: nn.Module) -> None:
    """Lay the weights of convolutions out as cuDNN's fastest kernels read them."""
    denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
