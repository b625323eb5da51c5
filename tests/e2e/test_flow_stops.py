"""Runs that are stopped, and runs that want the same thing: cancelling, timeouts, kills, slots, one checkout."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.flows import BEGUN, Served, kept_count, make_toys, moment, serving, set_params, stages_living, wait

pytestmark = pytest.mark.flow


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("stops")
    with serving(Served(make_toys(folder), folder / "home-of-prefect")) as one:
        yield one


@pytest.fixture(autouse=True)
def kept(served: Served) -> Path:
    """Where the stage that counts keeps how far it came: nothing yet."""
    place = served.clone.root / "kept.txt"
    place.unlink(missing_ok=True)
    return place


def gone(served: Served) -> bool:
    """Whether no process of a stage is left."""
    return not stages_living(served.clone.root)


def left(served: Served) -> str:
    """What is."""
    return str(stages_living(served.clone.root))


@pytest.mark.parametrize("asked", [{}, {"overrides": {"train": {"steps": 2000}}}], ids=["in place", "experiment"])
def test_cancelling_ends_every_child(served: Served, asked: dict[str, Any]) -> None:
    set_params(served.clone, "count", 3000)
    number = served.submit(project="count", **asked)
    served.says(number, BEGUN)
    assert len(stages_living(served.clone.root)) >= 2
    served.ask("POST", f"/flow_runs/{number}/set_state", {"state": {"type": "CANCELLING"}})  # as the UI's button does
    wait(lambda: gone(served), 15, lambda: left(served))
    wait(lambda: served.run(number)["state"]["type"] == "CANCELLED", 20, lambda: str(served.run(number)["state"]))
    wait(lambda: served.taken() == 0, 30, lambda: "the slot is held")


def test_a_stage_is_stopped_when_its_time_is_over(served: Served) -> None:
    number = served.submit(project="count", minutes=0.1)
    record = served.ended(number)
    assert (record["state"]["type"], record["state"]["name"]) == ("FAILED", "TimedOut")
    assert "ran longer than 6 s" in served.tasks(number)["count"]["state"]["message"]
    assert gone(served), left(served)


def test_two_experiments_take_turns_at_one_gpu_and_leave_the_folder_alone(served: Served) -> None:
    place = served.clone.root / "projects" / "count"
    before = {name: (place / name).read_text() for name in ("params.yaml", "dvc.yaml")}
    numbers = [served.submit(project="count", overrides={"train": {"steps": steps}}) for steps in (10, 20)]
    messages = [served.ended(number)["state"]["message"] for number in numbers]
    tasks = [served.tasks(number)["count"] for number in numbers]
    assert all(message.startswith("stages: 1 Cached, 1 Completed; experiment ") for message in messages), messages
    one, two = sorted((moment(task["start_time"]), moment(task["end_time"])) for task in tasks)
    assert one[1] < two[0], "both had the slot"
    runs = [served.run(number) for number in numbers]
    assert max(moment(r["start_time"]) for r in runs) < min(moment(r["end_time"]) for r in runs), "never side by side"
    assert any("waits for gpu-0" in line for number in numbers for _, line in served.lines(number))
    names = [message.split("dvc exp apply ")[1].rstrip("`") for message in messages]
    listed = served.clone.run("dvc", "exp", "list", "--name-only", place=place).stdout.split()
    assert sorted(names) == sorted(listed)
    assert {name: (place / name).read_text() for name in before} == before
    assert served.clone.run("git", "status", "--short", "dvc.yaml", place=place).stdout == ""


def test_one_run_at_a_time_works_in_the_checkout(served: Served) -> None:
    set_params(served.clone, "count", 60)
    first = served.submit(project="count")
    served.says(first, BEGUN)
    second = served.submit(project="tick")
    served.says(second, "waits for another run in this checkout")
    ends = [served.ended(number) for number in (first, second)]
    assert [record["state"]["type"] for record in ends] == ["COMPLETED", "COMPLETED"]
    assert moment(served.tasks(second)["tock"]["start_time"]) > moment(served.tasks(first)["count"]["end_time"])


def test_a_killed_holders_slot_is_free_within_a_minute_and_the_next_run_goes_on(served: Served, kept: Path) -> None:
    set_params(served.clone, "count", 30)
    number = served.submit(project="count")
    served.says(number, BEGUN)
    wait(lambda: kept_count(kept) >= 3, 60, kept.read_text)
    assert served.taken() == 1
    served.process_of(number).send_signal(signal.SIGKILL)
    wait(lambda: gone(served), 15, lambda: left(served))
    wait(lambda: served.taken() == 0, 45, lambda: "the slot is held")
    assert served.ended(number)["state"]["type"] == "CRASHED"
    done = kept_count(kept)
    again = served.submit(project="count")
    assert served.ended(again)["state"]["type"] == "COMPLETED"
    assert served.counted_from(again) == done > 0
