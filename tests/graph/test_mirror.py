"""Tests mirror the packages: tests/PACKAGE/test_MODULE.py. What has another place is listed here, each with a reason.

A module that is added comes with a test file of its name, or with a line here; so does a test file of another name.
"""

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Test files of things that are no module of eridiff: pipelines, contracts over families, the tree itself, floods.
APART = ("contract", "e2e", "graph", "robustness")
# Each family's three files, which tests/contract and tests/weights run for every family there is.
FAMILY_FILES = ("family", "keys", "workflow")

# Module -> the test file that tests it: it imports the module, or the line says how it comes by it.
ELSEWHERE = {
    "acceleration/choose": "training/test_fast.py: as `prepare` asks it",
    "bases/add": "bases/test_find.py",
    "bases/collect": "bases/test_places.py",
    "bases/hub": "bases/test_places.py",
    "bases/pointer_report": "bases/test_inspect.py",
    "bases/pointer_files": "bases/test_find.py",
    "bases/recognise": "bases/test_inspect.py",
    "bases/tokenizers": "bases/test_places.py",
    "caching/drift_check": "caching/test_drift_records.py",
    "caching/fill": "store/test_store.py",
    "caching/job": "caching/latents/test_job.py",
    "caching/latents/vae_drift": "caching/test_drift_records.py",
    "caching/latents/samples": "caching/latents/test_plan.py",
    "caching/text_drift": "caching/test_drift_records.py",
    "comfyui_nodes": "contract/test_protocol.py: as every family's workflow uses it",
    "core/config_errors": "core/test_config.py: its messages are those of load_section",
    "core/json_files": "core/test_files.py",
    "core/value_limits": "robustness/test_bounds.py",
    "core/printable": "robustness/test_bounds.py",
    "core/progress": "robustness/test_bounds.py",
    "core/threads": "caching/test_pipeline.py",
    "dataset/caption/precedence": "dataset/caption/test_owners.py: as the owners choose",
    "dataset/caption/json_values": "dataset/caption/test_files.py: by way of metadata.jsonl",
    "dataset/caption/names": "dataset/caption/test_owners.py",
    "dataset/caption/rows": "dataset/caption/test_files.py: by way of tables",
    "dataset/caption/rules": "dataset/test_captions.py",
    "dataset/caption/tables": "dataset/caption/test_files.py",
    "dataset/caption_report": "dataset/test_captions.py",
    "dataset/folder_files": "dataset/test_pictures.py",
    "dataset/image/first_bytes": "dataset/test_pictures.py: by way of the pictures that it refuses",
    "dataset/image/header": "dataset/image/test_decode.py",
    "dataset/image/icc": "dataset/image/test_colour.py",
    "dataset/image/orientation": "dataset/image/test_decode.py: by way of the pictures that are turned",
    "dataset/picture_notes": "dataset/test_pictures.py",
    "dvc/graph": "e2e/test_table.py: by way of `eridiff why`, against what DVC then runs",
    "dvc/before_versions": "projects/test_upgrade.py",
    "dvc/outs": "store/test_verify.py",
    "dvc/pushing": "projects/test_projects.py",
    "dvc/stage_records": "projects/test_upgrade.py: as an upgrade fills `${...}` and reads the stages",
    "dvc/state": "dvc/test_repair.py",
    "family": "contract/test_protocol.py",
    "flow/allowed": "flow/test_gate.py",
    "flow/api": "e2e/test_flow_gate.py: it needs a served Prefect",
    "flow/deployment": "e2e/test_flow.py: it needs a served Prefect",
    "flow/access": "flow/test_gate.py",
    "flow/run": "e2e/test_flow_stops.py: it needs DVC and stages",
    "flow/server": "e2e/test_flow_gate.py: it needs a served Prefect",
    "formats/floats": "weights/test_lora_keys.py",
    "machine/code": "test_versions.py",
    "machine/gpus": "projects/test_new.py",
    "machine/local": "core/test_config.py",
    "memory/stages": "memory/test_plan.py",
    "memory/train": "memory/test_plan.py",
    "models/assemble": "models/test_quantise.py: by way of the models that are loaded",
    "models/load": "contract/test_toy_family.py",
    "models/lora": "contract/test_parity.py",
    "models/precision": "caching/latents/test_encode.py",
    "models/samplers": "contract/test_parity.py",
    "models/text_encoders": "contract/test_parity.py: by way of every family's encode_text",
    "params/buckets": "dataset/test_buckets.py",
    "params/captions": "dataset/test_captions.py",
    "params/edit": "projects/test_new.py",
    "params/export": "export/test_export.py",
    "params/latents": "caching/latents/test_plan.py",
    "params/sample": "sampling/test_sample.py",
    "params/text": "caching/test_text.py",
    "params/train": "training/test_optim.py",
    "params/trigger": "sampling/test_sample.py: by way of fill_trigger",
    "projects/eridiffusion_keys": "projects/test_import_eridiffusion.py",
    "reference": "graph/test_docs.py",
    "reproduce": "core/test_stopping.py: as `make repro` starts it",
    "sampling/colour_filters": "sampling/test_descriptors.py",
    "sampling/concept": "sampling/test_descriptors.py",
    "sampling/draw": "contract/test_toy_family.py",
    "sampling/metrics": "sampling/test_descriptors.py",
    "sampling/previews": "sampling/test_sample.py",
    "store/catalogue": "store/test_entry_table.py",
    "store/commands": "e2e/test_store_repair.py: as a user types them",
    "store/last_output": "e2e/test_clones.py: it reads a clone's dvc.lock and cache",
    "store/entries": "store/test_store.py",
    "store/faults": "store/test_verify.py",
    "store/marker": "store/test_store.py: each store that is opened has one",
    "store/pins": "store/test_gc.py",
    "store/repair": "store/test_verify.py",
    "store/sharding": "store/test_entry_table.py",
    "store/usage": "store/test_survival.py",
    "training/plain": "training/test_train.py: as the loop calls it",
    "training/prepare": "training/test_train.py: as the loop enters it",
    "training/run": "training/test_train.py",
    "training/step": "training/test_train.py: by way of tests/support/training.py, against diffusers' scripts",
    "training/checkpoint": "contract/test_toy_family.py",
    "weights/files": "bases/test_inspect.py",
    "weights/component_tensors": "weights/test_single_files.py: by way of bases in single files",
    "weights/pickles": "bases/test_inspect.py: by way of the files that are refused",
    "weights/pointers": "bases/test_find.py",
    "weights/schedules": "bases/test_marks.py",
    "weights/shared_keys": "weights/test_tensor_keys.py: by way of every family's parts",
    "weights/signatures": "bases/test_inspect.py: by way of the files that it recognises",
    "why/cache_lookup": "e2e/test_table.py: its counts are the next run's",
    "why/prediction": "e2e/test_table.py: its lines are compared with the next run",
    "why/why": "e2e/test_table.py: it is compared with the next run, for every row of the table",
}

