"""Every random number of a training step, as a function of (seed, step, index in the global batch).

Drawn on the CPU, so the same run on another device, on two processes or resumed sees the same numbers.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator(seed: int, step: int, index: int, purpose: str) -> torch.Generator:
    """A generator for one sample of one step. `purpose` keeps noise, timestep and dropout independent."""
    digest = hashlib.sha256(f"{purpose}:{seed}:{step}:{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def normal(seed: int, step: int, indices: Sequence[int], shape: Sequence[int], purpose: str) -> Tensor:
    """Standard normal noise [B, *shape], fp32, one generator a sample."""
    return torch.stack([torch.randn(*shape, generator=generator(seed, step, i, purpose)) for i in indices])


def uniform(seed: int, step: int, indices: Sequence[int], purpose: str) -> Tensor:
    """Uniform draws in [0, 1), fp64 [B]: timesteps, dropout, choices."""
    draws = [torch.rand((), generator=generator(seed, step, i, purpose), dtype=torch.float64) for i in indices]
    return torch.stack(draws)
