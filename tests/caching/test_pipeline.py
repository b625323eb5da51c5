"""Reading ahead and writing behind: in order, bounded, errors at once, nothing left running."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from eridiff.caching.pipeline import Transfers, reader_threads, readers_in_memory, with_finite, writer_threads
from eridiff.core import threads
from eridiff.core.threads import WriteBehind, ahead, batches_ahead

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_come_in_order(threads: int) -> None:
    def work(number: int) -> int:
        time.sleep(0.002 * (number % 3 == 0))
        return number * number

    assert list(ahead(range(20), work, threads=threads, depth=5)) == [number * number for number in range(20)]
    assert list(ahead([], work, threads=threads, depth=5)) == []


def test_no_more_is_read_ahead_than_asked_for() -> None:
    """Whatever the size of the set: what was begun and not yet taken is at most `depth`."""
    begun: list[int] = []
    worst = 0
    for taken, _ in enumerate(ahead(range(200), begun.append, threads=2, depth=6), 1):
        worst = max(worst, len(begun) - taken)
    assert len(begun) == 200
    assert worst <= 6


def test_without_threads_nothing_is_read_ahead() -> None:
    begun: list[int] = []
    results = ahead(range(5), begun.append, threads=0, depth=6)
    next(results)
    assert begun == [0]


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_an_error_is_raised_at_once(threads: int) -> None:
    """The error of sample 3 comes before the results that are read after it, and nothing more is begun."""
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise ValueError("3.png")
        return number

    taken = []
    with pytest.raises(ValueError, match=r"3\.png"):
        for result in ahead(range(1000), work, threads=threads, depth=8):
            taken.append(result)
    assert taken == [0, 1, 2][: len(taken)]
    assert len(begun) < 20


def test_a_stopped_reader_ends() -> None:
    """The consumer breaks off (an error of its own, a signal): what was not begun is dropped."""
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        time.sleep(0.01)

    results = ahead(range(1000), work, threads=2, depth=50)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(begun) < 10


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_are_filled_in_place(threads: int) -> None:
    batches = [[1, 2, 3], [4, 5], [6]]
    made: list[list[int]] = []

    def allocate(batch: Any) -> list[int]:
        made.append([0] * 4)
        return made[-1]

    def fill(buffer: list[int], place: int, item: int) -> None:
        buffer[place] = 10 * item

    found = list(batches_ahead(batches, allocate, fill, threads=threads))
    assert found == [([1, 2, 3], [10, 20, 30, 0]), ([4, 5], [40, 50, 0, 0]), ([6], [60, 0, 0, 0])]


def test_buffers_are_bounded_by_the_batch_and_not_by_the_set() -> None:
    allocated, worst = 0, 0

    def allocate(batch: Any) -> dict[int, int]:
        nonlocal allocated
        allocated += 1
        return {}

    found = batches_ahead([[1, 2]] * 100, allocate, lambda buffer, place, item: None, threads=2)
    for consumed, _ in enumerate(found, 1):
        worst = max(worst, allocated - consumed)
    assert allocated == 100
    assert worst <= 3  # two threads and one batch ahead are four samples


def test_writing_runs_behind_and_is_bounded() -> None:
    done: list[int] = []
    gate = threading.Event()

    def write(number: int) -> Callable[[], None]:
        def run() -> None:
            gate.wait(5)
            done.append(number)

        return run

    started = time.monotonic()
    with WriteBehind(threads=1, depth=3) as writer:
        for number in range(3):
            writer.submit(write(number))
        assert done == []  # three calls wait, and the caller went on
        threading.Timer(0.1, gate.set).start()
        writer.submit(write(3))  # the fourth had to wait
        assert time.monotonic() - started >= 0.1
        assert done[:1] == [0]
    assert done == [0, 1, 2, 3]


def test_an_error_of_the_writer_stops_the_encoder() -> None:
    submitted = 0

    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), WriteBehind(threads=1, depth=2) as writer:
        for _ in range(1000):
            submitted += 1
            writer.submit(fail)
    assert submitted < 5
    with pytest.raises(OSError, match="disk full"), WriteBehind(threads=1, depth=2) as writer:
        writer.submit(fail)


def test_what_was_encoded_is_written_when_the_encoder_stops() -> None:
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt), WriteBehind(threads=1, depth=4) as writer:
        for number in range(3):
            writer.submit(lambda number=number: (time.sleep(0.02), done.append(number))[1])  # type: ignore[misc]
        raise KeyboardInterrupt
    assert done == [0, 1, 2]


def test_threads_follow_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores encode on their own; a device leaves all cores but one to the readers, of several processes a part."""
    expected = {1: (0, 1), 2: (0, 1), 4: (2, 3), 16: (14, 15), 200: (32, 32)}
    for cores, (on_cpu, on_cuda) in expected.items():
        monkeypatch.setattr(threads, "available_cores", lambda cores=cores: cores)
        assert (reader_threads(CPU), reader_threads(CUDA)) == (on_cpu, on_cuda), cores
    monkeypatch.setattr(threads, "available_cores", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert (reader_threads(CPU), reader_threads(CUDA)) == (2, 3)
    assert (writer_threads(CPU), writer_threads(CUDA)) == (1, 4)


def test_a_cpu_moves_nothing() -> None:
    moves = Transfers(CPU)
    tensor = torch.rand(2, 3).t()
    assert not moves.pinned
    assert moves.upload(tensor) is tensor
    arrived = moves.download({"mean": tensor})()
    assert torch.equal(arrived["mean"], tensor)
    assert arrived["mean"].is_contiguous()


def test_finite_is_said_for_each_sample() -> None:
    tensors = {"mean": torch.ones(3, 2, 2), "std": torch.ones(3, 4)}
    tensors["mean"][1, 0, 1] = float("nan")
    tensors["std"][2, 3] = float("inf")
    assert with_finite(tensors)["finite"].tolist() == [True, False, False]


def test_huge_pictures_are_read_by_few_threads() -> None:
    """The largest that are read take 1.3 GiB each while they are decoded; usual ones are no reason for fewer."""
    assert [readers_in_memory(32, pixels) for pixels in (1, 12_000_000, 50_000_000, 175_000_000)] == [32, 32, 10, 3]
    assert readers_in_memory(0, 175_000_000) == 0 and readers_in_memory(4, 10**12) == 1
