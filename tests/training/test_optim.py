"""Learning rate, average and optimizers against torch's own and closed forms."""

import math
import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch

from eridiff.core.noise import generator
from eridiff.params.train import OPTIMIZERS, OptimizerKind, OptimParams
from eridiff.training.optim import MovingAverage, learning_rate, make_optimizer
from eridiff.training.resume import load_state, save_state
from tests.conftest import ROOT


def torch_rates(params: OptimParams, steps: int) -> list[float]:
    """Rates of steps 1..steps by torch's schedulers: a linear warm-up, then a constant or CosineAnnealingLR."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=params.lr)
    warmup, rest = params.warmup_steps, max(1, steps - params.warmup_steps)
    parts: list[Any] = []
    if warmup:
        parts.append(torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: min(1.0, (epoch + 1) / warmup)))
    if params.schedule == "cosine":
        parts.append(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=rest))
    else:
        parts.append(torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0))
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, parts, [warmup] if warmup else [])
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_learning_rate_equals_torch(schedule: Any, warmup: int) -> None:
    params = OptimParams(lr=3e-4, schedule=schedule, warmup_steps=warmup)
    ours = [learning_rate(params, step, 30) for step in range(1, 31)]
    assert ours == pytest.approx(torch_rates(params, 30), rel=1e-9)


def test_learning_rate_at_its_marks() -> None:
    params = OptimParams(lr=1.0, schedule="cosine", warmup_steps=10)
    assert [learning_rate(params, step, 110) for step in (1, 10, 11, 61)] == pytest.approx([0.1, 1.0, 1.0, 0.5])
    assert learning_rate(params, 110, 110) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))
    assert learning_rate(params, 5, 5) == 0.5  # a warm-up longer than the training
    assert learning_rate(OptimParams(lr=2.0), 1, 1) == 2.0


def test_the_average_in_closed_form() -> None:
    values = [torch.full((2,), value) for value in (1.0, 5.0, -3.0, 2.0)]
    average = MovingAverage({"a": values[0]}, 0.9)
    for value in values[1:]:
        average.update({"a": value})
    expected = 0.9**3 * 1.0 + 0.1 * (0.9**2 * 5.0 + 0.9 * -3.0 + 2.0)
    assert average.tensors["a"].tolist() == pytest.approx([expected] * 2, rel=1e-6)
    assert values[0].tolist() == [1.0, 1.0]  # the first tensor is copied, not moved


def tensors(seed: int = 0) -> list[torch.Tensor]:
    shapes = [(3, 4), (128, 64)]  # the second is large enough for 8-bit moments
    return [torch.randn(*s, generator=generator(seed, 0, i, "test")).requires_grad_() for i, s in enumerate(shapes)]


def fill_gradients(parameters: list[torch.Tensor], step: int) -> None:
    for index, parameter in enumerate(parameters):
        parameter.grad = torch.randn(*parameter.shape, generator=generator(9, step, index, "gradient"))


def adamw_by_hand(parameters: list[torch.Tensor], params: OptimParams, steps: int) -> list[torch.Tensor]:
    """Loshchilov and Hutter 2019, algorithm 2, in fp64."""
    found = []
    for index, parameter in enumerate(parameters):
        x, m, v = parameter.detach().double(), torch.zeros(()), torch.zeros(())
        for step in range(1, steps + 1):
            g = torch.randn(*x.shape, generator=generator(9, step, index, "gradient")).double()
            m = params.betas[0] * m + (1 - params.betas[0]) * g
            v = params.betas[1] * v + (1 - params.betas[1]) * g**2
            m_hat, v_hat = m / (1 - params.betas[0] ** step), v / (1 - params.betas[1] ** step)
            x = x - params.lr * params.weight_decay * x - params.lr * m_hat / (v_hat.sqrt() + params.eps)
        found.append(x)
    return found


PARAMS = OptimParams(lr=0.02, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3)


def run(
    name: Any, steps: int, kept: torch.optim.Optimizer | None = None
) -> tuple[list[torch.Tensor], torch.optim.Optimizer]:
    parameters = tensors()
    optimizer = make_optimizer(PARAMS.model_copy(update={"name": name}), parameters)
    for step in range(1, steps + 1):
        fill_gradients(parameters, step)
        optimizer.step()
    return parameters, optimizer


def test_adamw_equals_the_paper() -> None:
    parameters, optimizer = run("adamw", 3)
    assert type(optimizer) is torch.optim.AdamW
    for ours, expected in zip(parameters, adamw_by_hand(tensors(), PARAMS, 3), strict=True):
        assert (ours.double() - expected).abs().max() < 1e-6


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """On a CPU bitsandbytes compiles its update: slow, and another matter."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.usefixtures("uncompiled")
def test_adamw8bit_is_near_adamw() -> None:
    parameters, optimizer = run("adamw8bit", 3)
    states = [optimizer.state[parameter]["state1"].dtype for parameter in parameters]
    assert states == [torch.float32, torch.uint8]
    small, large = zip(parameters, adamw_by_hand(tensors(), PARAMS, 3), strict=True)
    assert (small[0].double() - small[1]).abs().max() < 1e-5
    assert 1e-6 < (large[0].double() - large[1]).abs().mean() < 2e-3


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_states_come_back(name: Any, tmp_path: Any) -> None:
    """Two steps, saved, loaded into a fresh optimizer, two more: the bits of four steps."""
    straight, _ = run(name, 4)
    parameters, optimizer = run(name, 2)
    named = {str(index): parameter for index, parameter in enumerate(parameters)}
    save_state(tmp_path, 2, {"adapters": named}, optimizer, {"loss": [1.0, 0.1], "b": [2.0, 3.0]})

    fresh = tensors(seed=5)
    again = make_optimizer(PARAMS.model_copy(update={"name": name}), fresh)
    step, table = load_state(tmp_path, {"adapters": dict(zip("01", fresh, strict=True))}, again)
    assert (step, table, list(table)) == (2, {"loss": [1.0, 0.1], "b": [2.0, 3.0]}, ["loss", "b"])
    for number in (3, 4):
        fill_gradients(fresh, number)
        again.step()
    assert all(torch.equal(a, b) for a, b in zip(straight, fresh, strict=True))


