"""Adapters computed in the base's format, against peft's layers."""

from pathlib import Path

import pytest
import torch

from eridiff.acceleration.adapters import LowRankLinear, WorkingAdapters
from eridiff.training.step import Example, draw, train_step
from tests.support import training
from tests.support.bases import FAMILIES
from tests.support.training import shaken


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_loss_and_gradients_are_those_of_pefts_layers(family: str, tmp_path: Path) -> None:
    """In fp32, of every adapter; two micro-batches add up."""
    params = training.params_of({"lora": {"rank": 4, "alpha": 2.0, "targets": "all-linear"}})
    data = training.random_set(family, tmp_path, params)
    batch = data.batch([0, 1], 1, 0)
    plain = shaken(training.start(family, params))
    loss = training.do_step(plain, batch, 1)
    training.do_step(plain, batch, 1)
    run = shaken(training.start(family, params))
    working = WorkingAdapters(run.denoiser, run.adapters, torch.float32)
    layers = [module for module in run.denoiser.modules() if isinstance(module, LowRankLinear)]
    assert 2 * len(layers) == len(run.adapters)
    example = Example(batch=batch, draws=draw(run, batch, 1))
    for first in (True, False):
        found = train_step(run, example.batch, example.draws)
        working.add_gradients(found, first=first)
    assert float(found.detach()) == pytest.approx(float(loss), rel=1e-6)
    for name, tensor in run.adapters.items():
        expected = plain.adapters[name].grad
        assert tensor.grad is not None and expected is not None
        assert torch.allclose(tensor.grad, expected, rtol=1e-4, atol=1e-6), name


def test_copies_in_half_precision_follow_their_masters(tmp_path: Path) -> None:
    """The optimizer moves fp32; the denoiser computes with the rounded copy, and gradients arrive in fp32."""
    family = FAMILIES[0]
    params = training.params_of({"precision": "bf16"})
    batch = training.random_set(family, tmp_path, params).batch([0, 1], 1, 0)
    run = shaken(training.start(family, params))
    working = WorkingAdapters(run.denoiser, run.adapters, torch.bfloat16)
    assert {copy.dtype for copy in working.copies} == {torch.bfloat16}
    with torch.no_grad():
        for master in working.masters:
            master.mul_(1.5)
    working.refresh()
    for master, copy in zip(working.masters, working.copies, strict=True):
        assert torch.equal(copy, master.to(torch.bfloat16))
    working.add_gradients(train_step(run, batch, draw(run, batch, 1)), first=True)
    assert {master.grad.dtype for master in working.masters if master.grad is not None} == {torch.float32}
    assert all(float(master.grad.abs().max()) > 0 for master in working.masters if master.grad is not None)
