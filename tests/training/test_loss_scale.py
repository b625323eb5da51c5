"""Training in fp16: gradients in range, steps done again where they are not, and the same numbers after a kill."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eridiff.core.errors import BaseError, TrainError
from eridiff.family import load_family
from eridiff.models.load import load_denoiser
from eridiff.models.quantise import Storage
from eridiff.training import loss_scale as lossscale
from eridiff.training import plain as plain_step
from eridiff.training.data import TrainingSet
from eridiff.training.loss_scale import FIRST_SCALE, STEPS_TO_DOUBLE, next_scale, unscale
from eridiff.training.resume import states
from eridiff.training.run import Run
from eridiff.training.train import Table, train
from eridiff.weights.pointers import ModelSource
from tests.support import training
from tests.support.bases import FAMILIES, source
from tests.support.training import shaken

FAMILY = FAMILIES[0]


def half(changes: dict[str, Any] | None = None, family: str = FAMILY) -> Run:
    return training.start(family, training.params_of({"precision": "fp16", **(changes or {})}))


def gradients(run: Run, data: TrainingSet) -> Tensor:
    """Of one step, in one vector."""
    training.do_step(run, data.batch([0, 1], step=1, first_index=0), step=1)
    return torch.cat([t.grad.flatten() for t in run.adapters.values() if t.grad is not None])


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    return training.random_set(FAMILY, tmp_path_factory.mktemp("data"), training.params_of())


def test_the_scale_is_a_function_of_the_table() -> None:
    assert next_scale([]) == FIRST_SCALE
    assert next_scale([8.0]) == 8.0
    assert next_scale([16.0] + [8.0] * (STEPS_TO_DOUBLE - 1)) == 8.0
    assert next_scale([16.0] + [8.0] * STEPS_TO_DOUBLE) == 16.0
    assert next_scale([8.0] * STEPS_TO_DOUBLE + [16.0] * 3) == 16.0


def test_unscaling_is_the_scalers() -> None:
    """torch.amp.GradScaler divides to the same bits, and sees the same overflow."""
    ours, theirs = ([torch.nn.Parameter(torch.zeros(size)) for size in (5, 3)] for _ in range(2))
    for bad in (1.0, float("inf"), float("nan")):
        scaler = torch.amp.GradScaler("cpu", init_scale=FIRST_SCALE)
        optimizer = torch.optim.SGD(theirs)
        for tensors in (ours, theirs):
            tensors[0].grad, tensors[1].grad = torch.tensor([3e4, -1e-3, 7.0, 0, 1e-7]), torch.tensor([1.0, bad, 2])
        scaler.scale(torch.zeros(()))  # makes its state
        scaler.unscale_(optimizer)
        found = scaler._found_inf_per_device(optimizer)[torch.device("cpu")]
        assert unscale(ours, FIRST_SCALE) is not bool(found.item())
        for mine, its in zip(ours, theirs, strict=True):
            assert mine.grad is not None and its.grad is not None
            assert torch.equal(mine.grad.nan_to_num(9.0), its.grad.nan_to_num(9.0))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_fp16_is_near_fp32(family: str, tmp_path: Path) -> None:
    tables: dict[str, Table] = {}
    for precision in ("fp32", "fp16"):
        params = training.params_of({"precision": precision, "optimizer": {"lr": 1e-3}})
        run = training.start(family, params)
        tables[precision], _ = train(run, training.random_set(family, tmp_path / precision, params), tmp_path, 9)
        assert {tensor.dtype for tensor in run.adapters.values()} == {torch.float32}
        for path in states(tmp_path):
            path.unlink()
    for name, near in (("loss", 5e-3), ("grad_norm", 5e-2), ("lr", 0)):
        assert tables["fp16"][name] == pytest.approx(tables["fp32"][name], rel=near)
    assert tables["fp16"]["loss"] != tables["fp32"]["loss"]
    assert tables["fp16"]["loss_scale"] == [FIRST_SCALE] * 4
    assert "loss_scale" not in tables["fp32"]


def test_small_gradients_do_not_vanish(data: TrainingSet) -> None:
    """Of a loss that is shared by ten thousand micro-batches: without the scale hardly a gradient is left."""
    changes = {"accumulation": 10_000}
    expected = gradients(shaken(training.start(FAMILY, training.params_of(changes))), data)
    scaled, plain = shaken(half(changes)), shaken(half(changes))
    scaled.loss_scale = FIRST_SCALE
    assert distance(gradients(scaled, data) / FIRST_SCALE, expected) < 0.06
    assert distance(gradients(plain, data), expected) > 0.5


@pytest.mark.slow
def test_a_step_that_overflows_is_done_again(
    data: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends as if it had begun with the scale that it came to."""
    monkeypatch.setattr(lossscale, "FIRST_SCALE", 2.0**40)
    run = half({"accumulation": 2})
    table, _ = train(run, data, tmp_path / "high", 9)
    found = table["loss_scale"][0]
    assert FIRST_SCALE <= found < 2.0**40
    assert table["loss_scale"] == [found] * 4
    assert f"step 1: gradients overflow fp16; again with the loss scaled by {found:g}\n" in capsys.readouterr().out
    monkeypatch.setattr(lossscale, "FIRST_SCALE", found)
    again = half({"accumulation": 2})
    assert train(again, data, tmp_path / "found", 9)[0] == table
    assert all(torch.equal(again.adapters[name], tensor) for name, tensor in run.adapters.items())


