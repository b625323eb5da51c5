"""`eridiff new` with a folder, a trigger and a preset: the project that it makes just runs."""

import os
import re
import shutil
import stat
from pathlib import Path

import pytest

from eridiff.core.config import read_yaml
from eridiff.dvc.pushing import STAY
from tests.e2e.harness import make_clone

pytestmark = pytest.mark.e2e


def test_without_its_base_all_runs_that_needs_no_weights(tmp_path: Path) -> None:
    clone = make_clone(tmp_path, "clone")
    text = (clone.root / "params.yaml").read_text()
    (clone.root / "presets" / "real.yaml").write_text(re.sub(r"base: tiny-\w+", "base: sdxl", text))
    made = clone.run(
        *("eridiff", "new", "cats", "--images", str(clone.root / "data/raw"), "--trigger", "zwxcat", "--preset", "real")
    )
    sentence = "base 'sdxl' is not here yet: add it with `eridiff base add sdxl SOURCE`, where SOURCE is"
    assert sentence in made.stdout
    clone.place = clone.root / "projects" / "cats"
    ran = clone.run("dvc", "repro", check=False)
    assert ran.returncode and ran.stdout.count(f"warning: {sentence}") == 1 and f"error: {sentence}" in ran.stdout
    assert "Errno 2" not in ran.stdout and "tiny-sdxl" not in ran.stdout
    assert (clone.place / "data/buckets/buckets.parquet").exists()
    said = clone.run("eridiff", "why").stdout
    assert f"note: latents will stop: {sentence}" in said


def test_three_decisions_and_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = make_clone(tmp_path, "clone")
    params_text = (clone.root / "params.yaml").read_text()
    (clone.root / "presets" / "quick.yaml").write_text(f"# For a card of 24 GB.\n{params_text}")
    (clone.root / "presets" / "aliases.txt").write_text("old_quick quick\n")
    pictures = shutil.copytree(clone.root / "data/raw", tmp_path / "my pictures")
    driver = tmp_path / "bin" / "nvidia-smi"
    driver.parent.mkdir()
    driver.write_text("#!/bin/sh\necho '0, NVIDIA GeForce RTX 3060, 12288'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{driver.parent}:{os.environ['PATH']}")
    made = clone.run(
        "eridiff", "new", "cats", "--images", str(pictures), "--trigger", "zwx cat", "--preset", "old_quick"
    )
    gpu = "GPU 0: NVIDIA GeForce RTX 3060, 12.0 GB: less than the 24 GB that quick is meant for"
    assert made.stdout.splitlines()[0] == gpu
    assert "base: tiny-sdxl\n" in made.stdout
    project = clone.root / "projects" / "cats"
    params, preset = read_yaml(project / "params.yaml"), read_yaml(clone.root / "presets/quick.yaml")
    assert params["captions"]["trigger"] == "zwx cat"
    assert (params["export"]["name"], params["export"]["title"]) == ("cats", "cats (zwx cat)")
    assert {**params, "captions": 0, "export": 0} == {**preset, "captions": 0, "export": 0}
    readme = (project / "README.md").read_text()
    assert "dvc repro" in readme and f"the preset quick on a machine with:\n\n    {gpu}\n" in readme
    for path in (project / "data/raw").rglob("*"):
        assert path.stat().st_mode & stat.S_IWUSR
    clone.place = project
    ran = clone.repro()
    assert ran.stages == ["check", "captions", "buckets", "latents", "text", "train", "sample", "export"]
    assert (project / "data/export/cats.safetensors").exists()
    # Training has made one file of each shard in the store, in DVC's cache and in the project; DVC did not look again.
    for kind, name in (("latents", "latents"), ("texts", "text")):
        shards = list((project / "data" / name).glob("shard-*.safetensors"))
        assert shards and {path.stat().st_nlink for path in shards} == {3}
        inodes = {path.stat().st_ino for path in (clone.store / kind / "shards").iterdir()}
        assert inodes == {path.stat().st_ino for path in shards}
    last = [line for line in ran.output.splitlines() if line.startswith(("your pictures", "Use `dvc push`"))]
    assert last == [STAY, "Use `dvc push` to send your updates to remote storage."]
    assert clone.repro().stages == []
    (clone.root / "data/bases/tiny-sdxl/license.json").write_text('{"licenses": [{"name": "MIT"}]}')
    assert clone.repro().stages == ["check", "export"]
    assert "- MIT, according to" in (project / "data/export/README.md").read_text()
    again = clone.run(
        "eridiff", "new", "cats", "--images", str(pictures), "--trigger", "x", "--preset", "quick", check=False
    )
    assert again.returncode == 1 and "exists already" in again.stdout
    assert read_yaml(project / "params.yaml") == params
