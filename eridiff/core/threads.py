"""Work on threads beside the main one: items read ahead, results written behind, order kept."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Buffer = TypeVar("Buffer")

MAX_READERS = 32


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def shared_cores() -> int:
    """Cores for this process where several of one machine (LOCAL_WORLD_SIZE) share them."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


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


def on_cores(items: Iterable[Item], work: Callable[[Item], Result]) -> Iterator[Result]:
    """work(item) of each item in order, on up to eight cores: for work that releases Python's lock, such as digests."""
    threads = min(shared_cores(), 8)
    return ahead(items, work, threads=threads if threads > 1 else 0, depth=2 * threads)


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