@pytest.mark.slow
def test_a_resumed_training_goes_on_with_the_scale(
    data: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def kill(step: int) -> None:
        if step == 3:
            raise Killed

    monkeypatch.setattr(lossscale, "FIRST_SCALE", 2.0**40)
    monkeypatch.setattr(lossscale, "STEPS_TO_DOUBLE", 2)  # and so it is doubled, and halved again, on the way
    straight, _ = train(half(), data, tmp_path / "straight", 1)
    with pytest.raises(Killed):
        train(half(), data, tmp_path / "killed", 1, kill)
    assert train(half(), data, tmp_path / "killed", 1)[0] == straight


@pytest.mark.slow
def test_what_no_scale_mends(data: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = half()
    with monkeypatch.context() as patch:
        patch.setattr(plain_step, "unscale", lambda *_: False)
        with pytest.raises(TrainError, match=r"step 1: gradients overflow fp16 at any scale\. Take train\.precision"):
            train(run, data, tmp_path / "gradients", 9)
    run = half()
    plain = run.family.predict
    monkeypatch.setattr(run.family, "predict", lambda *given: plain(*given) * 1e6)  # as activations that overflow
    with pytest.raises(TrainError, match=r"step 1: the loss is inf .*train\.precision bf16 or fp32"):
        train(run, data, tmp_path / "loss", 9)
    assert not list((tmp_path / "loss").rglob("*.safetensors"))


def test_weights_that_fp16_cannot_hold(tmp_path: Path) -> None:
    """Refused by name when the base is loaded, in each layout."""
    from safetensors.torch import load_file, save_file

    family, base = load_family(FAMILY), source(FAMILY)
    component = family.DENOISER
    for path in base.folders[component].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (weights,) = tmp_path.glob("*.safetensors")
    tensors = load_file(weights)
    name = next(name for name, tensor in sorted(tensors.items()) if tensor.dim() == 2)
    tensors[name] = tensors[name].float()
    tensors[name][0, 0] = 7e4
    save_file(tensors, weights)
    storage = Storage(kind=None, device=torch.device("cpu"))
    changed = ModelSource(**{**vars(base), "folders": {**base.folders, component: tmp_path}})
    message = rf"safetensors: {name} of {component} has numbers beyond fp16's range: take bf16 or fp32"
    with pytest.raises(BaseError, match=message):
        load_denoiser(family, changed, torch.float16, storage)
    assert load_denoiser(family, changed, torch.bfloat16, storage)
