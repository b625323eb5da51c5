"""What `eridiff new` finds and fills in; the project itself: tests/e2e/test_new.py."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eridiff import starting
from eridiff.bases import add_base
from eridiff.cli import app
from eridiff.config import read_yaml
from eridiff.errors import ConfigError
from eridiff.starting import filled, find_published, settle_base, start_project
from tests.checkouts import SMALL, make_checkout
from tests.conftest import ROOT
from tests.originals import header, write_header


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_checkout(tmp_path / "checkout", monkeypatch)


@pytest.mark.parametrize("preset", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_filling_in_changes_these_lines_alone(preset: Path) -> None:
    text = preset.read_text()
    new = filled(text, {"captions": {"trigger": "zwxcat"}, "export": {"name": "cats"}})
    old_lines, new_lines = text.splitlines(), new.splitlines()
    assert len(old_lines) == len(new_lines)
    changed = [(old, new) for old, new in zip(old_lines, new_lines, strict=True) if old.split() != new.split()]
    assert [new.split(":")[0].strip() for _, new in changed] == ["trigger", "name"]
    assert changed[0][1].strip().startswith("trigger: zwxcat") and "# " in changed[0][1]


def test_the_makers_file_is_known_by_its_header(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with the usual name of one model may hold another."""
    monkeypatch.setenv("ERIDIFF_COMFYUI", str(tmp_path / "ComfyUI"))
    folder = tmp_path / "ComfyUI" / "models" / "diffusion_models"
    dev = write_header(folder / "flux1-dev.safetensors", header("flux", "flux-dev", "transformer"))
    assert find_published("flux", "flux-dev") == dev
    assert find_published("flux", "flux-schnell") is None
    write_header(folder / "flux1-schnell.safetensors", header("flux", "flux-dev", "transformer"))
    assert find_published("flux", "flux-schnell") is None
    schnell = write_header(folder / "flux1-schnell.safetensors", header("flux", "flux-schnell", "transformer"))
    assert find_published("flux", "flux-schnell") == schnell
    assert find_published("flux", "my-own") is None


def test_the_hubs_cache_is_looked_at_too(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--black-forest-labs--FLUX.1-dev" / "snapshots" / "abc"
    shutil.copytree(SMALL / "bases" / "tiny-flux", place)
    assert find_published("flux", "flux-dev") == place
    (tmp_path / "params.yaml").write_text("model: {family: flux, base: flux-dev}\n")
    assert settle_base(tmp_path / "params.yaml") == "base: flux-dev"
    assert (checkout / "data/bases/flux-dev/denoiser.json").exists()


def test_a_base_that_is_nowhere_is_asked_for(checkout: Path, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("model: {family: flux, base: flux-dev}\n")
    line = settle_base(path)
    assert "`eridiff base add flux-dev SOURCE`" in line and "black-forest-labs/FLUX.1-dev" in line
    add_base("flux-dev", [SMALL / "bases" / "tiny-flux"])
    assert settle_base(path) == "base: flux-dev"


def test_a_base_that_cannot_be_added_stops_nothing(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERIDIFF_COMFYUI", str(tmp_path / "ComfyUI"))
    path = tmp_path / "ComfyUI" / "models" / "unet" / "flux1-dev.safetensors"
    write_header(path, header("flux", "flux-dev", "transformer"))
    (tmp_path / "params.yaml").write_text("model: {family: flux, base: flux-dev}\n")
    line = settle_base(tmp_path / "params.yaml")
    assert f"could not be added from {path}: no file holds vae" in line


def test_what_a_preset_says_of_its_own_pictures_is_left_out(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_project(name: str, images: Path, params: Path) -> Path:
        shutil.copytree(images, checkout / "projects" / name / "data" / "raw")
        return checkout / "projects" / name

    monkeypatch.setattr(starting, "make_project", make_project)
    (tmp_path / "raw" / "plain").mkdir(parents=True)
    preset = ROOT / "presets" / "tiny-sdxl.yaml"
    record = read_yaml(start_project("with", tmp_path / "raw", "zwxcat", preset) / "params.yaml")
    assert (record["captions"]["regularisation"], record["captions"]["class_word"]) == (["plain"], None)
    assert (record["export"]["license"], record["captions"]["trigger"]) == (None, "zwxcat")
    (tmp_path / "raw" / "plain").rmdir()
    record = read_yaml(start_project("without", tmp_path / "raw", "zwxcat", preset) / "params.yaml")
    assert record["captions"]["regularisation"] == []


def test_wrong_decisions(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    preset = ROOT / "presets" / "sdxl-24gb.yaml"
    with pytest.raises(ConfigError, match=r"--trigger: 'captions\.trigger' is 'my, cat'"):
        start_project("cats", tmp_path / "raw", "my, cat", preset)
    with pytest.raises(ConfigError, match="--trigger and --preset belong together"):
        CliRunner().invoke(app, ["new", "cats", "--images", str(tmp_path), "--trigger", "x"], catch_exceptions=False)
    assert not (checkout / "projects").exists()
    assert read_yaml(preset)["captions"]["trigger"] == "mytrigger"
