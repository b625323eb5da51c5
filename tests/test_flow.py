"""What a served run is made of, without a server: the form, overrides, the graph, outcomes, the page."""

import xml.etree.ElementTree as ET
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from ruamel.yaml import YAML

from eridiff.config import read_yaml
from eridiff.errors import ConfigError
from eridiff.experiments import changes, spelled
from eridiff.flowform import CHECKOUT, form_schema, presets, read_request, read_sets
from eridiff.runpage import cache_page, curve, export_page, picture, running_mean
from eridiff.slots import Slot, gpus, slot_names
from eridiff.stagegraph import CACHED, Node, announced, may_run, read_nodes, read_outcome, up_to, worth_showing
from tests.conftest import ROOT
from tests.test_layers import imported

OF_DVC = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # pygtrie, under DVC's graph
NODES = (
    Node(name="a", upstream=()),
    Node(name="b", upstream=()),
    Node(name="c", upstream=("a",)),
    Node(name="d", upstream=("b", "c")),
)


# The graph


@OF_DVC
def test_nodes_are_the_stages_of_dvc_yaml_with_producers_first() -> None:
    nodes = read_nodes(ROOT)
    record = read_yaml(ROOT / "dvc.yaml")["stages"]
    assert {node.name: node.gpu for node in nodes} == {n: s["meta"]["resource"] == "gpu" for n, s in record.items()}
    place = {node.name: number for number, node in enumerate(nodes)}
    assert all(place[name] < place[node.name] for node in nodes for name in node.upstream)
    assert next(node for node in nodes if node.name == "train").upstream == ("buckets", "captions", "latents", "text")


def test_what_reads_from_a_changed_stage_may_run() -> None:
    assert may_run(NODES, {}) == set()
    assert may_run(NODES, {"a": []}) == {"a", "c", "d"}
    assert may_run(NODES, {"b": []}) == {"b", "d"}
    assert [node.name for node in up_to(NODES, "c")] == ["a", "c"]
    assert up_to(NODES, None) == NODES
    with pytest.raises(ConfigError, match="no stage 'e'"):
        up_to(NODES, "e")


def make_stage(folder: Path, meta: dict[str, Any]) -> None:
    """A DVC repository of one stage."""
    from dvc.repo import Repo

    Repo.init(str(folder), no_scm=True).close()
    with (folder / "dvc.yaml").open("w") as file:
        YAML().dump({"stages": {"one": {"cmd": "true", "meta": meta}}}, file)


@OF_DVC
def test_meta_says_what_a_stage_needs(tmp_path: Path) -> None:
    make_stage(tmp_path, {"resource": "gpu", "network": True, "timeout": 7200})
    assert read_nodes(tmp_path) == (Node(name="one", upstream=(), gpu=True, network=True, timeout=7200),)


@OF_DVC
@pytest.mark.parametrize("meta", [{"resource": "tpu"}, {"network": "yes"}, {"timeout": -1}, {"timeout": "1h"}])
def test_meta_that_is_not_known_is_refused(tmp_path: Path, meta: dict[str, Any]) -> None:
    make_stage(tmp_path, meta)
    with pytest.raises(ConfigError, match=f"meta.{next(iter(meta))} of stage 'one'"):
        read_nodes(tmp_path)


@pytest.mark.parametrize(
    ("code", "lines", "expected"),
    [
        (0, ["Stage 'a' didn't change, skipping", "Data and pipelines are up to date."], CACHED),
        (0, ["Stage 'a' is cached - skipping run, checking out outputs"], "Restored"),
        (0, ["Running stage 'a':", "> python -m a", "a: 3 samples", "Updating lock file 'dvc.lock'"], "a: 3 samples"),
        (0, ["Verifying data sources in stage: 'data/raw.dvc'"], "done"),
        (0, ["'data/raw.dvc' didn't change, skipping"], CACHED),
        (0, ["Running stage 'a':", "a: 3", "WARNING: The following untracked files were present in", "\ta/.x"], "a: 3"),
        (255, ["Running stage 'a':", "error: no b", "       or c", "ERROR: failed to reproduce 'a'"], "no b\nor c"),
        (
            255,
            ["Running stage 'a':", "Killed", "ERROR: failed to reproduce 'a'"],
            "Killed\nERROR: failed to reproduce 'a'",
        ),
        (255, [], "it failed without a word"),
    ],
)
def test_an_outcome_is_read_from_what_dvc_says(code: int, lines: list[str], expected: Any) -> None:
    outcome = read_outcome(code, lines)
    assert expected in (outcome, outcome.state, outcome.message)
    assert outcome.well == (code == 0)


