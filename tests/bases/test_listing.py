"""`eridiff base find` and `base list`: the bases that are here, and the models that could be."""

import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eridiff.bases.add import add_base
from eridiff.bases.wanted import write_wanted
from eridiff.cli import app
from tests.support.checkouts import SMALL, make_checkout
from tests.support.originals import write_header


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_checkout(tmp_path / "checkout", monkeypatch)


def find() -> list[str]:
    done = CliRunner().invoke(app, ["base", "find"], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output.splitlines()


def test_the_bases_beside_it_are_found() -> None:
    """The current folder's checkout has the three small bases, as a fresh one has the demo's."""
    lines = find()
    assert [line for line in lines if not line.startswith(" ")] == [
        "tiny-flux: flux",
        "tiny-sd35: sd35",
        "tiny-sdxl: sdxl",
    ]
    place = (Path("data") / "bases").resolve()
    assert any(line.startswith("  vae, text_encoder") and line.endswith("tiny-sdxl") for line in lines)
    assert all("not on this machine" not in line for line in lines) and place.is_dir()


def test_bases_and_models_are_told_apart(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / "models"
    models.mkdir()
    monkeypatch.setenv("ERIDIFF_MODELS", os.pathsep.join([str(models), str(models)]))
    write_wanted("sdxl", "sdxl")
    folder = Path(shutil.copytree(SMALL / "bases" / "tiny-sd35", tmp_path / "gone"))
    add_base("gone", [folder])
    shutil.rmtree(folder / "vae")
    write_header(models / "mine.safetensors", {"a.lora_up.weight": ("F16", (4, 4))})
    (models / "q.gguf").write_bytes(b"GGUF" + bytes(20))
    text = "\n".join(find())
    assert "gone: sd35\n  vae: not on this machine\n" in text
    assert "sdxl: base 'sdxl' is not here yet: add it with `eridiff base add sdxl SOURCE`" in text
    assert text.count("mine.safetensors: 1 tensors") == 1 and text.count("q.gguf: ") == 1
