"""The key tables against ComfyUI's own key maps. Needs COMFYUI_DIR, the folder of a ComfyUI checkout."""

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from eridiff.family import load_keys
from eridiff.weights.lora_keys import Row, swap_halves
from tests.support.full_size import FULL_SIZE

pytestmark = pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR is not set")


@cache
def comfyui_keys() -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-m", "tests.support.comfyui_keys", os.environ["COMFYUI_DIR"]]
    answer: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=300).stdout)
    return answer


def native(row: Row) -> str:
    return f"diffusion_model.{row.target}.weight"


@pytest.mark.parametrize("name", FULL_SIZE)
def test_comfyui_finds_every_kohya_key(name: str) -> None:
    family, _, config = FULL_SIZE[name]
    keys = comfyui_keys()[name]
    kohya = load_keys(family).DIALECTS[-1]
    assert all(keys[kohya.key(row.target)] == [native(row), None, None] for row in kohya.table(config))


@pytest.mark.parametrize("name", ["sd35-medium", "sd35-large", "flux-dev"])
def test_the_tables_join_as_comfyui_does(name: str) -> None:
    """ComfyUI also maps diffusers names, to slices of its own weights: that is our table, written by others."""
    family, _, config = FULL_SIZE[name]
    keys = comfyui_keys()[name]
    for row in load_keys(family).DIALECTS[-1].table(config):
        function = "swap_scale_shift" if row.reorder is swap_halves else None
        for index, part in enumerate(row.slices):
            piece = [0, sum(row.heights[:index]), row.heights[index]] if row.heights else None
            assert keys[f"transformer.{part}"] == [native(row), piece, function]


def test_sdxl_blocks_are_numbered_as_comfyui_does() -> None:
    keys = comfyui_keys()["sdxl"]
    (dialect,) = load_keys("sdxl").DIALECTS
    for row in dialect.table(FULL_SIZE["sdxl"][2]):
        assert keys[dialect.key(row.slices[0])] == keys[dialect.key(row.target)]
