"""Regional compile: the repeated blocks of a denoiser, each kind once for every shape that it sees."""

from collections.abc import Collection

import torch
from torch import nn

from eridiff.models.precision import compile_fixed_shapes


def blocks_of(denoiser: nn.Module, kinds: Collection[str]) -> list[nn.Module]:
    """The modules of a denoiser whose classes are named in `kinds`, in order."""
    return [module for module in denoiser.modules() if type(module).__name__ in kinds]


def compile_blocks(denoiser: nn.Module, kinds: Collection[str], backend: str = "inductor") -> None:
    """Compile each block in place."""
    compile_fixed_shapes(blocks_of(denoiser, kinds), backend)


def use_channels_last(denoiser: nn.Module) -> bool:
    """Lay the weights of convolutions out as cuDNN's fastest kernels read them; whether there are any worth it."""
    if not any(isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) for module in denoiser.modules()):
        return False
    denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return True
