"""The demo itself: its pictures, captions and presets; what its three LoRAs learned, compared as the docs say.

The comparison is a costly proof (tests/proofs.py). What CI proves each time is the LoRA of `make repro` (`.ci/run`).
"""

import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eridiff.dataset.image.header import PICTURE_SUFFIXES
from eridiff.family import family_names
from eridiff.formats.tables import read_table
from tests.e2e.harness import ROOT, Clone, make_clone
from tests.verdict import FALLS, failures, strongest

pytestmark = pytest.mark.e2e
PRESETS = sorted(path.name for path in (ROOT / "presets").glob("tiny-*.yaml"))
HERO = Path("docs/pictures/hero.png")


def test_every_preset_takes_every_picture(tmp_path_factory: pytest.TempPathFactory) -> None:
    clone = make_clone(tmp_path_factory.mktemp("demo"), "clone", quick=False, demo=True)
    files = {path.relative_to(ROOT / "data/raw") for path in (ROOT / "data/raw").rglob("*")}
    pictures = {path.as_posix() for path in files if path.suffix.lower() in PICTURE_SUFFIXES}
    assert PRESETS and pictures
    for preset in PRESETS:
        shutil.copyfile(ROOT / "presets" / preset, clone.root / "params.yaml")
        assert "check" in clone.repro("buckets").stages
        rows, _ = read_table(clone.root / "data/buckets/buckets.parquet")
        assert {row["path"] for row in rows} == pictures
        assert clone.why()["stages"]["latents"]["encoded"] == len(pictures)


def costly(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test as part of the proof, with the hours that three demos take."""
    return pytest.mark.proof(pytest.mark.timeout(3 * 3600)(test))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A checkout with an experiment of each family's preset, and what each drew, as data/demo/README.md says it."""
    clone = make_clone(tmp_path_factory.mktemp("compared"), "clone", quick=False, demo=True)
    for family in family_names():
        shutil.copyfile(clone.root / f"presets/tiny-{family}.yaml", clone.root / "params.yaml")
        clone.run("dvc", "exp", "run", "-n", f"tiny-{family}", limit=3600)
    for family in family_names():
        clone.run("dvc", "get", ".", "data/samples", "--rev", f"tiny-{family}", "-o", f"runs/compared/{family}")
    return clone


def metrics_of(family: str, compared: Clone) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((compared.root / f"runs/compared/{family}/metrics.json").read_text("utf-8"))
    return metrics


@costly
@pytest.mark.parametrize("family", family_names())
def test_the_lora_convinces(family: str, compared: Clone) -> None:
    metrics = metrics_of(family, compared)
    assert failures(metrics, strongest(metrics)) == []


@costly
def test_one_table(compared: Clone) -> None:
    """A row a family, in the same columns, though they train for different numbers of steps."""
    shown = compared.run("dvc", "exp", "show", "--csv").stdout
    rows = {row["Experiment"]: row for row in csv.DictReader(io.StringIO(shown))}
    for family in family_names():
        metrics, row = metrics_of(family, compared), rows[f"tiny-{family}"]
        assert float(row["leakage.last x 1"]) == metrics["leakage"]["last x 1"]
        for group in FALLS:
            assert float(row[f"fall.{group}.last x 1"]) == metrics["fall"][group]["last x 1"]


@costly
def test_one_picture(compared: Clone) -> None:
    """The front page's picture is what the presets draw, but for the last bits of another processor."""
    folders = [f"{family}=runs/compared/{family}" for family in ("sdxl", "sd35", "flux")]
    command = [sys.executable, str(HERO.with_suffix(".py")), *folders]
    subprocess.run(
        command, cwd=compared.root, env=compared.environment() | {"PYTHONPATH": "."}, check=True, timeout=300
    )
    made, kept = (np.asarray(Image.open(root / HERO).convert("RGB"), np.float32) for root in (compared.root, ROOT))
    assert made.shape == kept.shape
    assert np.abs(made - kept).mean() < 8
