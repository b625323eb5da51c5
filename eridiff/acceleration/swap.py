"""Block swap of a frozen base: weights of some repeated blocks wait in pinned RAM, and come to the device when needed.

They are copied to the device alone, never back: training does not change them. Two buffers (slots) on the device serve
all swapped blocks in turn: while one block computes, the next one's weights come in on a stream of their own, in the
order of the forward pass, and in the reverse order in the backward pass. A block's tensors point into the same slot for
good, so compiled code finds them at one address. Adapters, and all that is trained, stay on the device.

Swap wraps the call of a block from outside: blocks are compiled inside `Swap.unwrapped`. A step with swapped blocks
cannot be captured in a CUDA graph.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

SLOTS = 2  # blocks on the device at a time: the one that computes, and the next
CHUNK = 32 << 20  # bytes pinned at once: torch rounds each pinned allocation up to a power of two
ALIGNED = 512  # bytes; as torch's allocator aligns


def swapped_places(count: int, of: int) -> list[int]:
    """Which of so many blocks are swapped: spread evenly, so that each copy has other blocks to hide behind."""
    return [place * of // count for place in range(count)]


def swap_sizes(blocks: Sequence[nn.Module]) -> list[int]:
    """Bytes of each block's weights that can be swapped."""
    return [_Layout(block).size for block in blocks]


def swapped_bytes(sizes: Sequence[int], count: int) -> int:
    """Bytes that a device holds less where so many blocks of these sizes are swapped: their weights, less the slots."""
    chosen = [sizes[place] for place in swapped_places(count, len(sizes))]
    return max(0, sum(chosen) - SLOTS * max(chosen, default=0))


class Swap:
    """The repeated blocks of one denoiser, in order, of which some are swapped."""

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        """blocks: wherever their weights are; those not swapped are left where they are."""
        self.blocks, self.device = blocks, device
        self._waiting: dict[nn.Module, _Waiting] = {}
        self._ring = _Ring(device, 0)

    def swap(self, count: int) -> None:
        """Swap this many blocks; those that are swapped no longer come back to the device."""
        self._ring.settle()
        chosen = [self.blocks[place] for place in swapped_places(count, len(self.blocks))]
        for block in chosen:
            if block not in self._waiting:
                self._waiting[block] = _Waiting(block)
        for block in [block for block in self._waiting if block not in chosen]:
            self._waiting.pop(block).restore(self.device)
        self._ring = _Ring(self.device, max((waiting.layout.size for waiting in self._waiting.values()), default=0))
        for waiting in self._waiting.values():
            waiting.layout.point(self._ring.slots[0])  # until its first call
            waiting.wrap(self._ring)

    @contextmanager
    def unwrapped(self) -> Iterator[None]:
        """Blocks called as if they were not swapped, so that they may be compiled, or laid out anew; not to be run."""
        for waiting in self._waiting.values():
            waiting.unwrap()
        yield
        self._ring.settle()
        self._ring.forget()
        for waiting in self._waiting.values():
            waiting.lay_out()
            waiting.layout.point(self._ring.slots[0])
            waiting.wrap(self._ring)


