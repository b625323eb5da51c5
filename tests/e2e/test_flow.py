"""Runs under a served Prefect: what each stage's task says, the form, retries, schedules, and that nothing leaves."""

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from eridiff.flow import gpu_slots as slots
from tests.e2e.flows import Served, make_toys, moment, serving, set_params, wait

pytestmark = pytest.mark.flow


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("flow")
    schedules = ("--cron", "* * * * *", "--every", "1", "--project", "tick")
    with serving(Served(make_toys(folder), folder / "home-of-prefect", *schedules)) as one:
        yield one


@pytest.fixture(scope="module")
def abandoned(served: Served) -> float:
    """When a slot was taken by a holder that says no more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{served.port}/api")
        patch.setenv("PREFECT_API_AUTH_STRING", served.secret)
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
    assert kinds["TrainParams"]["properties"]["precision"]["enum"] == ["fp32", "bf16", "fp16"]


def test_stages_run_side_by_side_then_are_cached_and_restored(served: Served) -> None:
    first = served.submit(project="pair")
    assert served.ended(first)["state"]["message"] == "stages: 3 Completed"
    tasks = served.tasks(first)
    assert {name: task["state"]["name"] for name, task in tasks.items()} == dict.fromkeys(
        ("left", "right", "both"), "Completed"
    )
    left, right = (sorted((moment(tasks[n]["start_time"]), moment(tasks[n]["end_time"]))) for n in ("left", "right"))
    assert max(left[0], right[0]) < min(left[1], right[1]), "they did not overlap"
    assert (left[1] - served.says(first, "left begins")).total_seconds() > 1.5, "the line came with the end, not live"

    set_params(served.clone, "pair", 7)
    again = served.submit(project="pair")
    served.ended(again)
    assert served.states(again) == {"left": "Cached", "right": "Completed", "both": "Completed"}
    set_params(served.clone, "pair", 3000)
    back = served.submit(project="pair", stop_at="right")
    served.ended(back)
    assert served.states(back) == {"right": "Restored"}


def test_a_run_with_nothing_to_do_takes_seconds_and_starts_no_stage(served: Served) -> None:
    served.ended(served.submit(project="pair", stop_at="left"))
    took = []
    while not took or min(took) >= 10:  # two of its own; a schedule's run may be at work, or another program
        assert len(took) < 4, f"{took} s for nothing"
        number = served.submit(project="pair", stop_at="left")
        record = served.ended(number)
        took.append(record["total_run_time"])
        assert (record["state"]["name"], record["state"]["message"]) == ("Cached", "stages: 1 Cached")
        assert served.states(number) == {"left": "Cached"}
        assert not [line for _, line in served.lines(number) if "Stage" in line], "DVC was asked about each stage"


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


def test_an_experiment_of_what_git_does_not_know_is_refused_with_two_commands(served: Served) -> None:
    place = served.clone.root / "projects" / "bad"
    record = served.ended(served.submit(project="bad", overrides={"train": {"steps": 5}}))
    assert record["state"]["type"] == "FAILED"
    two = f"  git -C {place} add .\n  git -C {place} commit -m 'project bad' ."
    assert record["state"]["message"].endswith("\n" + two)
    for command in two.splitlines():
        served.clone.run("sh", "-c", command)
    again = served.ended(served.submit(project="bad", overrides={"train": {"steps": 5}}))
    assert again["state"]["message"] == "fails: the cat is no dog.\nTake a dog."


def test_a_stage_that_touches_a_network_is_tried_again(served: Served) -> None:
    number = served.submit(project="far")
    assert served.ended(number)["state"]["type"] == "COMPLETED"
    fetch = served.tasks(number)["fetch"]
    assert (fetch["run_count"], fetch["state"]["name"]) == (2, "Completed")


@pytest.mark.parametrize("kind", ["CronSchedule", "IntervalSchedule"])
def test_a_schedule_fires_each_minute(served: Served, kind: str) -> None:
    """Last but two, and started with the server, so that the minute has mostly passed."""
    wait(lambda: fired(served, kind), 130, lambda: "no run")
    run = fired(served, kind)[0]
    assert run["parameters"] == {"project": "tick"}
    assert kind != "CronSchedule" or moment(run["expected_start_time"]).second == 0
    assert (moment(run["start_time"]) - moment(run["expected_start_time"])).total_seconds() < 55


def fired(served: Served, kind: str) -> list[dict[str, Any]]:
    """Runs that a schedule of a kind started and that ended well."""
    body = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}, "limit": 200}
    runs = served.ask("POST", "/flow_runs/filter", body)
    return [run for run in runs if run["auto_scheduled"] and run["created_by"]["display_value"] == kind]


def test_a_slot_whose_holder_says_no_more_is_freed_when_its_lease_ends(served: Served, abandoned: float) -> None:
    limits = lambda: served.ask("GET", "/v2/concurrency_limits/abandoned")  # noqa: E731
    wait(lambda: limits()["active_slots"] == 0, max(5.0, 70 - (time.monotonic() - abandoned)), lambda: str(limits()))


def test_nothing_was_asked_of_the_world_outside(served: Served) -> None:
    assert served.outside.asked == []
    code = "import httpx; httpx.get('https://telemetry.invalid/x', timeout=5)"  # the client that Prefect's own uses
    environment = {**served.environment, "NO_PROXY": "127.0.0.1"}
    assert subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=False, timeout=300
    ).returncode
    assert served.outside.asked == ["CONNECT telemetry.invalid:443 HTTP/1.1"]
