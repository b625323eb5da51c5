"""eridiff's step and the steps of diffusers' scripts are the same mathematics: small bases in fp32 on a CPU."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.parity import MODELS, Result, ScriptLoss, compare
from benchmarks.randombase import random_base
from benchmarks.scriptloss import Options

CPU = torch.device("cpu")
SMALL = ("flux-dev", "sd35-medium", "sdxl")


def result(model: str, script: Options, **changes: Any) -> Result:
    base = random_base(MODELS[model], model, tiny=True)
    params = {"batch_size": 2, "lora": {"rank": 4}, **changes}
    return compare(base, CPU, 2, lambda base, run: ScriptLoss(base, run, script), params)


@pytest.mark.parametrize("model", SMALL)
def test_losses_and_gradients_are_those_of_the_script(model: str) -> None:
    found = result(model, Options(precondition=False))
    assert found.is_equal, found
    assert found.adapter_cosine > 0.999
    assert found.norm_difference < 1e-5


def test_the_preconditioned_script_weighs_by_the_square_of_sigma() -> None:
    """Which its own weighting undoes."""
    assert result("sd35-medium", Options(precondition=True, weighting="sigma_sqrt")).loss_difference < 1e-5
    assert not result("sd35-medium", Options(precondition=True)).is_equal


def test_guidance_is_a_difference() -> None:
    assert not result("flux-dev", Options(precondition=False, guidance=1.0)).is_equal


def test_numbers_that_are_none_are_not_equal() -> None:
    found = Result(
        model="x", precision="fp32", steps=1, loss_difference=0.0, cosine=1.0, adapter_cosine=1.0, norm_difference=0.0
    )
    assert found.is_equal
    assert not replace(found, loss_difference=float("nan")).is_equal
    assert not replace(found, cosine=float("nan")).is_equal
