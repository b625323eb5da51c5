"""How a frozen base may be stored and computed with: both spellings, and what is refused."""

from typing import Any

import pytest
import torch

from eridiff.core.config import validate
from eridiff.core.errors import ConfigError
from eridiff.models.quantise import storage_of
from eridiff.params.model import ModelParams
from eridiff.params.train import TrainParams

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "quantise", ["fp8", {"storage": "fp8", "compute": "fp8"}, {"storage": "int8", "compute": "int8"}]
)
def test_both_spellings(quantise: Any) -> None:
    """A word dumps as the word it has always been: keys of trainings hold it."""
    params = validate(TrainParams, {"steps": 1, "quantise": quantise}, where="params.yaml", prefix="train")
    assert params.model_dump()["quantise"] == quantise
    storage = storage_of(params.quantise, CPU)
    assert storage.kind == (quantise if isinstance(quantise, str) else quantise["storage"])
    assert storage.compute == isinstance(quantise, dict)


REFUSED: dict[str, tuple[Any, str]] = {
    "no storage": (
        {"compute": "fp8"},
        "params.yaml: 'train.quantise.storage' is missing.",
    ),
    "no compute": (
        {"storage": "fp8"},
        "params.yaml: 'train.quantise.compute' is missing.",
    ),
    "unknown word": (
        "fp9",
        "params.yaml: 'train.quantise' is 'fp9', which is none of its choices. Did you mean 'fp8'? Known: fp8, int8, "
        "nf4.",
    ),
    "unknown compute": (
        {"storage": "fp8", "compute": "nf4"},
        "params.yaml: 'train.quantise.compute' is 'nf4', which is none of its choices. Known: fp8, int8.",
    ),
    "unknown key": (
        {"storage": "fp8", "compute": "fp8", "stored": 1},
        "params.yaml: unknown key 'train.quantise.stored' (value 1). Did you mean 'storage'? Known: compute, storage.",
    ),
    "another compute": (
        {"storage": "nf4", "compute": "fp8"},
        "params.yaml: 'train.quantise': storage nf4 with compute fp8: what is stored is what is multiplied. Known: "
        "{storage: fp8, compute: fp8}, {storage: int8, compute: int8}; or one word, which only stores: fp8, int8 or "
        "nf4.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused(case: str) -> None:
    given, message = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        validate(TrainParams, {"steps": 1, "quantise": given}, where="params.yaml", prefix="train")
    assert str(caught.value) == message


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_fp8_gives_bf16_alone(precision: str) -> None:
    asked = {"steps": 1, "precision": precision, "quantise": {"storage": "fp8", "compute": "fp8"}}
    with pytest.raises(ConfigError, match=f"products are bf16, but precision is {precision}. Set precision: bf16"):
        validate(TrainParams, asked, where="params.yaml", prefix="train")
    validate(TrainParams, asked | {"quantise": "fp8"}, where="params.yaml", prefix="train")
    validate(
        TrainParams, asked | {"quantise": {"storage": "int8", "compute": "int8"}}, where="params.yaml", prefix="train"
    )


def test_the_section_model_itself() -> None:
    """Three keys; no base is meant for a CPU unless it says so."""
    params = validate(ModelParams, {"family": "toy", "base": "tiny"}, where="params.yaml", prefix="model")
    assert params.model_dump() == {"family": "toy", "base": "tiny", "allow_cpu": False}