class _Layout:
    """Where each frozen tensor of a block lies in one stretch of bytes."""

    def __init__(self, block: nn.Module) -> None:
        found = {id(tensor): tensor for tensor in (*block.parameters(), *block.buffers()) if not tensor.requires_grad}
        self.tensors, self.places, self.size = list(found.values()), [], 0
        self.strides = [tensor.stride() for tensor in self.tensors]
        self.addresses: list[int] = []  # where the block's tensors are, if nobody has moved them
        for tensor in self.tensors:
            self.places.append(self.size)
            self.size += -(-tensor.nbytes // ALIGNED) * ALIGNED

    def views(self, flat: Tensor) -> list[Tensor]:
        """The tensors, in their own strides, as parts of a stretch of bytes [size]."""
        return [
            flat[place : place + tensor.nbytes].view(tensor.dtype).as_strided(tensor.shape, stride)
            for place, tensor, stride in zip(self.places, self.tensors, self.strides, strict=True)
        ]

    def point(self, flat: Tensor) -> None:
        """Make the block's tensors parts of these bytes."""
        for tensor, view in zip(self.tensors, self.views(flat), strict=True):
            tensor.data = view
        self.addresses = [tensor.data_ptr() for tensor in self.tensors]

    def check(self) -> None:
        """That the block's tensors are where they were put: else nothing would bring their values."""
        moved = [tensor.data_ptr() for tensor in self.tensors] != self.addresses
        assert not moved, "a swapped block's weights were moved or laid out anew outside `unwrapped`"


class _Waiting:
    """A swapped block: its weights in RAM, and its place among the swapped ones once it was called."""

    def __init__(self, block: nn.Module) -> None:
        self.block, self.layout = block, _Layout(block)
        self.compiled: Callable[..., Any] | None = None  # the block's compiled call, where it has one
        self.chunks = self._pinned(self.layout.tensors)

    def _pinned(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The block's values as the layout has them."""
        flat = torch.empty(self.layout.size, dtype=torch.uint8)
        for value, view in zip(values, self.layout.views(flat), strict=True):
            view.copy_(value)
        return [part.pin_memory() if torch.cuda.is_available() else part for part in _chunks(flat)]

    def lay_out(self) -> None:
        """Take over the strides that the block's tensors were given, as by channels_last."""
        strides = [tensor.stride() for tensor in self.layout.tensors]
        if strides != self.layout.strides:
            values = self.layout.views(torch.cat(self.chunks))
            self.layout.strides = strides
            self.chunks = self._pinned(values)

    def wrap(self, ring: "_Ring") -> None:
        """Have the block's call, compiled or not, bring its weights first."""
        found = vars(self.block).get("_compiled_call_impl")
        if not isinstance(found, _Wrapped):
            self.compiled = found
        vars(self.block)["_compiled_call_impl"] = _Wrapped(ring.call, self, self.compiled or self.block._call_impl)

    def unwrap(self) -> None:
        """The block's call as it was."""
        vars(self.block)["_compiled_call_impl"] = self.compiled

    def restore(self, device: torch.device) -> None:
        """Weights back on the device for good."""
        self.layout.point(torch.cat([chunk.to(device) for chunk in self.chunks]))
        self.unwrap()


class _Wrapped(partial[Any]):
    """The call of a swapped block."""


class _Ring:
    """The slots on the device, and the order in which the swapped blocks take turns in them."""

    def __init__(self, device: torch.device, size: int) -> None:
        self.device = device
        self.slots = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(SLOTS if size else 0)]
        self.order: list[_Waiting] = []  # by their first call
        self._held: list[int | None] = [None] * SLOTS  # which block's weights are in a slot, or on their way
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._arrived = [_event() if self._copies else None for _ in range(SLOTS)]

    def call(self, waiting: _Waiting, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A block's call, its weights brought before it, and again before its backward pass."""
        if waiting not in self.order:
            waiting.layout.point(self.slots[len(self.order) % SLOTS])
            self.order.append(waiting)
        waiting.layout.check()
        place = self.order.index(waiting)
        self.enter(place, 1)
        answer = call(*args, **kwargs)
        leaves, shape = tree_flatten(answer)
        tracked = [at for at, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not tracked:
            return answer
        turned = _Turn.apply(self, place, *(leaves[at] for at in tracked))  # type: ignore[no-untyped-call]
        for at, tensor in zip(tracked, turned, strict=True):
            leaves[at] = tensor
        return tree_unflatten(leaves, shape)

    def enter(self, place: int, direction: int) -> None:
        """Have a block's weights there, and send for the next one's: forward (1) or backward (-1)."""
        self._send(place)
        arrived = self._arrived[place % SLOTS]
        if arrived is not None:
            torch.cuda.current_stream(self.device).wait_event(arrived)
        if 0 <= place + direction < len(self.order):
            self._send(place + direction)

    def forget(self) -> None:
        """The order, and what the slots hold."""
        self.order, self._held = [], [None] * SLOTS

    def settle(self) -> None:
        """Wait for the device: nothing is on its way, and no slot is in use."""
        if self._copies is not None:
            torch.cuda.synchronize(self.device)

    def _send(self, place: int) -> None:
        """Copy a block's weights into its slot, after all that the device was told to do with it so far."""
        slot = place % SLOTS
        if self._held[slot] == place:
            return
        self._held[slot] = place
        target = self.slots[slot][: self.order[place].layout.size]
        if self._copies is None:
            _copy(target, self.order[place].chunks)
            return
        self._copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._copies):
            _copy(target, self.order[place].chunks)
        arrived = self._arrived[slot]
        assert arrived is not None
        arrived.record(self._copies)


def _chunks(flat: Tensor) -> tuple[Tensor, ...]:
    return torch.split(flat, CHUNK)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def _copy(target: Tensor, chunks: Sequence[Tensor]) -> None:
    for part, chunk in zip(_chunks(target), chunks, strict=True):
        part.copy_(chunk, non_blocking=True)


class _Turn(torch.autograd.Function):
    """A block's outputs as they are; their gradients, once all are there, as they are: then the block's turn comes."""

    @staticmethod
    def forward(ctx: Any, ring: _Ring, place: int, *outputs: Tensor) -> tuple[Tensor, ...]:
        ctx.ring, ctx.place = ring, place
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.ring.enter(ctx.place, -1)
        return None, None, *gradients
