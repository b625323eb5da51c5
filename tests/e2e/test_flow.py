"""Runs under a served Prefect: states, logs, the button, cancelling, timeouts, retries, slots, schedules."""

import signal
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from eridiff import slots
from tests.e2e.flows import Served, living, make_toys, moment, set_params, stages_living, wait

pytestmark = pytest.mark.e2e
BEGUN = "counts from"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("flow")
    served = Served(make_toys(folder), folder / "home-of-prefect", "--cron", "* * * * *", "--project", "tick")
    served.log.parent.mkdir()
    try:
        yield served.start()
    finally:
        served.stop()
        assert living(served.clone.root) == []


@pytest.fixture(scope="module")
def abandoned(served: Served) -> float:
    """When a slot was taken by a holder that says no more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{served.port}/api")
        slots.make_limit("abandoned")
        assert slots.take_one({"abandoned": "0"}) is not None
        assert slots.take_one({"abandoned": "0"}) is None
    return time.monotonic()


def test_only_loopback_listens(served: Served, abandoned: float) -> None:
    assert served.process
    family = [served.process, *psutil.Process(served.process.pid).children(recursive=True)]
    connections = [c for p in family for c in psutil.Process(p.pid).net_connections() if c.status == "LISTEN"]
    assert {c.laddr.ip for c in connections} == {"127.0.0.1"}
    assert served.port in {c.laddr.port for c in connections}


def test_the_form_has_the_projects_and_every_key(served: Served) -> None:
    schema = served.ask("GET", f"/deployments/{served.deployment}")["parameter_openapi_schema"]
    fields, kinds = schema["properties"], schema["definitions"]
    assert fields["project"]["enum"] == ["(checkout)", "bad", "count", "far", "pair", "tick"]
    assert "tiny-flux" in fields["preset"]["enum"]
    assert fields["stop_at"]["enum"][0] == "check" and "export" in fields["stop_at"]["enum"]
    rate = kinds["OptimParams"]["properties"]["lr"]
    assert rate["type"] == "number" and "default" not in rate and "rate" in rate["description"]
    assert kinds["TrainParams"]["properties"]["precision"]["enum"] == ["fp32", "bf16"]


def test_stages_run_side_by_side_then_are_cached_and_restored(served: Served) -> None:
    first = served.submit(project="pair")
    assert served.ended(first)["state"]["message"] == "stages: 3 Completed"
    tasks = served.tasks(first)
    assert {name: task["state"]["name"] for name, task in tasks.items()} == dict.fromkeys(
        ("left", "right", "both"), "Completed"
    )
    left, right = (sorted((moment(tasks[n]["start_time"]), moment(tasks[n]["end_time"]))) for n in ("left", "right"))
    assert max(left[0], right[0]) < min(left[1], right[1]), "they did not overlap"
    assert served.says(first, "left is done") < left[1], "the line came with the stage's end, not live"

    for last in (False, True):  # the cron's run may be at work the first time
        again = served.submit(project="pair")
        record = served.ended(again)
        assert record["state"]["name"] == "Cached"
        if record["total_run_time"] < 5:
            break
        assert not last, f"{record['total_run_time']} s for nothing"
    assert served.states(again) == dict.fromkeys(("left", "right", "both"), "Cached")

    set_params(served.clone, "pair", 7)
    again = served.submit(project="pair")
    served.ended(again)
    assert served.states(again) == {"left": "Cached", "right": "Completed", "both": "Completed"}
    set_params(served.clone, "pair", 3000)
    back = served.submit(project="pair", stop_at="right")
    served.ended(back)
    assert served.states(back) == {"right": "Restored"}


def test_a_failure_has_the_stages_own_message_and_is_not_tried_again(served: Served) -> None:
    number = served.submit(project="bad")
    record = served.ended(number)
    assert record["state"]["type"] == "FAILED"
    assert record["state"]["message"] == "fails: the cat is no dog.\nTake a dog."
    tasks = served.tasks(number)
    assert tasks["fails"]["state"]["message"] == "the cat is no dog.\nTake a dog."
    assert tasks["fails"]["run_count"] == 1
    assert {name: task["state"]["name"] for name, task in tasks.items()} == {
        "fails": "Failed",
        "waits": "NotReady",
        "other": "Completed",
    }
    assert "NotRun" in served.artifacts(number)["bad-graph"]


def test_an_experiment_of_what_git_does_not_know_is_refused_with_two_commands(served: Served) -> None:
    place = served.clone.root / "projects" / "bad"
    record = served.ended(served.submit(project="bad", overrides={"train": {"steps": 5}}))
    assert record["state"]["type"] == "FAILED"
    assert record["state"]["message"].endswith(f"\n  git -C {place} add .\n  git -C {place} commit -m 'project bad' .")


def test_a_stage_that_touches_a_network_is_tried_again(served: Served) -> None:
    number = served.submit(project="far")
    assert served.ended(number)["state"]["type"] == "COMPLETED"
    fetch = served.tasks(number)["fetch"]
    assert (fetch["run_count"], fetch["state"]["name"]) == (2, "Completed")


def test_cancelling_ends_every_child(served: Served) -> None:
    set_params(served.clone, "count", 3000)
    number = served.submit(project="count")
    served.says(number, BEGUN)
    assert len(stages_living(served.clone.root)) >= 2
    served.ask("POST", f"/flow_runs/{number}/set_state", {"state": {"type": "CANCELLING"}})
    assert wait(lambda: not stages_living(served.clone.root), 15, lambda: str(stages_living(served.clone.root))) < 15
    wait(lambda: served.run(number)["state"]["type"] == "CANCELLED", 20, lambda: str(served.run(number)["state"]))
    wait(lambda: served.taken() == 0, 10, lambda: "the slot is held")


def test_a_stage_is_stopped_when_its_time_is_over(served: Served) -> None:
    number = served.submit(project="count", minutes=0.1)
    record = served.ended(number)
    assert (record["state"]["type"], record["state"]["name"]) == ("FAILED", "TimedOut")
    assert "ran longer than 6 s" in served.tasks(number)["count"]["state"]["message"]
    assert stages_living(served.clone.root) == []


def test_two_experiments_take_turns_at_one_gpu_and_leave_the_folder_alone(served: Served) -> None:
    (served.clone.root / "kept.txt").unlink(missing_ok=True)
    place = served.clone.root / "projects" / "count"
    before = {name: (place / name).read_text() for name in ("params.yaml", "dvc.yaml")}
    numbers = [served.submit(project="count", overrides={"train": {"steps": steps}}) for steps in (10, 20)]
    messages = [served.ended(number)["state"]["message"] for number in numbers]
    tasks = [served.tasks(number)["count"] for number in numbers]
    one, two = sorted((moment(task["start_time"]), moment(task["end_time"])) for task in tasks)
    assert one[1] < two[0], "both had the slot"
    runs = [served.run(number) for number in numbers]
    assert max(moment(r["start_time"]) for r in runs) < min(moment(r["end_time"]) for r in runs), "never side by side"
    assert any("waits for gpu-0" in line for number in numbers for _, line in served.lines(number))
    names = [message.split("dvc exp apply ")[1].rstrip("`") for message in messages]
    listed = served.clone.run("dvc", "exp", "list", "--name-only", place=place).stdout.split()
    assert sorted(names) == sorted(listed)
    assert {name: (place / name).read_text() for name in before} == before
    assert served.clone.run("git", "status", "--short", *before, place=place).stdout == ""


def test_one_run_at_a_time_works_in_the_checkout(served: Served) -> None:
    set_params(served.clone, "count", 60)
    (served.clone.root / "kept.txt").unlink(missing_ok=True)
    first = served.submit(project="count")
    served.says(first, BEGUN)
    second = served.submit(project="tick")
    served.says(second, "waits for another run in this checkout")
    ends = [served.ended(number) for number in (first, second)]
    assert [record["state"]["type"] for record in ends] == ["COMPLETED", "COMPLETED"]
    assert moment(served.tasks(second)["tock"]["start_time"]) > moment(served.tasks(first)["count"]["end_time"])


def test_a_killed_holders_slot_is_free_within_a_minute_and_the_next_run_goes_on(served: Served) -> None:
    kept = served.clone.root / "kept.txt"
    kept.unlink(missing_ok=True)
    set_params(served.clone, "count", 30)
    number = served.submit(project="count")
    served.says(number, BEGUN)
    wait(lambda: kept.exists() and int(kept.read_text() or 0) >= 3, 20, kept.read_text)
    assert served.taken() == 1
    served.process_of(number).send_signal(signal.SIGKILL)
    assert wait(lambda: not stages_living(served.clone.root), 15, lambda: str(stages_living(served.clone.root))) < 15
    assert wait(lambda: served.taken() == 0, 60, lambda: "the slot is held") < 60
    assert served.ended(number)["state"]["type"] == "CRASHED"
    done = int(kept.read_text())
    again = served.submit(project="count")
    assert served.ended(again)["state"]["type"] == "COMPLETED"
    said = next(line for _, line in served.lines(again) if BEGUN in line)
    assert int(said.removeprefix(BEGUN)) == done > 0


def test_an_interval_fires(served: Served) -> None:
    body = [{"schedule": {"interval": 5}, "active": True, "parameters": {"project": "tick", "stop_at": "tock"}}]
    made = served.ask("POST", f"/deployments/{served.deployment}/schedules", body)
    try:
        wait(lambda: [run for run in fired(served) if run["parameters"].get("stop_at")], 60, lambda: str(fired(served)))
    finally:
        served.ask("DELETE", f"/deployments/{served.deployment}/schedules/{made[0]['id']}")


def test_the_cron_fires_each_minute(served: Served) -> None:
    """Started with the server, so that the minute has mostly passed."""
    of_cron = lambda: [run for run in fired(served) if not run["parameters"].get("stop_at")]  # noqa: E731
    wait(of_cron, 75, lambda: "no run")
    run = of_cron()[0]
    assert run["parameters"]["project"] == "tick"
    assert moment(run["expected_start_time"]).second == 0
    assert (moment(run["start_time"]) - moment(run["expected_start_time"])).total_seconds() < 40


def test_a_slot_whose_holder_says_no_more_is_freed_when_its_lease_ends(served: Served, abandoned: float) -> None:
    limits = lambda: served.ask("GET", "/v2/concurrency_limits/abandoned")  # noqa: E731
    wait(lambda: limits()["active_slots"] == 0, max(1.0, 65 - (time.monotonic() - abandoned)), lambda: str(limits()))


def fired(served: Served) -> list[dict[str, Any]]:
    """Runs that a schedule started and that ended well."""
    body = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}, "limit": 200}
    return [run for run in served.ask("POST", "/flow_runs/filter", body) if run["auto_scheduled"]]
