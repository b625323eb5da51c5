"""Every preset is a whole, sound params file whose base is here; the checkout's own params.yaml is one of them."""

import re
from pathlib import Path

import pytest

from eridiff.bases.find import find_source
from eridiff.bases.pointer_files import pointers_of
from eridiff.check import check_params
from eridiff.core.config import load_section
from eridiff.core.errors import ConfigError
from eridiff.core.files import write_text
from eridiff.family import load_family, published
from eridiff.machine.local import bases_dir
from eridiff.params.model import ModelParams
from eridiff.projects.presets import find_preset, read_preset
from eridiff.weights.components import Component
from eridiff.weights.pointers import Pointer, pointer_text
from tests.conftest import ROOT
from tests.support.checkouts import make_checkout

PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


@pytest.fixture(autouse=True)
def checkout(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


SMALL = [path for path in PRESETS if path.stem.startswith("tiny-")]
REAL = [path for path in PRESETS if path not in SMALL]


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *SMALL], ids=lambda path: path.stem)
def test_preset_is_sound(path) -> None:  # type: ignore[no-untyped-def]
    check_params(path)
    assert read_preset(path).gigabytes is None


@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.stem)
def test_weights_of_its_base_are_those_of_the_pointers(path) -> None:  # type: ignore[no-untyped-def]
    model = load_section(ModelParams, "model", path)
    family = load_family(model.family)
    pointers = pointers_of(model.base, family.PARTS, model.family)
    with_files = {name for pointer in pointers.values() for name, c in pointer.components.items() if c.files}
    assert set(find_source(pointers.values()).folders) == with_files


def test_the_checkouts_params_are_a_preset() -> None:
    assert (ROOT / "params.yaml").read_text() == (ROOT / "presets/tiny-sd35.yaml").read_text()


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_preset_of_a_real_model_is_sound(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its base is a published model, under whose name `eridiff new` looks for it; all else is as `check` wants it."""
    model = load_section(ModelParams, "model", path)
    assert model.base in published(model.family).models
    assert not model.allow_cpu
    name = re.search(r"-(\d+)gb", path.stem)
    assert read_preset(path).gigabytes == (int(name[1]) if name else 24)  # its first comment says so
    make_checkout(tmp_path, monkeypatch)
    add_pointers(model)
    check_params(path)


def add_pointers(model: ModelParams) -> None:
    """Pointers with the published configs and no files."""
    configs = published(model.family).models[model.base]
    for part, names in load_family(model.family).PARTS.items():
        components = {
            name: Component(name=name, config=dict(configs.get(name, {})), files={}, digest="0") for name in names
        }
        pointer = Pointer(base=model.base, family=model.family, part=part, components=components)
        write_text(bases_dir() / model.base / f"{part}.json", pointer_text(pointer))


@pytest.mark.slow
def test_old_names_lead_to_presets() -> None:
    names = {path.stem for path in PRESETS}
    aliases = [line.split() for line in (ROOT / "presets/aliases.txt").read_text().splitlines() if line[0] != "#"]
    assert aliases
    for old, new in aliases:
        assert new in names and old not in names
        assert find_preset(old) == find_preset(new) == ROOT / "presets" / f"{new}.yaml"
    with pytest.raises(ConfigError, match=r"there is no preset 'sdxl-24g'\. Did you mean 'sdxl-24gb'\?"):
        find_preset("sdxl-24g")
    real_first = r"no preset 'sdxl'\. Did you mean 'sdxl-24gb', 'sdxl-12gb', 'example-sdxl' or 'tiny-sdxl'\?"
    with pytest.raises(ConfigError, match=real_first):
        find_preset("sdxl")
    with pytest.raises(ConfigError, match=r"no preset 'sdlx-24gb'\. Did you mean 'sdxl-24gb'\? Known: "):
        find_preset("sdlx-24gb")


def test_each_choice_has_its_reason() -> None:
    for path in REAL:
        text = path.read_text()
        for key in ("base:", "variants:", "dtype:", "steps:", "upscale:", "caption_dropout:", "deterministic:"):
            line = next(line for line in text.splitlines() if line.strip().startswith(key))
            assert "  # " in line or " # " in line, (path.name, line)
