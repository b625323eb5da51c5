"""The demo itself: its own pictures, captions and presets go through every stage that needs no model."""

import shutil

import pytest

from eridiff.images import PICTURE_SUFFIXES
from eridiff.tables import read_table
from tests.e2e.harness import ROOT, make_clone

pytestmark = pytest.mark.e2e
PRESETS = sorted(path.name for path in (ROOT / "presets").glob("tiny-*.yaml"))


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
