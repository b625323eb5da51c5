"""params.yaml and local.yaml: every mistake is one sentence that names the key, the value and the way out."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from eridiff.core.config import Section, load_section, read_yaml, validate
from eridiff.core.errors import ConfigError, did_you_mean
from eridiff.machine import local
from eridiff.machine.local import LocalConfig, bases_dir, checkout_root, find_upward, load_local, store_root
from eridiff.params.model import ModelParams
from eridiff.params.sample import SampleParams
from eridiff.params.train import TrainParams
from tests.support.checkouts import SMALL, make_checkout


class Inner(Section):
    lr: Annotated[float, Field(gt=0)] = 1.0
    size: tuple[int, int] = (1, 2)


class Outer(Section):
    steps: Annotated[int, Field(ge=1)]
    kind: Literal["fast", "slow"] = "fast"
    on: bool = False
    name: str | None = None
    inner: Inner = Field(default_factory=Inner)
    many: tuple[Inner, ...] = ()
    limit: Annotated[int, Field(ge=1)] | Literal["none"] = "none"


def message(data: Any, model: type[Section] = Outer) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(model, data, where="params.yaml", prefix="outer")
    return str(caught.value)


def test_what_is_right_is_taken() -> None:
    given = {"steps": 3, "kind": "slow", "inner": {"lr": 2, "size": [3, 4]}, "many": [{}], "limit": 7}
    found = validate(Outer, given, where="", prefix="")
    assert found == Outer(steps=3, kind="slow", inner=Inner(lr=2.0, size=(3, 4)), many=(Inner(),), limit=7)
    assert type(found.inner.lr) is float  # a whole number is a float where one is asked for
    with pytest.raises(ValidationError, match="frozen"):
        found.steps = 4  # type: ignore[misc]


MISTAKES = {
    "unknown key": (
        {"steps": 1, "inner": {"rl": 2}},
        "unknown key 'outer.inner.rl' (value 2). Did you mean 'lr'? Known: lr, size.",
    ),
    "key of another level": ({"steps": 1, "lr": 0.1}, "unknown key 'outer.lr' (value 0.1). Known: inner, kind,"),
    "missing": ({}, "'outer.steps' is missing."),
    "choice": (
        {"steps": 1, "kind": "fats"},
        "'outer.kind' is 'fats', which is none of its choices. Did you mean 'fast'? Known: fast, slow.",
    ),
    "text for a number": ({"steps": "3"}, "'outer.steps' is '3': input should be a valid integer."),
    "text for a float": (
        {"steps": 1, "inner": {"lr": "1e-4"}},
        "'outer.inner.lr' is '1e-4': input should be a valid number.",
    ),
    "bool for a number": ({"steps": True}, "'outer.steps' is True: input should be a valid integer."),
    "float for a number": ({"steps": 2.0}, "'outer.steps' is 2.0: input should be a valid integer."),
    "number for a bool": ({"steps": 1, "on": 1}, "'outer.on' is 1: input should be a valid boolean."),
    "number for a text": ({"steps": 1, "name": 7}, "'outer.name' is 7: input should be a valid string."),
    "bounds": ({"steps": 0}, "'outer.steps' is 0: input should be greater than or equal to 1."),
    "nan": ({"steps": 1, "inner": {"lr": float("nan")}}, "'outer.inner.lr' is nan: input should be a finite number."),
    "infinity": (
        {"steps": 1, "inner": {"lr": float("inf")}},
        "'outer.inner.lr' is inf: input should be a finite number.",
    ),
    "a list too long": ({"steps": 1, "inner": {"size": [1, 2, 3]}}, "'outer.inner.size' is [1, 2, 3]:"),
    "inside a list": (
        {"steps": 1, "many": [{}, {"size": [1, "x"]}]},
        "'outer.many.1.size.1' is 'x': input should be a valid integer.",
    ),
    "union": (
        {"steps": 1, "limit": "nnoe"},
        "'outer.limit' is 'nnoe', which is none of its choices. Did you mean 'none'?",
    ),
    "no section": (None, "'outer' is None:"),
    "a list for a section": ([1], "'outer' is [1]:"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str) -> None:
    data, expected = MISTAKES[name]
    assert message(data).startswith(f"params.yaml: {expected}")


def test_all_mistakes_are_named_at_once() -> None:
    lines = message({"kind": "x", "inner": {"lr": -1, "z": 0}}).split("\n       ")
    assert len(lines) == 4
    assert all(line.startswith("params.yaml: ") for line in lines)
    assert {line.split("'")[1] for line in lines} == {"outer.steps", "outer.kind", "outer.inner.lr", "outer.inner.z"}


def test_what_yaml_makes_of_words(tmp_path: Path) -> None:
    """YAML 1.2, as DVC reads it: 1e-4 is a number, `no` and `on` are words, octals need 0o."""
    path = tmp_path / "params.yaml"
    path.write_text("a: 1e-4\nb: no\nc: on\nd: 010\ne: 1_000\nf: ~\ng: .nan\n")
    found = read_yaml(path)
    assert {key: found[key] for key in "abcdf"} == {"a": 1e-4, "b": "no", "c": "on", "d": 10, "f": None}
    assert found["g"] != found["g"]


def test_files_that_are_no_yaml(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(ConfigError, match=r"params\.yaml is missing\. A preset to copy lies in presets/\."):
        read_yaml(path)
    for text, expected in (
        ("a: [1\n", r"is no valid YAML: (?s:.)*line 2"),
        ("a: 1\nb: 2\na: 3\n", r'found duplicate key "a"(?s:.)*line 3'),
        ("a:\n\t- 1\n", "is no valid YAML"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=expected):
            read_yaml(path)
    path.write_bytes("a: größe".encode("latin-1"))
    with pytest.raises(ConfigError, match="is no valid YAML: 'utf-8' codec can't decode"):
        read_yaml(path)


def test_values_that_are_not_plain(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("model:\n  family: 2024-06-01\n  base: x\n")
    with pytest.raises(ConfigError, match=r"params\.yaml: model: not plain values: .*date"):
        load_section(ModelParams, "model", path)


def test_a_missing_section(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    for text in ("", "- 1\n", "train: {}\n"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"params\.yaml: section 'model' is missing\."):
            load_section(ModelParams, "model", path)


def test_sections_of_a_whole_file_load() -> None:
    params = SMALL / "params" / "tiny-sdxl.yaml"
    assert load_section(TrainParams, "train", params).optimizer.lr == 1e-3
    assert load_section(SampleParams, "sample", params).size == (128, 128)


def test_unions_of_the_real_sections_name_one_key_once() -> None:
    text = message({"steps": 1, "flow": {"shift": "resolutoin"}}, TrainParams)
    assert len(text.split("\n")) == 1
    assert text.startswith("params.yaml: 'outer.flow.shift' is 'resolutoin', which is none of its choices.")
    assert "Did you mean 'resolution'?" in text
    text = message({"prompts": [{"prompt": "x"}], "checkpoints": ["lats"]}, SampleParams)
    assert len(text.split("\n")) == 1
    assert "Did you mean 'last'?" in text


def test_did_you_mean() -> None:
    assert did_you_mean("learning_rate", ["lr", "learning_rates", "steps"]) == (
        " Did you mean 'learning_rates'? Known: learning_rates, lr, steps."
    )
    assert did_you_mean("zzz", ["lr"]) == " Known: lr."
    assert did_you_mean("x", []) == " Known: (none)."


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("ERIDIFF_STORE", raising=False)
    return make_checkout(tmp_path / "checkout", monkeypatch)


def test_the_users_own_settings_hold_in_every_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(checkout / "config"))
    monkeypatch.delenv("ERIDIFF_STORE", raising=False)
    path = checkout / "config/eridiff/local.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("store: /big/store\ndevice: cpu\n")
    assert load_local() == LocalConfig(store="/big/store", device="cpu")
    (checkout / "local.yaml").write_text("device: cuda\n")
    assert load_local() == LocalConfig(store="/big/store", device="cuda")
    assert store_root() == Path("/big/store")
    path.write_text("stor: /big\n")
    with pytest.raises(ConfigError, match=r"config/eridiff/local\.yaml.*stor.*Did you mean 'store'"):
        load_local()


def test_local_yaml_is_found_upward_and_may_be_absent(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_local() == LocalConfig()
    (checkout / "local.yaml").write_text("# nothing yet\n")
    assert load_local() == LocalConfig()
    (checkout / "local.yaml").write_text("device: cpu\nstate_every: 7\n")
    inner = checkout / ".dvc" / "tmp" / "exps" / "x"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert load_local() == LocalConfig(device="cpu", state_every=7)
    (inner / "local.yaml").write_text("device: cuda\n")
    assert load_local().device == "cuda"  # the nearest alone
    assert load_local().state_every == 50


def test_local_yaml_is_strict(checkout: Path) -> None:
    for text, expected in (
        ("devise: cpu\n", "local.yaml: unknown key 'devise' (value 'cpu'). Did you mean 'device'?"),
        ("state_every: 0\n", "local.yaml: 'state_every' is 0: input should be greater than or equal to 1."),
        ("bases: [a]\n", "local.yaml: 'bases' is ['a']:"),
        ("bases: {a: 1}\n", "local.yaml: 'bases"),
        ("preview_prompts: a cat\n", "local.yaml: 'preview_prompts' is 'a cat':"),
    ):
        (checkout / "local.yaml").write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_local()
        assert str(caught.value).startswith(expected)


def test_places(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = checkout / "projects" / "p"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert checkout_root() == checkout
    assert bases_dir() == checkout / "data" / "bases"
    assert find_upward("data") == checkout
    assert find_upward("nowhere to be found") is None
    with pytest.raises(ConfigError, match=rf"{tmp_path} is not inside an eridiff checkout"):
        checkout_root(tmp_path)


def test_the_stores_place(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert store_root() == tmp_path / "cache" / "eridiff" / "store"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert store_root() == tmp_path / "home" / ".cache" / "eridiff" / "store"
    (checkout / "local.yaml").write_text("store: ~/big\n")
    assert store_root() == tmp_path / "home" / "big"
    monkeypatch.setenv("ERIDIFF_STORE", "/elsewhere")
    assert store_root() == Path("/elsewhere")


def test_a_command_run_below_a_project_is_sent_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text("a: 1\n")
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    with pytest.raises(ConfigError, match=re.escape(f"params.yaml is missing. Run this in {tmp_path}.")):
        read_yaml(Path("params.yaml"))
    (tmp_path / "data" / "dvc.yaml").write_text("stages: {}\n")
    with pytest.raises(ConfigError, match=r"params\.yaml is missing\. A preset to copy lies in presets/\."):
        read_yaml(Path("params.yaml"))


@pytest.mark.parametrize(
    ("before", "today"), [("keep", "none"), ("selective", "selective"), ("recompute", "full"), ("offload", "offload")]
)
def test_earlier_words_of_local_yaml_are_read_with_a_line(
    checkout: Path, before: str, today: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "local.yaml").write_text(f"device: cpu\nactivations: {before}\n")
    local._warn_once.cache_clear()
    assert load_local() == load_local() == LocalConfig(device="cpu", activation_checkpointing=today)  # type: ignore[arg-type]
    line = f"'activations: {before}' is now 'activation_checkpointing: {today}'. The earlier words are still read."
    assert capsys.readouterr() == ("", f"warning: local.yaml: {line}\n")


def test_wrong_earlier_words_of_local_yaml_are_refused(checkout: Path) -> None:
    for text, expected in (
        ("activations: kep\n", "local.yaml: 'activation_checkpointing' is 'kep'"),
        ("activations: -3\n", "local.yaml: 'activation_checkpointing' is -3"),
        ("activation_checkpointing: keep\n", "local.yaml: 'activation_checkpointing' is 'keep'"),
        (
            "activations: keep\nactivation_checkpointing: full\n",
            "local.yaml: 'activations' is the earlier name of 'activation_checkpointing', which is set too. Remove it.",
        ),
    ):
        (checkout / "local.yaml").write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_local()
        assert str(caught.value).startswith(expected)