def test_no_state_is_a_beginning(tmp_path: Any) -> None:
    parameters = tensors()
    optimizer = make_optimizer(PARAMS, parameters)
    assert load_state(tmp_path, {"adapters": {"0": parameters[0]}}, optimizer) == (0, {})
    assert torch.equal(parameters[0], tensors()[0])


def test_a_new_optimizer_is_the_line_of_the_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/development.md, A new optimizer: its line, put into the table, is all that it takes."""
    (line,) = re.findall(
        r'^    ("\w+": OptimizerKind\(.*\)),$', (ROOT / "docs/development.md").read_text("utf-8"), re.M
    )
    ((name, kind),) = eval(f"{{{line}}}", {"OptimizerKind": OptimizerKind}).items()
    assert name not in OPTIMIZERS
    monkeypatch.setitem(OPTIMIZERS, name, kind)
    before = tensors()
    parameters, optimizer = run(name, 1)
    assert type(optimizer) is getattr(torch.optim, kind.name)
    given = {key: optimizer.defaults[key] for key in ("lr", "betas", "eps", "weight_decay")}
    assert given == {key: getattr(PARAMS, key) for key in given}
    assert all(not torch.equal(old, new) for old, new in zip(before, parameters, strict=True))


def test_every_optimizer_takes_what_it_is_given() -> None:
    assert set(get_args(OptimParams.model_fields["name"].annotation)) == set(OPTIMIZERS)
    for name, kind in OPTIMIZERS.items():
        optimizer = make_optimizer(PARAMS.model_copy(update={"name": name}), tensors())
        assert type(optimizer).__name__ == kind.name and optimizer.defaults["lr"] == PARAMS.lr
