"""Encoding as a pipeline: samples are read ahead, the encoder runs, entries are written behind it.

    read (threads, in order, a bounded number ahead) -> encode (the caller's thread) -> write (threads, bounded)

Threads, not processes: decoding, resizing, digests and writing all release Python's lock, so two threads read as
many pictures as two processes do (docs/benchmarks.md has figures), start at once, raise their errors where they
are waited for, and die with the process. Nothing here changes a value: only when and where it is computed.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")
Buffer = TypeVar("Buffer")

MAX_READERS = 32
READ_BYTES = 4 << 30  # of pictures that are decoded at one time
PIXEL_BYTES = 8  # of a picture that is decoded: two copies of four bytes
BATCHES_BEHIND = 3  # encoded and not yet written: what a SIGKILL loses, beside the batch in the encoder


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def shared_cores() -> int:
    """Cores for this process where several of one machine (LOCAL_WORLD_SIZE) share them."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def reader_threads(device: "torch.device") -> int:
    """Threads that read pictures ahead of the encoder, by the machine's cores: they change no value.

    On a CPU the encoder has CPU_THREADS cores to itself, so with two cores it reads its own pictures.
    """
    from eridiff.precision import CPU_THREADS

    taken = CPU_THREADS if device.type == "cpu" else 1
    return min(max(shared_cores() - taken, 0 if device.type == "cpu" else 1), MAX_READERS)


def readers_in_memory(threads: int, largest: int) -> int:
    """So many of the threads that pictures of `largest` pixels, one a thread, fit READ_BYTES; of any size one."""
    return min(threads, max(1, READ_BYTES // (PIXEL_BYTES * max(largest, 1))))


def writer_threads(device: "torch.device") -> int:
    """Threads that write entries behind the encoder: a disk takes several files at once, a CPU is busy."""
    return 1 if device.type == "cpu" else 4


def ahead(items: Iterable[Item], work: Callable[[Item], Result], *, threads: int, depth: int) -> Iterator[Result]:
    """work(item) of each item in order, computed by threads at most `depth` items ahead; by the caller with 0 threads.

    An error is raised as soon as the caller asks for any later result; what was not begun is dropped.
    """
    if threads == 0:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="eridiff-read")
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            if len(pending) >= max(depth, 1):
                yield _next_result(pending)
            pending.append(pool.submit(work, item))
        while pending:
            yield _next_result(pending)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def batches_ahead(
    batches: Sequence[Sequence[Item]],
    allocate: Callable[[Sequence[Item]], Buffer],
    fill: Callable[[Buffer, int, Item], None],
    *,
    threads: int,
) -> Iterator[tuple[Sequence[Item], Buffer]]:
    """Each batch with its filled buffer, in order: at most one batch and one sample a thread are read ahead.

    allocate(batch) makes a batch's buffer; fill(buffer, place, item) puts one sample into it, in some thread.
    """

    def places() -> Iterator[tuple[Buffer, int, Item]]:
        for batch in batches:
            buffer = allocate(batch)
            for place, item in enumerate(batch):
                yield buffer, place, item

    def fill_one(place: tuple[Buffer, int, Item]) -> Buffer:
        fill(*place)
        return place[0]

    depth = threads + max(map(len, batches), default=0)
    filled = ahead(places(), fill_one, threads=threads, depth=depth)
    try:
        for batch in batches:
            yield batch, [next(filled) for _ in batch][-1]
    finally:
        filled.close()  # type: ignore[attr-defined]


def _next_result(pending: "deque[Future[Result]]") -> Result:
    """The oldest result; the error of any that has failed meanwhile comes first."""
    _raise_failed(pending)
    return pending.popleft().result()


def _raise_failed(pending: "Iterable[Future[Any]]") -> None:
    for future in pending:
        if future.done() and not future.cancelled() and (error := future.exception()):
            raise error


class WriteBehind:
    """Runs calls in threads, a bounded number behind the caller; `submit` waits where there are too many.

    The first error is raised by the next `submit`, or at the end. Where the block ends with an error of its own, or
    is stopped, what was submitted is still written: it is bounded, and would have to be encoded again.
    """

    def __init__(self, *, threads: int, depth: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="eridiff-write")
        self._pending: deque[Future[None]] = deque()
        self._depth = depth

    def __enter__(self) -> "WriteBehind":
        return self

    def submit(self, work: Callable[[], None]) -> None:
        """Have `work` run; its error is raised by a later call."""
        while self._pending and (self._pending[0].done() or len(self._pending) >= self._depth):
            _next_result(self._pending)
        _raise_failed(self._pending)
        self._pending.append(self._pool.submit(work))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            while self._pending:
                _next_result(self._pending)


class Transfers:
    """Moves tensors to a device and back on streams of their own, so that the device never waits for the host.

    On a CPU nothing is moved.
    """

    def __init__(self, device: "torch.device") -> None:
        import torch

        self.device = device
        self.streams = [torch.cuda.Stream(device) for _ in range(2)] if device.type == "cuda" else []  # type: ignore[no-untyped-call]

    @property
    def pinned(self) -> bool:
        """Whether buffers on the host have to be pinned, so that copies run beside the encoder."""
        return bool(self.streams)

    def upload(self, tensor: "Tensor") -> "Tensor":
        """A host tensor on the device; the stream that is current waits for it, the host does not."""
        import torch

        if not self.streams:
            return tensor
        with torch.cuda.stream(self.streams[0]):
            moved = tensor.to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.streams[0])
        moved.record_stream(current)
        return moved

    def download(self, tensors: "Mapping[str, Tensor]") -> "Callable[[], dict[str, Tensor]]":
        """Start copying tensors to the host; the answer waits for the copies and gives them, contiguous."""
        import torch

        ready = {name: tensor.contiguous() for name, tensor in tensors.items()}
        if not self.streams:
            return lambda: ready
        stream = self.streams[1]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        host: dict[str, Tensor] = {}
        with torch.cuda.stream(stream):
            for name, tensor in ready.items():
                host[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                host[name].copy_(tensor, non_blocking=True)
                tensor.record_stream(stream)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(stream)

        def wait() -> "dict[str, Tensor]":
            done.synchronize()
            return host

        return wait


def with_finite(tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Tensors [B, ...] and, as `finite` [B], whether each sample's numbers all are, found where the numbers are."""
    import torch

    checks = [tensor.flatten(1).isfinite().all(dim=1) for tensor in tensors.values()]
    return {**tensors, "finite": torch.stack(checks).all(dim=0)}
