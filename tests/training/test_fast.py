"""The fast step against the plain one: the same losses, adapters, states and messages."""

from pathlib import Path
from typing import Any

import pytest
import torch

from eridiff.acceleration.choose import Levers
from eridiff.core.errors import TrainError
from eridiff.training import loss_scale
from eridiff.training import train as training_loop
from eridiff.training.fast import FastStep
from eridiff.training.prepare import prepare
from eridiff.training.run import Machine, Run, prepare_run
from eridiff.training.train import Table, train
from tests.support import training
from tests.support.bases import FAMILIES, source
from tests.training.test_train import SmallMemory

EAGER = Levers(compile=False, graph=False, channels_last=False)


class Fast:
    """`prepare`, but with the fast step of a CPU."""

    def __init__(self, train_step: Any, run: Run, optimizer: torch.optim.Optimizer, _: Any) -> None:
        self.step = FastStep(train_step, run, optimizer, EAGER)

    def __enter__(self) -> FastStep:
        return self.step

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_loop, "prepare", Fast)


def both(family: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Table]:
    """Tables of the same training by the plain step and by the fast one."""
    params, tables = training.params_of(changes), []
    data = training.random_set(family, tmp_path / "data", params, ((128, 96), (96, 96)))
    for name, entered in (("plain", prepare), ("fast", Fast)):
        monkeypatch.setattr(training_loop, "prepare", entered)
        tables.append(train(training.start(family, params), data, tmp_path / name, 2)[0])
    return tables


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_losses_and_norms_are_those_of_the_plain_step(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With micro-batches, clipping, a warm-up and an average, over buckets of two shapes; each row at its own step."""
    optimizer = {"lr": 1e-2, "max_grad_norm": 0.02, "warmup_steps": 2}
    changes = {"steps": 5, "accumulation": 2, "ema_decay": 0.5, "optimizer": optimizer}
    plain, fast = both(family, changes, tmp_path, monkeypatch)
    assert fast["lr"] == plain["lr"]
    for column in ("loss", "grad_norm"):
        assert fast[column] == pytest.approx(plain[column], rel=1e-3)


@pytest.mark.slow
def test_fp16_goes_on_with_a_halved_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step begins with the scale that the one before it ended with: its row is read by then."""
    monkeypatch.setattr(loss_scale, "FIRST_SCALE", 2.0**40)
    _, fast = both(FAMILIES[0], {"precision": "fp16", "optimizer": {"lr": 1e-3}}, tmp_path, monkeypatch)
    assert fast["loss_scale"] == [fast["loss_scale"][0]] * 4
    said = capsys.readouterr().out
    assert "step 1: gradients overflow fp16" in said
    assert "step 2: gradients overflow fp16" not in said


@pytest.mark.slow
def test_fp16_halves_its_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fast = both(FAMILIES[0], {"precision": "fp16", "optimizer": {"lr": 1e-3}}, tmp_path, monkeypatch)
    assert fast["loss_scale"] == plain["loss_scale"]
    assert fast["loss"] == pytest.approx(plain["loss"], rel=0.01)


def test_a_stopped_fast_training_goes_on(fast: None, tmp_path: Path) -> None:
    """To the same table as one that was not."""

    class Killed(Exception):
        pass

    def kill(step: int) -> None:
        if step == 3:
            raise Killed

    family, params = FAMILIES[0], training.params_of()
    data = training.random_set(family, tmp_path / "data", params)
    straight, _ = train(training.start(family, params), data, tmp_path / "straight", 2)
    with pytest.raises(Killed):
        train(training.start(family, params), data, tmp_path / "killed", 2, kill)
    assert train(training.start(family, params), data, tmp_path / "killed", 2)[0] == straight


def test_a_row_that_is_not_finite_ends_it_one_step_later(fast: None, tmp_path: Path) -> None:
    """And names its own step; nothing of it is saved."""
    family, params = FAMILIES[0], training.params_of({"steps": 9, "save_every": 9})
    run, data = training.start(family, params), training.random_set(family, tmp_path / "data", params)
    plain, calls = run.family.predict, []

    def overflow(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return plain(*arguments) * (float("nan") if len(calls) >= 5 else 1.0)

    run.family.predict = overflow  # type: ignore[method-assign]
    try:
        with pytest.raises(TrainError, match=r"step 5: the loss is nan .*Nothing of this step is kept"):
            train(run, data, tmp_path / "state", 4)
    finally:
        run.family.predict = plain  # type: ignore[method-assign]
    assert len(calls) == 6
    assert [path.name for path in (tmp_path / "state").glob("state-*")] == ["state-000004.sealed.safetensors"]


@pytest.mark.slow
def test_less_is_kept_where_memory_runs_out(fast: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family, params = FAMILIES[0], training.params_of({"accumulation": 2})
    data = training.random_set(family, tmp_path / "data", params)
    expected, _ = train(training.start(family, params), data, tmp_path / "plenty", 100)
    run = training.start(family, params, activation_checkpointing=None)
    SmallMemory(run, 4, 2)
    found, _ = train(run, data, tmp_path / "little", 100)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert capsys.readouterr().out.count("has too little memory at step 2") == 2


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_and_recorded_steps_are_the_plain_ones(family: str, precision: str, tmp_path: Path) -> None:
    """On CUDA, with micro-batches and buckets of two shapes."""
    tables = []
    for deterministic in (True, False):
        changes = {"precision": precision, "deterministic": deterministic, "accumulation": 2, "steps": 5}
        params = training.params_of(changes | {"optimizer": {"lr": 1e-3}})
        place = tmp_path / str(deterministic)
        machine = Machine(device=torch.device("cuda"), store=place)
        base = source(family)
        run = prepare_run(params, training.load_family(family), base, base.config("vae"), machine)
        data = training.random_set(family, place, params, ((128, 96), (96, 96)))
        tables.append(train(run, data, place / "state", 50)[0])
    near = {"fp32": 2e-3, "bf16": 0.05, "fp16": 0.01}[precision]
    assert tables[1]["loss"] == pytest.approx(tables[0]["loss"], rel=near)
