"""What a computation takes, without doing it: peak memory and operations of work on tensors that have only shapes.

The work runs on torch's meta device, through the very code that runs on a GPU; attention counts as the fused kernels
hold it (inputs, output and a number a row), not with all its scores.

Legend: B batch, H heads, L tokens, D features of a head.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from eridiff.acceleration.attention import in_place_of_attention
from eridiff.memory.meta_results import MetaResults

ROUND = 512  # CUDA's allocator gives multiples of this many bytes
BACKWARD = 2.5  # operations of attention's backward pass for each of its forward pass (it computes the scores again)


@dataclass(frozen=True, kw_only=True)
class Traced:
    """What a computation takes beyond what was there before it."""

    peak: int  # bytes
    flops: int
    calls: int  # of torch's operators, views among them: what a host has to do, whatever the sizes
    parts: tuple["Part", ...] = ()


@dataclass(frozen=True, kw_only=True)
class Part:
    """What the forward pass of one module takes; zero where it was not called.

    turn: which of all it was. attention, attention_flops: bytes of what its attention returns, and its operations.
    """

    kept: int = 0  # bytes that live after it and did not before: its outputs, and what waits for the backward pass
    flops: int = 0
    calls: int = 0
    turn: int = 0
    attention: int = 0
    attention_flops: int = 0


def trace(work: Callable[[], Any], parts: Sequence[nn.Module] = (), known: MetaResults | None = None) -> Traced:
    """Run work on meta tensors; what it returns is dropped.

    parts: modules that are also measured by themselves. known: results of operators, by traces before.
    """
    with _Memory(known or MetaResults()) as memory, _fused_attention(memory), _measured(memory, parts) as found:
        work()
    return Traced(peak=memory.peak, flops=memory.flops, calls=memory.calls, parts=tuple(found))


class _Memory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages that live, the operations of products and convolutions, and calls."""

    def __init__(self, results: MetaResults) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.flops = self.calls = self.attention = self.attention_flops = 0
        self._seen: set[int] = set()
        self._results = results

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A product or convolution may be inside, in inference mode.
        if func.overloadpacket not in flop_registry and func._can_decompose():
            with self:
                parts = func.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
        called = self._results.call(func, args, kwargs or {})
        self.calls += 1
        self.flops += called.flops
        for tensor in called.new:
            self._add(tensor.untyped_storage())
        return called.result

    def _add(self, storage: Any) -> None:
        place = storage._cdata
        if place in self._seen:
            return
        self._seen.add(place)
        size = -(-storage.nbytes() // ROUND) * ROUND
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, place, size)

    def _drop(self, place: int, size: int) -> None:
        self._seen.discard(place)
        self.live -= size


@contextmanager
def _measured(memory: _Memory, modules: Sequence[nn.Module]) -> Iterator[list[Part]]:
    """Parts of these modules' forward passes, in their order."""
    parts = [Part() for _ in modules]
    before: dict[nn.Module, tuple[int, ...]] = {}
    turns, place = count(1), {module: at for at, module in enumerate(modules)}

    def counted() -> tuple[int, ...]:
        return memory.live, memory.flops, memory.calls, memory.attention, memory.attention_flops

    def begin(module: nn.Module, _: Any) -> None:
        before[module] = counted()

    def end(module: nn.Module, _: Any, __: Any) -> None:
        kept, flops, calls, attention, own = (
            now - then for now, then in zip(counted(), before.pop(module), strict=True)
        )
        parts[place[module]] = Part(
            kept=kept, flops=flops, calls=calls, turn=next(turns), attention=attention, attention_flops=own
        )

    hooks = [hook for m in modules for hook in (m.register_forward_pre_hook(begin), m.register_forward_hook(end))]
    try:
        yield parts
    finally:
        for hook in hooks:
            hook.remove()


def _fused_attention(memory: _Memory) -> AbstractContextManager[None]:
    """Put the shapes of a fused kernel in the place of torch's attention, in recomputed forward passes too."""

    def fused(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        output: Tensor = _Attention.apply(query, key, value, memory)  # type: ignore[no-untyped-call]
        return output

    return in_place_of_attention(fused)


class _Attention(torch.autograd.Function):
    """query [B, H, L, D], key and value [B, H, L', D] => [B, H, L, D]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, memory: _Memory) -> Tensor:
        output = torch.empty_like(query)
        ctx.flops, ctx.memory = 4 * query.numel() * key.shape[-2], memory
        memory.flops += ctx.flops
        rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
        memory.attention += output.nbytes + rows.nbytes
        memory.attention_flops += ctx.flops
        ctx.save_for_backward(query, key, value, output, rows)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, *_ = ctx.saved_tensors
        ctx.memory.flops += int(BACKWARD * ctx.flops)
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None
