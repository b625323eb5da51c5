"""Regional compile: the repeated blocks of a denoiser, each kind once for every shape that it sees."""

import torch
from torch import nn

from eridiff.acceleration.levels import Kept
from eridiff.models.precision import compile_fixed_shapes


def compile_blocks(kept: Kept, backend: str = "inductor") -> None:
    """Compile each repeated block of a denoiser in place."""
    with kept.unwrapped():
        compile_fixed_shapes(kept.blocks, backend)


def use_channels_last(denoiser: nn.Module) -> None:
    """Lay the weights of convolutions out as cuDNN's fastest kernels read them."""
    denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
