"""CUDA graphs: work that is recorded once, with all its kernels, and then replayed by one call of the host."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

WARM_UP = 2  # runs before recording: what compiles, plans and allocates for good has done so


class Tensors(Protocol):
    """Something made of tensors, such as a batch."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with every tensor changed."""


Input = TypeVar("Input", bound=Tensors)


class Recorded:
    """Work without input, recorded when it is made."""

    def __init__(self, work: Callable[[], None], pool: Any = None, warm_up: int = WARM_UP) -> None:
        """pool: memory that this graph shares with others, of which one runs at a time."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(warm_up):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # the pool takes what the warm-up had
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            work()

    def __call__(self) -> None:
        """Do the work again."""
        self.graph.replay()


class RecordedByShape(Generic[Input]):
    """Work on inputs, recorded for each shape that comes: at most `limit`, beyond which the longest unused goes."""

    def __init__(self, work: Callable[[Input], None], device: torch.device, limit: int, pool: Any) -> None:
        """pool: as in Recorded."""
        self.work, self.device, self.limit, self.pool = work, device, limit, pool
        self._recorded: OrderedDict[Hashable, tuple[list[Tensor], Recorded]] = OrderedDict()

    def __call__(self, given: Input) -> None:
        """Do the work on what is given, on the host (pinned) or on the device."""
        tensors = tensors_of(given)
        key = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        if key not in self._recorded:
            if len(self._recorded) == self.limit:
                self._recorded.popitem(last=False)
            own = given.map(lambda tensor: tensor.to(self.device, copy=True))
            self._recorded[key] = tensors_of(own), Recorded(lambda: self.work(own), self.pool)
        self._recorded.move_to_end(key)
        buffers, recorded = self._recorded[key]
        for buffer, tensor in zip(buffers, tensors, strict=True):
            buffer.copy_(tensor, non_blocking=True)
        recorded()


def tensors_of(given: Tensors) -> list[Tensor]:
    """All tensors of an input, in its own order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    given.map(note)
    return found