def test_dvcs_lines_tell_whose_turn_it_is_and_its_advice_is_not_shown() -> None:
    turns = {
        "Running stage 'a':": "a",
        "Stage 'a' didn't change, skipping": "a",
        "Stage 'a' is cached - skipping run, checking out outputs": "a",
        "Verifying data sources in stage: 'data/raw.dvc'": "data/raw.dvc",
        "'data/raw.dvc' didn't change, skipping": "data/raw.dvc",
        "'a' is a word": None,
        "said: 'a'": None,
    }
    assert {line: announced(line) for line in turns} == turns
    assert not any(map(worth_showing, ("", "\tgit add dvc.lock", "To track the changes with git, run:")))
    assert all(map(worth_showing, (*turns, "> python -m a", "ERROR: b", "To be or not")))


# The form


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


# Overrides, as DVC's own code applies them


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


# Slots


def test_gpus_are_those_of_the_environment() -> None:
    assert gpus({"ERIDIFF_GPUS": "0, 2", "CUDA_VISIBLE_DEVICES": "1"}) == ("0", "2")
    assert gpus({"CUDA_VISIBLE_DEVICES": "1"}) == ("1",)
    assert gpus({"ERIDIFF_GPUS": ""}) == gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == ()
    assert list(slot_names({"ERIDIFF_GPUS": "0,2"}).values()) == ["0", "2"]
    slot = Slot(name="n", gpu="2", lease="l")
    assert slot.environment("cuda:1") == {"CUDA_VISIBLE_DEVICES": "2", "ERIDIFF_DEVICE": "cuda"}
    assert slot.environment("cpu") == slot.environment(None) == {"CUDA_VISIBLE_DEVICES": "2"}


# The page


def test_a_small_picture_stays_as_it_is(tmp_path: Path) -> None:
    small = tmp_path / "small.png"
    Image.new("RGB", (30, 20), "red").save(small)
    assert picture(small).startswith("data:image/png;base64,")
    assert b64decode(picture(small).split(",")[1]) == small.read_bytes()


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((2000, 1000), (2000, 1000)),
        ((6400, 1600), (3200, 800)),
        ((396, 3650), (396, 3650)),
        ((3072, 12288), (800, 3200)),
    ],
)
@pytest.mark.slow
def test_of_a_large_picture_every_row_can_still_be_seen(
    size: tuple[int, int], seen: tuple[int, int], tmp_path: Path
) -> None:
    """A long grid, too, keeps its width; what has many bytes becomes a JPEG."""
    Image.effect_noise(size, 90).save(tmp_path / "large.png")
    kind, _, content = picture(tmp_path / "large.png").partition(",")
    assert kind == "data:image/jpeg;base64"
    (tmp_path / "seen.jpg").write_bytes(b64decode(content))
    with Image.open(tmp_path / "seen.jpg") as image:
        assert image.size == seen


def test_the_curve_goes_through_its_points() -> None:
    root = ET.fromstring(curve([(1, 2.0), (2, 1.0), (3, 4.0)]))
    raw, smooth = (line.attrib["points"] for line in root.iter("{http://www.w3.org/2000/svg}polyline"))
    assert raw.split() == ["56.0,184.7", "400.0,270.0", "744.0,14.0"]
    assert len(smooth.split()) == 3
    assert running_mean([3.0, 3.0, 3.0]) == pytest.approx([3, 3, 3])
    ET.fromstring(curve([(1, 1.0)]))


def test_the_cache_line_and_the_digest(tmp_path: Path) -> None:
    line = "latents: 20 samples, 1 encoded, 19 reused, 2 shards written, 0.8 s"
    page = cache_page({"text": CACHED}, {"latents": ["x", line]})
    assert f"| latents | 20 | 1 | 19 | `{line}` |\n| text | | 0 | all | not started |" in page
    assert cache_page({}, {}) == ""
    (tmp_path / "f").write_bytes(b"abc")
    assert "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" in export_page(
        {"data/export/x.safetensors": tmp_path / "f", "data/export/README.md": tmp_path / "f"}
    )


# The pipeline itself


def imports_prefect(path: Path) -> bool:
    return "prefect" in {name.split(".")[0] for name in imported(path)}


def test_one_file_imports_prefect() -> None:
    files = [path for folder in ("eridiff", "stages") for path in (ROOT / folder).rglob("*.py")]
    assert [path.name for path in files if imports_prefect(path)] == ["flow.py"]


@pytest.mark.slow
def test_no_stage_reaches_the_flow_nor_prefect() -> None:
    for name in read_yaml(ROOT / "dvc.yaml")["stages"]:
        assert not {other for other in imported(ROOT / "stages" / f"{name}.py") if other.startswith("stages")}
    assert "prefect" not in (ROOT / "dvc.yaml").read_text("utf-8")
