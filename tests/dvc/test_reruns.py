"""What an upgrade says will run again: dvc.lock against the dvc.yaml and the versions to come."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from eridiff.core.errors import ConfigError
from eridiff.dvc import reruns
from eridiff.dvc.reruns import foresee_reruns
from eridiff.versions import CodeVersions, FamilyVersions, code_versions, family_versions
from tests.conftest import ROOT

SENTENCE = "Flow models draw timesteps otherwise: SD 3.5 and Flux.1 train again."
PIPELINE = """stages:
  text:
    cmd: python -m stages.text
    deps: [data/captions, 'data/bases/${model.base}/text.json']
    params: [model, {versions/stages.yaml: [stages.text]}, {'versions/${model.family}.yaml': [family.text_encode]}]
    outs: [data/text]
  train:
    cmd: python -m stages.train
    deps: [data/text]
    params: [train, {versions/stages.yaml: [stages.train]}, {'versions/${model.family}.yaml': [family.train]}]
    outs: [data/lora]
    plots: [data/loss.tsv: {x: step}]
  export:
    cmd: python -m stages.export
    deps: [data/lora]
    params: [export, {versions/stages.yaml: [stages.export]}]
    outs: [data/export]
"""
LOCK = """schema: '2.0'
stages:
  text:
    cmd: python -m stages.text
    deps: [{path: data/captions, md5: a}, {path: data/bases/tiny/text.json, md5: b}]
    params:
      params.yaml: {model: {family: flux, base: tiny}}
      versions/flux.yaml: {family.text_encode: 1}
      versions/stages.yaml: {stages.text: 1}
    outs: [{path: data/text, md5: c}]
  train:
    cmd: python -m stages.train
    deps: [{path: data/text, md5: c}]
    params:
      params.yaml: {train: {steps: 4}}
      versions/flux.yaml: {family.train: 1}
      versions/stages.yaml: {stages.train: 1}
    outs: [{path: data/lora, md5: d}, {path: data/loss.tsv, md5: e}]
  export:
    cmd: python -m stages.export
    deps: [{path: data/lora, md5: d}]
    params:
      params.yaml: {export: {name: x}}
      versions/stages.yaml: {stages.export: 1}
    outs: [{path: data/export, md5: f}]
"""
NOTHING = ["no stage will run again"]
FOLLOWS = "export will run too if what they read changes by it"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text("model: {family: flux, base: tiny}\n")
    return tmp_path


def raise_train(monkeypatch: pytest.MonkeyPatch, *, of_family: bool) -> None:
    """This eridiff's versions, with `train` raised to 3."""
    known: dict[str, CodeVersions | FamilyVersions] = {
        "versions/stages.yaml": code_versions(),
        "versions/flux.yaml": family_versions(ROOT / "eridiff/families/flux"),
    }
    place, section = ("versions/flux.yaml", "family") if of_family else ("versions/stages.yaml", "stages")
    record: dict[str, Any] = known[place].model_dump()
    record[section]["train"] = 3
    record["changes"] = tuple(
        {"version": f"{section}.train", "number": number, "sentence": f"{SENTENCE} ({number})"} for number in (2, 3)
    )
    known[place] = type(known[place]).model_validate(record)
    monkeypatch.setattr(reruns, "known_versions", lambda family: known)


@pytest.mark.parametrize(("of_family", "label"), [(False, "train"), (True, "flux's train")])
def test_a_raise_is_told_with_its_sentences(
    of_family: bool, label: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert foresee_reruns(project, PIPELINE, LOCK) == NOTHING
    raise_train(monkeypatch, of_family=of_family)
    first = f"train will run again: {label} 1 -> 3: {SENTENCE} (2) {SENTENCE} (3)"
    assert foresee_reruns(project, PIPELINE, LOCK) == [first, FOLLOWS]


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("cmd: python -m stages.train", "cmd: python -m stages.train --x", "its command changed"),
        ("deps: [data/text]", "deps: [data/text, data/masks]", "it reads data/masks now"),
        ("deps: [data/text]", "deps: []", "it no longer reads data/text"),
        ("outs: [data/lora]", "outs: [data/lora, data/ema]", "it writes data/ema now"),
        ("params: [train, ", "params: [train, model, ", "it depends on the params model now"),
    ],
)
def test_what_a_new_pipeline_makes_run(before: str, after: str, reason: str, project: Path) -> None:
    assert PIPELINE.count(before) == 1
    assert foresee_reruns(project, PIPELINE.replace(before, after), LOCK) == [
        f"train will run again: {reason}",
        FOLLOWS,
    ]


def test_what_is_no_part_of_the_upgrade_is_left_to_why(project: Path) -> None:
    """A changed param is none; nor are another family's versions, params that cannot be read, or a first run."""
    (project / "params.yaml").write_text("model: {family: sdxl, base: tiny}\n")
    assert foresee_reruns(project, PIPELINE, LOCK) == NOTHING
    (project / "params.yaml").write_text("model: [\n")
    assert foresee_reruns(project, PIPELINE, LOCK) == NOTHING
    (project / "params.yaml").unlink()
    assert foresee_reruns(project, PIPELINE, LOCK) == NOTHING
    assert foresee_reruns(project, PIPELINE, "") == ["nothing has run here yet"]
    more = PIPELINE + "  check: {cmd: python -m stages.check, deps: [params.yaml], outs: [data/check.txt]}\n"
    assert foresee_reruns(project, more, LOCK) == ["check will run again: it is new"]
    with pytest.raises(ConfigError, match=r"dvc\.lock: `stages` is not what DVC writes"):
        foresee_reruns(project, PIPELINE, "stages: [1]\n")


def test_the_checkouts_own_are_compared_alike() -> None:
    """The pipeline and the record in git, which agree."""
    lock = (ROOT / "dvc.lock").read_text("utf-8")
    assert foresee_reruns(ROOT, (ROOT / "dvc.yaml").read_text("utf-8"), lock) == NOTHING
    recorded = YAML(typ="safe").load(lock)["stages"]
    assert set(recorded) == {"check", "captions", "buckets", "latents", "text", "train", "sample", "export"}
