"""The demo's trained bases draw what they are asked for, by diffusers' own pipelines.

They change seldom: two of the three are a costly proof (tests/proofs.py).
"""

import numpy as np
import pytest
import torch

from data.demo.accuracy import CHECKED, REFERENCES, load_pipeline, nearest, prompt, read_references, sample, shrink
from tests.e2e.harness import ROOT

pytestmark = pytest.mark.e2e
LEAST = 0.9
GUIDANCE = {"tiny-sdxl": 4.0, "tiny-sd35": 4.0, "tiny-flux": 3.0}


BASES = [pytest.param(base, marks=[pytest.mark.proof] * (base != "tiny-flux")) for base in GUIDANCE]


@pytest.mark.parametrize("base", BASES)
def test_samples_are_nearest_to_the_drawing_that_was_asked_for(base: str) -> None:
    references = read_references(REFERENCES)
    pipeline = load_pipeline(ROOT / "data/bases" / base, torch.device("cpu"))
    drawn = sample(pipeline, [prompt(name, "flat") for name in CHECKED], guidance=GUIDANCE[base], steps=12)
    found = nearest(np.stack([shrink(picture) for picture in drawn]), references) % len(CHECKED)
    right = (found == np.arange(len(CHECKED))).mean()
    assert right >= LEAST, [name for name, place in zip(CHECKED, found, strict=True) if CHECKED[place] != name]


def test_grey_and_shuffled_samples_are_not() -> None:
    references = read_references(REFERENCES)
    flat = references[: len(CHECKED)]
    assert (nearest(flat, references) == np.arange(len(CHECKED))).mean() == 1
    assert (nearest(np.full_like(flat, 0.5), references) % len(CHECKED) == np.arange(len(CHECKED))).mean() < 0.1
    assert (nearest(np.roll(flat, 1, axis=0), references) % len(CHECKED) == np.arange(len(CHECKED))).mean() == 0
