"""A training that is killed, or told to stop, goes on where its state stands, to the same bytes; nothing is left."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.harness import Clone, make_clone
from tests.support.processes import begin

pytestmark = pytest.mark.e2e

STEPS = 30


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    made = make_clone(tmp_path_factory.mktemp("killed"), "clone")
    made.params({"train.steps": STEPS, "train.save_every": 10, "train.ema_decay": 0.9})
    (made.root / "local.yaml").write_text("state_every: 5\n")
    made.repro("latents", "text")
    return made


def train_until_a_state(clone: Clone, log: Path, *command: str) -> "subprocess.Popen[bytes]":
    """Start a command that trains, in a session of its own, and wait for a state on disk."""
    environment = clone.launching()  # what is killed with all that it started has a DVC of its own
    with log.open("wb") as file:
        process = begin(
            command,
            cwd=clone.root,
            env={**environment, "PYTHONPATH": os.pathsep.join([environment["PYTHONPATH"], str(clone.root)])},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + 240
    while not list(clone.store.glob("runs/*/state-*.sealed.safetensors")):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    return process


def kill_while_training(clone: Clone, signum: int) -> None:
    """Start `dvc repro train` as a user does, wait for a state on disk, and stop the whole process group."""
    process = train_until_a_state(clone, clone.store.with_name("killed.log"), "dvc", "repro", "train")
    os.killpg(process.pid, signum)
    process.wait()


def adapters(clone: Clone) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((clone.root / "data/lora").glob("*.safetensors"))}


def test_killed_and_resumed_equals_a_straight_run(clone: Clone, tmp_path: Path) -> None:
    kill_while_training(clone, signal.SIGKILL)
    ran = clone.repro("train")
    assert "train: resuming after step" in ran.output
    resumed, lock = adapters(clone), clone.lock()
    assert sorted(resumed) == [f"{kind}-0000{step}.safetensors" for kind in ("ema", "step") for step in (20, 30)]
    straight = Clone(clone.root, tmp_path / "store", clone.cache)
    again = straight.repro("--force", "--single-item", "train")
    assert "resuming" not in again.output
    assert adapters(clone) == resumed
    assert clone.lock() == lock


def test_a_training_that_is_told_to_stop_fails(clone: Clone, tmp_path: Path) -> None:
    """A stage ended by a signal exits non-zero: DVC must not commit half a result."""
    fresh = Clone(clone.root, tmp_path / "store", clone.cache)
    before = clone.lock()
    fresh.params({"train.seed": 1})
    kill_while_training(fresh, signal.SIGTERM)
    assert fresh.lock() == before
    assert fresh.repro("train").stages
    assert fresh.lock()["data/lora"] != before["data/lora"]


@pytest.mark.parametrize("whom", ["everything, by Ctrl-C", "everything, by SIGTERM", "make alone"])
def test_stopped_under_make_it_saves_its_state_and_says_so_last(clone: Clone, tmp_path: Path, whom: str) -> None:
    fresh, log = Clone(clone.root, tmp_path / "store", clone.cache), tmp_path / "log"
    seed = len(whom)  # another training each time: else the last run comes out of the run-cache
    changes = {"train.seed": seed, "train.steps": 3000, "train.save_every": 3000}
    fresh.params({**changes, "train.optimizer.schedule": "constant"})
    before = clone.lock()
    makefile = tmp_path / "Makefile"  # the checkout's own would look whether all is installed first
    makefile.write_text(f"repro:\n\t@exec {sys.executable} -m eridiff.reproduce train\n")
    process = train_until_a_state(fresh, log, "make", "-f", str(makefile), "repro")
    start = time.monotonic()
    if whom == "make alone":
        process.terminate()
    else:
        os.killpg(process.pid, signal.SIGINT if "Ctrl-C" in whom else signal.SIGTERM)
    assert process.wait(60) != 0
    assert time.monotonic() - start < 20  # by itself it takes two
    said = re.fullmatch(r"stopped after step (\d+) of 3000: dvc repro goes on from there", lines(log)[-1])
    assert said, log.read_text()
    assert fresh.lock() == before
    fresh.params({"train.steps": int(said[1]) + 2})
    again = fresh.run(sys.executable, "-m", "eridiff.reproduce", "train", PYTHONPATH=str(fresh.root)).stdout
    assert f"train: resuming after step {said[1]} of {int(said[1]) + 2}" in again
    assert "had been killed" not in again  # DVC's warning of what it died with


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines()


@pytest.mark.parametrize("name", ["rwlock", "dvc.lock"])
def test_a_file_of_dvcs_that_a_kill_cut_short_stops_nothing(clone: Clone, name: str) -> None:
    path = clone.root / (".dvc/tmp/rwlock" if name == "rwlock" else name)
    clone.commit()
    path.write_bytes(path.read_bytes()[:20] if name == "dvc.lock" else b"")
    alone = clone.run("dvc", "repro", "check", check=False)
    assert alone.returncode == 255
    assert ("JSON structure is corrupted" if name == "rwlock" else "'./dvc.lock' is invalid") in alone.stdout
    ours = clone.run(sys.executable, "-m", "eridiff.reproduce", "buckets", PYTHONPATH=str(clone.root)).stdout
    assert f"{path.relative_to(clone.root)} was cut short when a process was killed" in ours
    assert "didn't change, skipping" in ours
    assert clone.repro("buckets").stages == []


def test_no_untracked_file_is_left(clone: Clone) -> None:
    """After all of the above."""
    clone.run("git", "add", "dvc.lock", "params.yaml")
    assert clone.run("git", "status", "--porcelain", "--untracked-files=all").stdout.count("??") == 0
