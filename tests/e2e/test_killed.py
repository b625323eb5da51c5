"""A training killed without warning goes on where its state stands, to the same bytes."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.harness import Clone, make_clone

pytestmark = pytest.mark.e2e

STEPS = 60


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    made = make_clone(tmp_path_factory.mktemp("killed"), "clone", cold=True)
    made.params({"train.steps": STEPS, "train.save_every": 20, "train.ema_decay": 0.9})
    (made.root / "local.yaml").write_text("state_every: 5\n")
    return made


def kill_while_training(clone: Clone, signum: int) -> None:
    """Start `dvc repro train`, wait for a state on disk, and stop the whole process group."""
    process = subprocess.Popen(
        ["dvc", "repro", "train"],
        cwd=clone.root,
        env=clone.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(clone.store.glob("runs/*/state.safetensors")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signum)
    process.wait()


def adapters(clone: Clone) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((clone.root / "data/lora").glob("*.safetensors"))}


def test_killed_and_resumed_equals_a_straight_run(clone: Clone, tmp_path: Path) -> None:
    clone.repro("latents", "text")
    kill_while_training(clone, signal.SIGKILL)
    ran = clone.repro("train")
    assert "train: resuming after step" in ran.output
    resumed, lock = adapters(clone), clone.lock()
    assert sorted(resumed) == [f"{kind}-0000{step}.safetensors" for kind in ("ema", "step") for step in (40, 60)]
    straight = Clone(clone.root, tmp_path / "store", clone.cache, cold=True)
    again = straight.repro("--force", "--single-item", "train")
    assert "resuming" not in again.output
    assert adapters(clone) == resumed
    assert clone.lock() == lock


def test_a_training_that_is_told_to_stop_fails(clone: Clone, tmp_path: Path) -> None:
    """A stage ended by a signal exits non-zero: DVC must not commit half a result."""
    fresh = Clone(clone.root, tmp_path / "store", clone.cache, cold=True)
    before = clone.lock()
    fresh.params({"train.seed": 1})
    kill_while_training(fresh, signal.SIGTERM)
    assert fresh.lock() == before
    assert fresh.repro("train").stages
    assert fresh.lock()["data/lora"] != before["data/lora"]
