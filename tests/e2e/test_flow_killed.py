"""Two GPUs; and what is left when a process of `make serve` is killed with -9: nothing, and the next run goes on."""

import os
import signal
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from eridiff.flow.server import home
from tests.e2e.flows import BEGUN, Served, kept_count, living, make_toys, moment, serving, set_params, wait

pytestmark = pytest.mark.flow
VICTIMS = {"the server": 25, "the worker": 26, "make serve": 27}  # and to what its run counts


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("killed")
    with serving(Served(make_toys(folder), folder / "home-of-prefect", gpus="4,7")) as one:
        yield one


def kill(served: Served, victim: str) -> None:
    """Kill one of the processes of `make serve` with -9."""
    assert served.process
    word = {"the server": "uvicorn", "the worker": "stages.flow"}.get(victim)
    family = psutil.Process(served.process.pid).children(recursive=True)
    found = [one.pid for one in family if one.cmdline()[1:3] == ["-m", word]] or [served.process.pid]
    os.kill(found[0], signal.SIGKILL)


def test_two_experiments_run_side_by_side_on_two_gpus(served: Served) -> None:
    (served.clone.root / "kept.txt").write_text("0")
    numbers = [served.submit(project="count", overrides={"train": {"steps": steps}}) for steps in (60, 61)]
    assert [served.ended(number)["state"]["type"] for number in numbers] == ["COMPLETED", "COMPLETED"]
    tasks = [served.tasks(number)["count"] for number in numbers]
    assert max(moment(t["start_time"]) for t in tasks) < min(moment(t["end_time"]) for t in tasks), (
        "one after the other"
    )
    said = {line for number in numbers for _, line in served.lines(number)}
    assert {line for line in said if line.startswith("on GPU")} == {"on GPU 4", "on GPU 7"}


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_kill_ends_everything_and_the_next_run_goes_on(served: Served, victim: str) -> None:
    kept = served.clone.root / "kept.txt"
    kept.unlink(missing_ok=True)
    for path in ("count.txt", "dvc.lock"):
        (served.clone.root / "projects/count" / path).unlink(missing_ok=True)
    set_params(served.clone, "count", 3000)
    steps = {"train": {"steps": VICTIMS[victim]}}
    asked = {"project": "count", "overrides": steps}  # an experiment
    if victim == "the server":
        set_params(served.clone, "count", VICTIMS[victim])
        del asked["overrides"]  # in place
    number = served.submit(**asked)
    missed = served.submit(state={"type": "SCHEDULED", "state_details": {"scheduled_time": "2100-01-01T00:00:00Z"}})
    served.says(number, BEGUN)
    wait(lambda: kept_count(kept) >= 3, 60, kept.read_text)
    kill(served, victim)
    wait(lambda: not living(served.clone.root), 30, lambda: str(living(served.clone.root)))
    assert served.process and served.process.wait(5) != 0
    copies = served.clone.root.glob("projects/count/.dvc/tmp/exps/standalone/tmp*")
    assert not list(copies), "the experiment's copy of the checkout stays for ever"
    done = kept_count(kept)
    make_late(served, missed)

    served.start()
    assert served.ended(number)["state"]["type"] == "CRASHED"
    assert not served.ask("POST", "/flow_runs/filter", {"flow_runs": {"id": {"any_": [missed]}}}), "it is run days late"
    again = served.submit(**asked)
    assert served.ended(again)["state"]["type"] == "COMPLETED"
    assert served.counted_from(again) == done > 0


def make_late(served: Served, number: str) -> None:
    """Have a run be one of a schedule, two hours ago."""
    due = (datetime.now(UTC) - timedelta(hours=2)).strftime("%Y-%m-%d %H:%M:%S.%f")
    with sqlite3.connect(home(served.environment) / "prefect.db") as base:
        text = "update flow_run set auto_scheduled = 1, next_scheduled_start_time = ? where id = ?"
        assert base.execute(text, (due, number)).rowcount == 1
    base.close()


def test_a_second_serve_of_a_checkout_is_refused(served: Served, tmp_path: Path) -> None:
    second = Served(served.clone, tmp_path)
    for name in ("XDG_DATA_HOME", "PREFECT_SERVER_API_PORT"):  # the same server
        second.environment[name] = served.environment.get(name, "")
    with pytest.raises(AssertionError, match="is being served already"):
        second.start()
    assert second.process and second.process.wait(30) == 1
    assert served.ended(served.submit(project="tick"))["state"]["type"] == "COMPLETED"
