"""The benchmark of the training step: what it makes of its measurements, and one row that runs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.randombase import random_base
from benchmarks.step import ROOT, figures, summary, table
from benchmarks.steprow import ROWS, USEFUL_TERAFLOPS
from eridiff.family import published
from eridiff.models.quantise import RowScaledLinear, Storage


def side(ms: float, **more: Any) -> dict[str, Any]:
    return {"ms": ms, "p10 ms": ms - 1, "p90 ms": ms + 1, "build s": 2.0, "first s": 3.0, "finite": True, **more}


def test_every_row_names_a_published_model_and_its_flops() -> None:
    for name, row in ROWS.items():
        assert name == row.name
        assert row.model in published(row.family).models
        assert row.model in USEFUL_TERAFLOPS


def test_pictures_a_second_mfu_and_ratio() -> None:
    found = summary(ROWS["sd35m-b4"], {"script": side(800.0), "fast": side(400.0), "TFLOP/s": 534.0}, tiny=False)
    assert found == {"img/s": 10.0, "MFU": pytest.approx(0.5), "ratio": 2.0, "fastest ratio": 2.0}


def test_the_fastest_of_all_peers_counts() -> None:
    row = ROWS["sdxl-b1"]
    measured = {"name": row.name, "script": side(900.0), "kohya": side(600.0, **{"peak GiB": 9.0}), "fast": side(300.0)}
    found = summary(row, measured, tiny=False)
    assert (found["ratio"], found["fastest ratio"]) == (3.0, 2.0)
    assert "| 600, 9.0 | 2.00 |" in table([measured | found])


def test_a_side_that_failed_leaves_the_other() -> None:
    row = ROWS["flux-b1"]
    failed = {"name": row.name, "notes": ["fast: RuntimeError: no"], "script": side(800.0)}
    text = table([failed | summary(row, failed, tiny=False), {"name": "sdxl-b1", "notes": ["left out: no time"]}])
    assert "| flux-b1 | 800 |" in text
    assert "flux-b1: fast: RuntimeError: no" in text
    assert "sdxl-b1: left out: no time" in text


def test_losses_that_are_no_numbers_are_said() -> None:
    turns = [{"seconds": [0.1, 0.3], "wall s": 0.5, "losses": [1.0, float("nan")]}]
    found = {"name": "flux-b1", "fast": {**side(1.0), **figures(turns)}}
    assert found["fast"]["ms"] == pytest.approx(200.0)
    assert found["fast"]["wall ms"] == pytest.approx(250.0)
    assert "fast no" in table([found])


def test_weights_are_quantised_as_they_come() -> None:
    base, device = random_base("flux", "flux-dev", tiny=True), torch.device("cpu")
    plain, again = base.denoiser(device), base.denoiser(device)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in plain.state_dict().items())
    small = base.denoiser(device, Storage(kind="fp8", device=device).settle)
    assert any(isinstance(module, RowScaledLinear) for module in small.modules())
    assert not any(tensor.is_meta for tensor in small.state_dict().values())


@pytest.mark.slow
def test_a_row_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.step", "--tiny", "--device", "cpu", "--rows", "sdxl-b1"]
    done = subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "step.json").read_text("utf-8"))["rows"]
    assert row["notes"] == []
    assert all(row[name]["finite"] and row[name]["ms"] > 0 for name in ("script", "plain", "fast"))
    assert row["fast"]["first warm s"] > 0
    assert "| sdxl-b1 |" in (tmp_path / "step.md").read_text("utf-8")
