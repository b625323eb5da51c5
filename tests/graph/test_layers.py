"""Heavy libraries are imported where they are used; what the contracts of imports in pyproject.toml say can fail.

Who may import whom, `[tool.importlinter]` says; `make check` runs it.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support import processes

ROOT = Path(__file__).parent.parent.parent

HEAVY = {
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "prefect",
    "pyarrow",
    "dvc",
    "bitsandbytes",
    "accelerate",
    "cairosvg",
}
# These work on tensors throughout; the stages that need no torch do not import them.
WITH_TORCH = {
    "core.noise",
    "store.reader",
    "memory.plan",
    "memory.meta_results",
    "memory.stages",
    "memory.trace",
    "memory.train",
}
WITH_TORCH |= {f"models.{name}" for name in ("precision", "quantise", "quantised_product", "upload")}
WITH_TORCH |= {
    f"training.{name}" for name in ("base_check", "checkpoint", "data", "job", "loss_scale", "objectives", "resume")
}
WITH_TORCH |= {f"training.{name}" for name in ("fast", "plain", "prepare", "run", "step", "train")}
WITH_TORCH |= {f"acceleration.{name}" for name in ("adapters", "attention", "attention_check", "choose", "graph")}
WITH_TORCH |= {f"acceleration.{name}" for name in ("levels", "recompute", "swap")}


def files() -> dict[str, Path]:
    """Module name less `eridiff.` -> file."""
    found = {}
    for path in sorted((ROOT / "eridiff").rglob("*.py")):
        parts = path.relative_to(ROOT / "eridiff").with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


FILES = files()


def statements(tree: ast.AST, *, inside_functions: bool) -> Iterator[ast.stmt]:
    """Import statements, less those that only type checkers read."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from statements(node, inside_functions=inside_functions)


@cache
def imported(path: Path, *, inside_functions: bool = True) -> set[str]:
    """Full names of the modules that a file imports."""
    names = set()
    for node in statements(ast.parse(path.read_text("utf-8")), inside_functions=inside_functions):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: a relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in inner if name.removeprefix("eridiff.") in FILES}
            names |= modules or {node.module}
    return names