# Test file that bears no module's name -> of what it is.
OF_NO_MODULE = {
    "benchmarks/test_parity.py": "eridiff's step against those of diffusers' scripts (benchmarks/parity.py)",
    "benchmarks/test_step.py": "the benchmark of the step (benchmarks/step.py)",
    "caching/test_histories.py": "both caching stages: equal bytes, whatever was added and lost on the way",
    "caching/test_keys.py": "the keys of both caches, pinned",
    "caching/test_keys_properties.py": "the keys of both caches: what is in them, and what is not",
    "export/test_comfyui.py": "every family's keys against those of a ComfyUI checkout",
    "models/test_quantised_compiled.py": "quantised layers of every kind, inside compiled blocks",
    "store/test_docs.py": "docs/store.md: its reader and its table",
    "store/test_processes.py": "the store under several processes",
    "store/test_survival.py": "the store under kills, full disks and open files",
    "test_gpu.py": "everything that a CUDA device does otherwise",
    "weights/test_single_files.py": "bases in single files, from the file to the answer of the model",
}


def modules() -> set[str]:
    """Modules of eridiff as paths, less packages, the program's entry and the families' files."""
    paths = (path.relative_to(ROOT / "eridiff").with_suffix("") for path in (ROOT / "eridiff").rglob("*.py"))
    names = {path.as_posix() for path in paths if path.name not in ("__init__", "__main__")}
    return {name for name in names if not re.fullmatch(rf"families/\w+/(?:{'|'.join(FAMILY_FILES)})", name)}


def tests() -> set[str]:
    """Test files, less those that stand apart."""
    paths = (path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py"))
    return {path.as_posix() for path in paths if path.parts[0] not in APART}


def test_of(module: str) -> str:
    """The test file that mirrors a module."""
    path = Path(module)
    return path.with_name(f"test_{path.name}.py").as_posix()


test_of.__test__ = False  # type: ignore[attr-defined]  # a name, no test
tests.__test__ = False  # type: ignore[attr-defined]


def imports(test: Path) -> set[str]:
    """Modules of eridiff that a test file imports, as paths."""
    nodes = [node for node in ast.walk(ast.parse(test.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
    named = {name for node in nodes for name in (f"{node.module}.{alias.name}" for alias in node.names)}
    named |= {str(node.module) for node in nodes}
    return {name.removeprefix("eridiff.").replace(".", "/") for name in named if name.startswith("eridiff.")}


def test_every_module_has_a_test_file_or_a_reason() -> None:
    without = {module for module in modules() if test_of(module) not in tests()}
    assert without - ELSEWHERE.keys() == set(), "add tests/PACKAGE/test_MODULE.py, or a line to ELSEWHERE"
    assert ELSEWHERE.keys() - without == set(), "these have a test file, or are gone: take their lines away"


def test_every_test_file_has_a_module_or_a_reason() -> None:
    odd = tests() - {test_of(module) for module in modules()}
    assert odd - OF_NO_MODULE.keys() == set(), "name the file after its module, or add a line to OF_NO_MODULE"
    assert OF_NO_MODULE.keys() - odd == set(), "these mirror a module, or are gone: take their lines away"


@pytest.mark.parametrize("module", ELSEWHERE)
def test_what_is_tested_elsewhere_is(module: str) -> None:
    place, _, reason = ELSEWHERE[module].partition(": ")
    assert (ROOT / "tests" / place).exists()
    assert reason or module in imports(ROOT / "tests" / place), f"{place} does not import {module}: say how it tests it"


def test_every_package_says_in_one_sentence_what_it_is() -> None:
    for path in (ROOT / "eridiff").rglob("__init__.py"):
        said = ast.get_docstring(ast.parse(path.read_text("utf-8")))
        assert said and said.endswith(".") and not re.search(r"[.!?]\s", said), path
