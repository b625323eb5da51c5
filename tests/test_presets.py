"""Every preset is a whole, sound params file whose base is here; the checkout's own params.yaml is one of them."""

import pytest

from eridiff.check import check_params
from eridiff.config import ModelParams, load_section
from eridiff.families import load_family
from eridiff.sources import find_source, pointers_of
from tests.conftest import ROOT

PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


@pytest.fixture(autouse=True)
def checkout(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *PRESETS], ids=lambda path: path.stem)
def test_preset_is_sound(path) -> None:  # type: ignore[no-untyped-def]
    check_params(path)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_weights_of_its_base_are_those_of_the_pointers(path) -> None:  # type: ignore[no-untyped-def]
    model = load_section(ModelParams, "model", path)
    family = load_family(model.family)
    pointers = pointers_of(model.base, family.PARTS, model.family)
    with_files = {name for pointer in pointers.values() for name, c in pointer.components.items() if c.files}
    assert set(find_source(pointers.values()).folders) == with_files


def test_the_checkouts_params_are_the_first_preset() -> None:
    assert (ROOT / "params.yaml").read_text() == (ROOT / "presets/tiny-sdxl.yaml").read_text()
