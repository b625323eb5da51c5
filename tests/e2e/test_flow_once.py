"""`make flow`: the pipeline, once, with a server only for as long as it takes."""

import hashlib
import json
import re
import signal
import sqlite3
import sys
from base64 import b64decode
from pathlib import Path

import pytest

from eridiff.flow.server import environment, home
from tests.e2e.flows import lay_database, living, make_toys, wait
from tests.e2e.harness import make_clone, parse
from tests.support.processes import begin

pytestmark = pytest.mark.flow


def test_it_runs_once_and_then_nothing_does(tmp_path: Path) -> None:
    clone = make_clone(tmp_path, "checkout")
    extra = {**clone.launching(), "XDG_DATA_HOME": str(tmp_path / "data"), "ERIDIFF_GPUS": "0"}
    words = (sys.executable, "-m", "eridiff.flow.server", "once", sys.executable, "-m", "stages.flow", "flow")
    first = clone.run(*words, **extra)
    assert "flow: Completed: stages: 8 Completed" in first.stdout
    assert re.search(r"latents: 20 samples, 20 encoded, 0 reused", first.stdout)
    again = clone.run(*words, "--stop-at", "export", **extra)
    assert "flow: Cached: stages: 7 Cached" in again.stdout
    assert parse(0, clone.run("dvc", "repro").stdout).stages == [], "dvc repro sees it otherwise"
    wrong = clone.run(*words, "--set", "train.stepz=3", check=False, **extra)
    assert wrong.returncode == 1
    assert "unknown key 'train.stepz' (value 3). Did you mean 'steps'?" in wrong.stdout
    assert living(clone.root) == []

    shown = artifacts(tmp_path / "data")
    keys = {"checkout-cache", "checkout-export", "checkout-loss", "checkout-samples"}
    assert [set(one) for one in shown] == [keys, keys]
    assert "| latents | 20 | 20 | 0 |" in shown[0]["checkout-cache"]
    assert "| latents | | 0 | all | not started |" in shown[1]["checkout-cache"]
    exported = clone.root / "data/export/eridraw.safetensors"
    digest = re.search(r"`data/export/eridraw.safetensors` \| [\d,]+ \| `([0-9a-f]{64})`", shown[0]["checkout-export"])
    assert digest and digest[1] == hashlib.sha256(exported.read_bytes()).hexdigest()
    assert shown[0]["checkout-loss"].startswith("![loss by step](data:image/svg+xml;base64,")
    grid = re.search(r"!\[samples\]\(data:image/png;base64,([^)]+)\)", shown[0]["checkout-samples"])
    assert grid and b64decode(grid[1]) == (clone.root / "data/samples/grid.png").read_bytes()


def artifacts(data: Path) -> list[dict[str, str]]:
    """Key -> Markdown of each run's artifacts, the first run's first, from the database that outlives the server."""
    place = home({"XDG_DATA_HOME": str(data)}) / "prefect.db"
    with sqlite3.connect(place) as base:
        rows = base.execute("select flow_run_id, key, data from artifact order by created").fetchall()
    base.close()
    found: dict[str, dict[str, str]] = {}
    for run, key, text in rows:
        found.setdefault(run, {})[key] = json.loads(text)
    return list(found.values())


def test_the_environment_is_quiet_and_local() -> None:
    found = environment({"HOME": "/home/x", "PATH": "/bin"})
    assert found["DO_NOT_TRACK"] == "1" and found["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert found["PREFECT_SERVER_API_HOST"] == "127.0.0.1"
    assert environment({"PREFECT_SERVER_API_HOST": "0.0.0.0"})["PREFECT_SERVER_API_HOST"] == "0.0.0.0"


STEPS = """
import time
from eridiff.core.errors import run_main
from eridiff.core.stopping import Stopped, stop_in_order
def main():
    with stop_in_order(str) as asked:
        for step in range(1, 3000):
            print("step", step, flush=True)
            time.sleep(0.1)
            if signum := asked():
                time.sleep(4)  # as long as a step and its state may take: longer than the first signals are apart
                raise Stopped(signum, f"stopped after step {step} of 3000: dvc repro goes on from there")
run_main(main)
"""


def test_ctrl_c_lets_a_training_save_its_state_and_what_it_says_is_the_last_line(tmp_path: Path) -> None:
    clone = make_toys(tmp_path)
    place = clone.root / "projects/tick"
    (place / "steps.py").write_text(STEPS)
    stage = {"cmd": "PYTHONPATH=../.. python steps.py", "outs": ["never.txt"]}
    (place / "dvc.yaml").write_text(json.dumps({"stages": {"train": stage}}))
    (place / ".dvc/tmp").mkdir(exist_ok=True)
    (place / ".dvc/tmp/rwlock").write_text("")  # of a DVC that was killed as it wrote it
    words = [sys.executable, "-m", "eridiff.flow.server", "once", sys.executable, "-m", "stages.flow", "flow"]
    environment = {**clone.environment(), "XDG_DATA_HOME": str(tmp_path / "data"), "ERIDIFF_GPUS": ""}
    lay_database(tmp_path / "data")
    log = tmp_path / "log"
    with log.open("w") as file:
        process = begin([*words, "--project", "tick"], cwd=clone.root, env=environment, stdout=file, stderr=file)
    wait(lambda: "step 3" in log.read_text() or process.poll() is not None, 240, log.read_text)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, log.read_text()
    lines = log.read_text().splitlines()
    assert re.fullmatch(r"stopped after step \d+ of 3000: dvc repro goes on from there", lines[-1]), lines
    assert any(".dvc/tmp/rwlock was cut short" in line for line in lines)
    assert living(clone.root) == []
