"""What is left when one of the processes of `make serve` is killed with -9: nothing, and the next run goes on."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.flows import Served, living, make_toys, set_params, wait

pytestmark = pytest.mark.flow
BEGUN = "counts from"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("killed")
    served = Served(make_toys(folder), folder / "home-of-prefect")
    served.log.parent.mkdir()
    try:
        yield served.start()
    finally:
        served.stop()
        assert living(served.clone.root) == []


def process(served: Served, *words: str) -> psutil.Process:
    """The process of `make serve` whose command begins with some words after its interpreter."""
    assert served.process
    family = psutil.Process(served.process.pid).children(recursive=True)
    return next(one for one in family if tuple(one.cmdline()[1 : 1 + len(words)]) == words)


@pytest.mark.parametrize("victim", ["the server", "the worker", "make serve"])
def test_a_kill_ends_everything_and_the_next_run_goes_on(served: Served, victim: str, capfd) -> None:  # type: ignore[no-untyped-def]
    kept = served.clone.root / "kept.txt"
    kept.unlink(missing_ok=True)
    for path in ("count.txt", "dvc.lock"):
        (served.clone.root / "projects/count" / path).unlink(missing_ok=True)
    set_params(served.clone, "count", {"the server": 25, "the worker": 26, "make serve": 27}[victim])
    number = served.submit(project="count")
    served.says(number, BEGUN)
    wait(lambda: kept.exists() and int(kept.read_text() or 0) >= 3, 20, kept.read_text)
    assert served.process
    if victim == "make serve":
        os.kill(served.process.pid, signal.SIGKILL)
    else:
        words = ("-m", "prefect", "server") if victim == "the server" else ("-m", "stages.flow", "serve")
        process(served, *words).send_signal(signal.SIGKILL)
    wait(lambda: not living(served.clone.root), 20, lambda: str(living(served.clone.root)))
    assert served.process.wait(5) != 0
    done = int(kept.read_text())

    served.start()
    assert served.ended(number)["state"]["type"] == "CRASHED"
    again = served.submit(project="count")
    assert served.ended(again, 120)["state"]["type"] == "COMPLETED"
    said = next(line for _, line in served.lines(again) if BEGUN in line)
    assert int(said.removeprefix(BEGUN)) == done > 0


def test_a_second_serve_of_a_checkout_is_refused(served: Served, tmp_path: Path) -> None:
    second = Served(served.clone, tmp_path)
    second.environment["PREFECT_SERVER_API_PORT"] = str(served.port)  # the same server
    with pytest.raises(AssertionError, match="is being served already"):
        second.start(seconds=20)
    assert second.process and second.process.wait(10) == 1
    assert served.ended(served.submit(project="tick"))["state"]["type"] == "COMPLETED"
