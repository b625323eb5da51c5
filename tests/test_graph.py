"""dvc.yaml against the code: deps, outs and params are what the stages touch; each names its versions of the code."""

import ast
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from eridiff.check import SECTIONS
from eridiff.families import family_names, load_family
from eridiff.versions import code_versions
from tests.conftest import ROOT

STAGES: dict[str, Any] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
# Every path of the project's data that a stage's source names, less those of runs/ and settings.
DATA_OF_PARAMS = {"vae.json", "text.json", "denoiser.json"}


def outs(stage: str) -> list[str]:
    body = STAGES[stage]
    listed = [*body.get("outs", []), *body.get("metrics", []), *body.get("plots", [])]
    return [out if isinstance(out, str) else next(iter(out)) for out in listed]


# The family's number that a stage names; those without take no model.
FAMILY_NUMBER = {
    "latents": "vae_encode",
    "text": "text_encode",
    "train": "train",
    "sample": "sample",
    "export": "export",
}
CODE, OF_FAMILY = "eridiff/versions.yaml", "eridiff/families/${model.family}/versions.yaml"


def versions(stage: str) -> dict[str, list[str]]:
    """Params that are no section of params.yaml: file -> keys."""
    named = [param for param in STAGES[stage]["params"] if not isinstance(param, str)]
    return {path: keys for param in named for path, keys in param.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_data_and_each_stage_names_its_own_versions(stage: str) -> None:
    deps = STAGES[stage]["deps"]
    assert all(dep == "params.yaml" or dep.startswith("data/") for dep in deps)
    wanted = {CODE: [f"stages.{stage}", *(["store.pixels"] if stage == "latents" else [])]}
    if stage in FAMILY_NUMBER:
        wanted[OF_FAMILY] = [f"family.{FAMILY_NUMBER[stage]}"]
    assert versions(stage) == wanted


def test_every_version_is_named_by_a_stage() -> None:
    named = {path: {key for stage in STAGES for key in versions(stage).get(path, [])} for path in (CODE, OF_FAMILY)}
    assert named[CODE] == set(code_versions().numbers)
    for family in family_names():
        assert named[OF_FAMILY] == set(load_family(family).VERSIONS.numbers)
    assert not {key.split(".")[0] for keys in named.values() for key in keys} & set(SECTIONS)  # DVC shows no file


def literals(stage: str) -> set[str]:
    """data/... paths in the source of a stage, as strings."""
    tree = ast.parse((ROOT / "stages" / f"{stage}.py").read_text("utf-8"))
    docstrings = {
        ast.get_docstring(node, clean=False)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.FunctionDef)
    }
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {text for text in strings - docstrings if text.startswith("data/")}


# Paths that a stage builds from those in its source (out / "index.parquet"), or reads without depending on them:
# latents and sample read pictures by the digests that buckets.parquet carries.
BUILT: dict[str, dict[str, set[str]]] = {
    "captions": {"data/captions": {"data/captions/images.parquet", "data/captions/captions.parquet"}},
    "buckets": {"data/buckets": {"data/buckets/buckets.parquet", "data/buckets/report.md"}},
    "latents": {"data/raw": set()},
    "train": {"data/latents/index.parquet": {"data/latents"}, "data/text/index.parquet": {"data/text"}},
    "sample": {
        "data/samples": {"data/samples/images", "data/samples/grid.png", "data/samples/metrics.json"},
        "data/raw": set(),
    },
}

# Deps that a stage's own source does not name: read by way of eridiff/sources.py, or there for the order alone.
UNREAD = {"check": {"data/bases"}, "captions": {"data/check.txt"}}


@pytest.mark.parametrize("stage", STAGES)
def test_data_deps_and_outs_are_the_paths_in_the_stage(stage: str) -> None:
    named: set[str] = set()
    for path in literals(stage):
        named |= BUILT.get(stage, {}).get(path, {path})
    listed = {dep for dep in STAGES[stage]["deps"] if dep.startswith("data/") and "${" not in dep}
    listed -= UNREAD.get(stage, set())
    assert named == listed | set(outs(stage))


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "check"])
def test_params_are_the_sections_that_the_stage_loads(stage: str) -> None:
    tree = ast.parse((ROOT / "stages" / f"{stage}.py").read_text("utf-8"))
    loaded = {
        node.args[1].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "load_section"
        if isinstance(node.args[1], ast.Constant)
    }
    assert loaded == {param for param in STAGES[stage]["params"] if isinstance(param, str)}
    assert loaded <= set(SECTIONS)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_no_logic(stage: str) -> None:
    """Paths, its sections, one call or a few into eridiff, outs written: `main` alone, and short."""
    text = (ROOT / "stages" / f"{stage}.py").read_text("utf-8")
    functions = [
        getattr(node, "name", "lambda")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.Lambda)
    ]
    assert functions == ["main"]
    assert len(text.splitlines()) <= 48


def test_pointers_are_deps_of_the_stages_that_open_them() -> None:
    parts = {
        stage: {Path(dep).name for dep in body["deps"] if dep.startswith("data/bases/$")}
        for stage, body in STAGES.items()
    }
    assert parts == {
        "check": set(),
        "captions": set(),
        "buckets": set(),
        "latents": {"vae.json"},
        "text": {"text.json"},
        "train": {"denoiser.json"},
        "sample": DATA_OF_PARAMS,
        "export": {"${model.base}"},  # the folder: license.json may be missing there
    }


def test_stages_are_named_in_order_and_say_what_they_keep_busy() -> None:
    assert list(STAGES) == ["check", "captions", "buckets", "latents", "text", "train", "sample", "export"]
    for body in STAGES.values():
        assert body["meta"]["resource"] in ("cpu", "gpu")
        assert body["desc"]
        assert not any(isinstance(out, dict) and out.get("persist") for out in body.get("outs", []))
