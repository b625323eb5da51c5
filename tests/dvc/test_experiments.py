"""Changed params as overrides of `dvc exp run`: applied by DVC's own code they give the params."""

from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from eridiff.core.config import read_yaml
from eridiff.core.errors import ConfigError
from eridiff.dvc.experiments import changes, spelled
from eridiff.flow.form import presets
from tests.conftest import ROOT


def applied(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> Any:
    path = folder / "params.yaml"
    with path.open("w") as file:
        YAML().dump(old, file)
    if sets := list(changes(old, new)):
        apply_overrides(path, sets)
    return read_yaml(path)


@pytest.mark.parametrize("name", presets(ROOT))
def test_a_preset_as_overrides_gives_the_preset(tmp_path: Path, name: str) -> None:
    new = read_yaml(presets(ROOT)[name])
    assert applied(tmp_path, read_yaml(ROOT / "params.yaml"), new) == new


TEXTS = st.text("ab ,:='\"\\[]{}()#*?~+$%-1.", max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, min_size=1, max_size=2),
    max_leaves=6,
)


@pytest.mark.slow
@settings(deadline=None)  # the machine may be busy
@given(VALUES)
@example("???")  # missing, to OmegaConf
@example(["???"])
def test_any_value_passes_through_or_is_refused(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    try:
        spelled(value)
    except ConfigError:
        return
    new = {"a": {"b": value}}
    assert applied(tmp_path_factory.mktemp("p"), {"a": {"b": 12345}}, new) == new
