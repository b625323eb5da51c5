"""dvc.yaml against the code: deps are the import closure, outs and params are what the stages touch."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from eridiff.check import SECTIONS
from tests.closure import FAMILY_FILES, ROOT, closure, code_deps, neutral

STAGES: dict[str, Any] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
# Every path of the project's data that a stage's source names, less those of runs/ and settings.
DATA_OF_PARAMS = {"vae.json", "text.json", "denoiser.json"}


def outs(stage: str) -> list[str]:
    body = STAGES[stage]
    listed = [*body.get("outs", []), *body.get("metrics", []), *body.get("plots", [])]
    return [out if isinstance(out, str) else next(iter(out)) for out in listed]


@pytest.mark.parametrize("stage", STAGES)
def test_code_deps_are_the_import_closure_less_what_is_neutral(stage: str) -> None:
    listed = [dep for dep in STAGES[stage]["deps"] if dep.endswith(".py")]
    assert listed == code_deps(stage), "run `python -m tests.closure --write`"


def test_every_neutral_module_exists_and_is_imported_where_it_is_spared() -> None:
    for path, (stages, reason) in neutral().items():
        assert reason
        assert list(ROOT.glob(path.replace("${model.family}", "*"))), path
        for stage in [] if "all" in stages else stages:
            files = closure(ROOT / "stages" / f"{stage}.py")
            for name in FAMILY_FILES.get(stage, ()):
                for folder in (ROOT / "eridiff/families").glob("*/family.py"):
                    files |= closure(folder.parent / f"{name}.py")
            names = {file.relative_to(ROOT).as_posix() for file in files}
            assert any(Path(name).match(path.replace("${model.family}", "*")) for name in names), (path, stage)


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
    assert loaded == set(STAGES[stage]["params"])
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


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.slow
def test_closure_holds_every_module_of_ours_that_a_start_loads(stage: str) -> None:
    """The AST closure against sys.modules: importing the stage's module loads nothing outside it."""
    script = (
        f"import sys, json; import stages.{stage}; "
        "print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.split('.')[0] in ('eridiff', 'stages')]))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    loaded = {Path(file) for file in json.loads(done.stdout.splitlines()[-1])}
    assert loaded <= closure(ROOT / "stages" / f"{stage}.py")
