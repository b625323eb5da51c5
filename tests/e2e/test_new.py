"""`eridiff new` with a folder, a trigger and a preset: the project that it makes just runs."""

import shutil
import stat
from pathlib import Path

import pytest

from eridiff.config import read_yaml
from tests.e2e.harness import make_clone

pytestmark = pytest.mark.e2e


def test_three_decisions_and_it_runs(tmp_path: Path) -> None:
    clone = make_clone(tmp_path, "clone")
    shutil.copyfile(clone.root / "params.yaml", clone.root / "presets" / "quick.yaml")
    (clone.root / "presets" / "aliases.txt").write_text("old_quick quick\n")
    pictures = shutil.copytree(clone.root / "data/raw", tmp_path / "my pictures")
    made = clone.run(
        "eridiff", "new", "cats", "--images", str(pictures), "--trigger", "zwx cat", "--preset", "old_quick"
    )
    assert "base: tiny-sdxl\n" in made.stdout
    project = clone.root / "projects" / "cats"
    params, preset = read_yaml(project / "params.yaml"), read_yaml(clone.root / "presets/quick.yaml")
    assert params["captions"]["trigger"] == "zwx cat"
    assert (params["export"]["name"], params["export"]["title"]) == ("cats", "cats (zwx cat)")
    assert {**params, "captions": 0, "export": 0} == {**preset, "captions": 0, "export": 0}
    assert "dvc repro" in (project / "README.md").read_text()
    for path in (project / "data/raw").rglob("*"):
        assert path.stat().st_mode & stat.S_IWUSR
    clone.place = project
    ran = clone.repro()
    assert ran.stages == ["check", "captions", "buckets", "latents", "text", "train", "sample", "export"]
    assert (project / "data/export/cats.safetensors").exists()
    again = clone.run(
        "eridiff", "new", "cats", "--images", str(pictures), "--trigger", "x", "--preset", "quick", check=False
    )
    assert again.returncode == 1 and "exists already" in again.stdout
    assert read_yaml(project / "params.yaml") == params
