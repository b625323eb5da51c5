"""Every preset is a whole, sound params file; the checkout's own params.yaml is one of them."""

import pytest

from eridiff.check import check_params
from tests.conftest import ROOT

PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *PRESETS], ids=lambda path: path.stem)
def test_preset_is_sound(path) -> None:  # type: ignore[no-untyped-def]
    check_params(path)


def test_the_checkouts_params_are_the_first_preset() -> None:
    assert (ROOT / "params.yaml").read_text() == (ROOT / "presets/tiny-sdxl.yaml").read_text()
