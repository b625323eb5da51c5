"""What a training step keeps on the device: activations of all blocks or of fewer, and the weights of all or of fewer.

    none      activations and weights of all m repeated blocks
    n of m    n blocks keep their inputs alone and are computed again in the backward pass
    full      all are
    swap      and weights of some blocks wait in RAM
    offload   and the inputs of the blocks do

Each takes less memory, and more time, than the one before; numbers are the same.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from eridiff.acceleration.recompute import recompute, repeated_blocks
from eridiff.acceleration.swap import Swap
from eridiff.machine.local import Checkpointing

STEPS = 4  # out of memory, the next level recomputes, or swaps, a quarter of the blocks more


@dataclass(frozen=True, kw_only=True)
class Level:
    """How much of m blocks is kept on the device."""

    recomputed: int = 0  # blocks that are computed again in the backward pass
    swapped: int = 0  # blocks whose weights wait in RAM
    offload: bool = False  # whether what is kept for the backward pass waits in RAM

    def described(self, count: int) -> str:
        """In the words of local.yaml, of so many blocks."""
        words = f"{self.recomputed} of {count} blocks"
        if self.recomputed in (0, count):
            words = "full" if self.recomputed else "none"
        words = "offload" if self.offload else words
        return f"{words}, {self.swapped} of {count} blocks swapped" if self.swapped else words


def full(count: int) -> Level:
    """All of so many blocks recomputed."""
    return Level(recomputed=count)


def next_level(level: Level, count: int) -> Level | None:
    """What takes less memory than a level, of so many blocks; None: nothing does."""
    more = -(-count // STEPS)
    if level.recomputed < count:
        return replace(level, recomputed=min(count, level.recomputed + more))
    if level.swapped < count:
        return replace(level, swapped=min(count, level.swapped + more))
    return None if level.offload else replace(level, offload=True)


def level_of(word: Checkpointing, swapped: int, count: int) -> Level:
    """What local.yaml asks for, of so many blocks; numbers beyond them mean all."""
    number = word if isinstance(word, int) else {"none": 0, "selective": count // 2}.get(word, count)
    return Level(recomputed=min(number, count), swapped=min(swapped, count), offload=word == "offload")


class Kept:
    """What one denoiser keeps on the device: a level that may change between steps."""

    def __init__(self, denoiser: nn.Module, classes: Sequence[str], device: torch.device) -> None:
        """classes: of the repeated blocks (Family.BLOCKS). All is kept until a level is set."""
        self.denoiser, self.device, self.level = denoiser, device, Level()
        self.blocks = repeated_blocks(denoiser, classes)
        self._swap: Swap | None = None
        recompute(self.blocks, 0)

    def set(self, level: Level) -> None:
        """From the next step on."""
        recompute(self.blocks, level.recomputed)
        if level.swapped != self.level.swapped:
            self._swap = self._swap or Swap(in_order(self.denoiser, self.blocks), self.device)
            self._swap.swap(level.swapped)
        self.level = level

    def fall(self) -> bool:
        """Go on with the next level, where one is left: exact, so it may begin at any step."""
        level = next_level(self.level, len(self.blocks))
        if level is None:
            return False
        self.set(level)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return True

    def step(self) -> AbstractContextManager[object]:
        """A context for the forward and backward pass: at level offload, kept activations go to RAM."""
        return offload_activations(self.denoiser, self.device) if self.level.offload else nullcontext()

    def unwrapped(self) -> AbstractContextManager[object]:
        """A context in which blocks may be compiled, and given channels_last, whatever the level."""
        return self._swap.unwrapped() if self._swap else nullcontext()

    def described(self) -> str:
        """The level in words."""
        return self.level.described(len(self.blocks))


def in_order(denoiser: nn.Module, blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """The blocks as the denoiser lists them, which is nearly the order of its forward pass."""
    return [module for module in denoiser.modules() if module in blocks]


def offload_activations(denoiser: nn.Module, device: torch.device) -> AbstractContextManager[object]:
    """A context in which what is kept for the backward pass waits in RAM, less the denoiser's own weights."""
    weights = {_storage(tensor) for tensor in (*denoiser.parameters(), *denoiser.buffers())}
    if device.type == "meta":  # which cannot be copied from
        to_host, to_device = _shape, _empty
    else:
        hooks: Any = torch.autograd.graph.save_on_cpu(pin_memory=device.type == "cuda")
        to_host, to_device = hooks.pack_hook, hooks.unpack_hook

    def pack(tensor: Tensor) -> Any:
        return tensor if _storage(tensor) in weights else to_host(tensor)

    def unpack(packed: Any) -> Tensor:
        return packed if isinstance(packed, Tensor) else to_device(packed)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _shape(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def _empty(packed: tuple[torch.Size, torch.dtype]) -> Tensor:
    return torch.empty(packed[0], dtype=packed[1], device="meta")


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
