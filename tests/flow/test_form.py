"""The served form: its schema, and what a filled one asks for."""

from typing import Any

import pytest

from eridiff.core.config import read_yaml
from eridiff.core.errors import ConfigError
from eridiff.flow.form import CHECKOUT, form_schema, read_request, read_sets
from tests.conftest import ROOT


def test_the_form_loses_defaults_and_required_keys_and_keeps_bounds() -> None:
    schema = form_schema(ROOT)
    text = str(schema["definitions"])
    assert "'default'" not in text and "'null'" not in text
    assert [key for kind in schema["definitions"].values() for key in kind if key == "required"] == []
    train = schema["definitions"]["TrainParams"]["properties"]
    assert train["steps"] == {**train["steps"], "type": "integer", "minimum": 1}
    assert train["ema_decay"]["exclusiveMaximum"] == 1
    assert train["deterministic"]["enum"] == [True, False] and "type" not in train["deterministic"]
    assert all(field["title"] == name for name, field in train.items())
    assert schema["properties"]["project"]["enum"][0] == CHECKOUT
    assert schema["properties"]["stop_at"]["enum"] == list(read_yaml(ROOT / "dvc.yaml")["stages"])


def test_an_empty_form_changes_nothing_and_a_filled_one_only_what_it_says() -> None:
    assert read_request(ROOT, CHECKOUT, None, None, None, None).changes == ()
    own = read_yaml(ROOT / "params.yaml")["train"]["steps"]
    assert read_request(ROOT, CHECKOUT, None, {"train": {"steps": own}}, None, None).changes == ()
    filled = read_request(ROOT, CHECKOUT, None, {"train": {"optimizer": {"lr": 2e-4}}}, "train", 5)
    assert filled.changes == ("++train.optimizer.lr=0.0002",)
    assert (filled.stop_at, filled.minutes) == ("train", 5)


@pytest.mark.parametrize(
    ("project", "preset", "overrides", "message"),
    [
        ("dogs", None, None, "project: there is no 'dogs'"),
        (CHECKOUT, "huge", None, "preset: there is no 'huge'"),
        (CHECKOUT, None, {"tran": {}}, "no section 'tran'. Did you mean 'train'"),
        (CHECKOUT, None, {"train": {"stepz": 1}}, "unknown key 'train.stepz' .value 1.. Did you mean 'steps'"),
        (CHECKOUT, None, {"train": {"steps": 0}}, "'train.steps' is 0"),
    ],
)
def test_a_wrong_form_is_refused(project: str, preset: str | None, overrides: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_request(ROOT, project, preset, overrides, None, None)


def test_sets_of_a_command_line_are_yaml() -> None:
    assert read_sets(["train.optimizer.lr=2e-4", "sample.seeds=[1, 2]", "train.guidance=null"]) == {
        "train": {"optimizer": {"lr": 2e-4}, "guidance": None},
        "sample": {"seeds": [1, 2]},
    }
    for wrong in ("train", "steps=1", "train.=1", "=1"):
        with pytest.raises(ConfigError, match="write it as section"):
            read_sets([wrong])