def test_the_check_can_fail(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("def f() -> None:\n    from eridiff.training import train\n    import eridiff.why.why\n")
    assert imported(path) == {"eridiff.training.train", "eridiff.why.why"}
    path.write_text(
        "if TYPE_CHECKING:\n    import torch\ndef f() -> None:\n    import diffusers\nimport json, peft.utils\n"
    )
    assert imported(path, inside_functions=False) == {"json", "peft.utils"}


def lint(folder: Path) -> "subprocess.CompletedProcess[str]":
    """What `make check` says of the imports of a checkout."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_contracts_are_kept() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


# Contract -> a module, the import that is written into it, and what the linter says of it.
PLANTED = {
    "Imports go down only": [
        ("store/gc.py", "from eridiff.bases import find", "eridiff.store.gc -> eridiff.bases.find"),
        (
            "weights/files.py",
            "from eridiff.families.sdxl import keys",
            "eridiff.weights.files -> eridiff.families.sdxl.keys",
        ),
        (
            "core/value_limits.py",
            "def late() -> None:\n    import eridiff.machine.gpus",
            "eridiff.core.value_limits -> eridiff.machine.gpus",
        ),
        (
            "dvc/state.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from eridiff.params.model import ModelParams",
            "eridiff.dvc.state -> eridiff.params.model",
        ),
        (
            "training/train.py",
            "from eridiff.sampling.sample import draw_samples",
            "eridiff.training.train -> eridiff.sampling.sample",
        ),
        ("dataset/buckets.py", "import eridiff.models.samplers", "eridiff.dataset.buckets -> eridiff.models.samplers"),
        ("extra/__init__.py", "", "extra"),
        ("odd.py", "", "odd"),
    ],
    "No circle": [
        ("formats/seals.py", "import eridiff.formats.safetensors", "No cycles are allowed in eridiff.formats.")
    ],
    "Families know nothing": [
        (
            "families/flux/keys.py",
            "import eridiff.families.sd35.keys",
            "eridiff.families.flux.keys -> eridiff.families.sd35.keys",
        )
    ],
    "eridiff knows no stage": [("check.py", "import stages.train", "eridiff.check -> stages.train")],
    "The stage latents": [
        (
            "caching/latents/tiles.py",
            "import eridiff.caching.text",
            "eridiff.caching.latents.tiles -> eridiff.caching.text",
        )
    ],
    "The stage text": [
        (
            "caching/text_drift.py",
            "import eridiff.dataset.image.colour",
            "eridiff.caching.text_drift -> eridiff.dataset.image.colour",
        )
    ],
    "Params hold no machinery": [
        ("params/edit.py", "import eridiff.machine.local", "eridiff.params.edit -> eridiff.machine.local")
    ],
}


def test_an_import_that_a_contract_forbids_is_named(tmp_path: Path) -> None:
    """Late imports and those of type checkers count; a package that stands in no line is a fault."""
    for name in ("eridiff", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for place, line, _ in (one for some in PLANTED.values() for one in some):
        path = tmp_path / "eridiff" / place
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{path.read_text('utf-8') if path.exists() else ''}\n{line}\n", "utf-8")
    done = lint(tmp_path)
    said = " ".join(done.stdout.split())
    assert done.returncode == 1
    for contract, planted in PLANTED.items():
        assert re.search(rf"{contract}[^.]*? BROKEN", said), f"{contract}: {done.stdout}"
        for _, _, arrow in planted:
            assert arrow in said, f"{arrow} is not named: {done.stdout}"


def test_every_folder_of_eridiff_is_a_package_of_the_contract() -> None:
    """`exhaustive` sees packages alone: a folder without `__init__.py` would be in no line."""
    for path in (ROOT / "eridiff").rglob("*.py"):
        assert (path.parent / "__init__.py").exists(), path


def test_eridiff_never_imports_tests() -> None:
    for path in FILES.values():
        assert not {name for name in imported(path) if name.split(".")[0] == "tests"}, path


def test_only_the_flow_imports_prefect() -> None:
    """stages/flow.py, and nothing else; no other stage imports it, or another."""
    stages = {path.stem: imported(path) for path in (ROOT / "stages").glob("*.py")}
    everything = {**{f"eridiff.{name}": imported(path) for name, path in FILES.items()}, **stages}
    assert [name for name, names in everything.items() if "prefect" in {n.split(".")[0] for n in names}] == ["flow"]
    for name, names in stages.items():
        assert name == "flow" or not {other for other in names if other.startswith("stages")}, name


@pytest.mark.parametrize("name", FILES)
def test_no_heavy_import_at_the_top(name: str) -> None:
    heavy = {module.split(".")[0] for module in imported(FILES[name], inside_functions=False)} & HEAVY
    assert heavy <= ({"torch"} if name in WITH_TORCH else set())


IMPORT_ALL = """
import importlib, sys
names, heavy = sys.argv[1].split(","), sys.argv[2].split(",")
for name in names:
    importlib.import_module(f"eridiff.{name}" if name else "eridiff")
    assert not (loaded := set(heavy) & set(sys.modules)), f"eridiff.{name} imports {loaded}"
print(len(names))
"""


@pytest.mark.slow
def test_light_modules_start_light() -> None:
    """All modules but those that work on tensors, imported in one process: no heavy library is loaded."""
    light = [name for name in FILES if name not in WITH_TORCH and name != "__main__"]
    assert processes.run(IMPORT_ALL, ",".join(light), ",".join(HEAVY)) == f"{len(light)}\n"


def test_one_function_writes_all_safetensors() -> None:
    """The library's own writers order metadata by chance: nothing of ours calls them."""
    for path in [*(ROOT / "eridiff").rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        text = path.read_text("utf-8")
        assert not re.search(r"save_file|save_pretrained|save_lora_weights|torch\.save|import safetensors", text), path
