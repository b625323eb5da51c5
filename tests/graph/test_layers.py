"""Imports go down only; heavy libraries are imported where they are used; eridiff knows no stage."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support import processes

ROOT = Path(__file__).parent.parent.parent
FAMILY_FILES = ("family", "keys", "workflow")

# From the bottom up, less `eridiff.`; a module imports only from layers below its own, function bodies included.
# `families` is the protocol, `families/*` the folders. The order is design's: errors progress | config | captions
# buckets images | tables store | sources precision noise lora | families | latents texts data | train optim
# checkpoint | sample export why | cli.
LAYERS = (
    (
        "",
        "captionjson",
        "captionnames",
        "companions",
        "encoders",
        "filelock",
        "firstbytes",
        "flowapi",
        "flowbusy",
        "flowpage",
        "gpus",
        "icc",
        "joiners",
        "leftovers",
        "lossscale",
        "measure",
        "noise",
        "orientation",
        "parquetpages",
        "placement",
        "prediction",
        "printable",
        "signatures",
        "tiles",
        "tracing",
        "trigger",
        "words",
    ),
    (
        "colour",
        "colourfilters",
        "files",
        "plain",
        "progress",
        "slots",
    ),
    (
        "dvcstate",
        "figures",
        "jsonfiles",
        "runlog",
        "stopping",
        "supervise",
        "variants",
    ),
    ("errors",),
    (
        "captionchoice",
        "captionfiles",
        "choices",
        "config",
        "dvcgraph",
        "exprepair",
        "flowkeys",
        "images",
        "schedulers",
        "schedules",
    ),
    (
        "activations",
        "captiontables",
        "dvcrepair",
        "experiments",
        "flowgate",
        "ownouts",
        "params_buckets",
        "params_captions",
        "params_export",
        "params_latents",
        "params_model",
        "picturefolder",
        "project",
        "pushing",
        "stagegraph",
        "versions",
    ),
    (
        "captionowners",
        "captionrules",
        "captionsyntax",
        "codestate",
        "filedigests",
        "flowserver",
        "intake",
        "licences",
        "lockform",
        "ownpictures",
        "precision",
        "presets",
        "quantise",
        "runpage",
        "seals",
        "stagerun",
        "tokenizers",
    ),
    (
        "dvcinput",
        "encodepipe",
        "pictures",
        "probe",
        "projects",
        "roots",
        "tables",
        "tensorfile",
        "vae",
    ),
    (
        "buckets",
        "captions",
        "concept",
        "entries",
        "floats",
        "nonfinite",
        "pickles",
        "picturenotes",
        "reproduce",
        "runstate",
        "upgrade",
        "uploader",
    ),
    (
        "captionreport",
        "dedupe",
        "differences",
        "earlier",
        "entrytable",
        "keytables",
        "pixeldigests",
        "places",
        "shardfaults",
        "shards",
        "weightfiles",
    ),
    (
        "catalogue",
        "gate",
        "marks",
        "samples",
        "storegc",
        "weighttables",
    ),
    (
        "families",
        "latents",
        "partfiles",
        "partkeys",
        "store",
    ),
    (
        "assemble",
        "comfygraph",
        "components",
        "data",
        "earlyshards",
        "headers",
        "hub",
        "lorafiles",
        "metadata",
        "params_sample",
        "params_text",
        "params_train",
        "predecessor",
        "probing",
        "ranks",
        "storecare",
        "storesize",
        "wanted",
    ),
    (
        "caching",
        "collecting",
        "families/*",
        "keptbases",
        "lora",
        "objectives",
        "optim",
        "pointers",
        "storerepair",
    ),
    (
        "latentcache",
        "latentdrift",
        "load",
        "pointerfiles",
        "rates",
        "sources",
        "storecommands",
        "textdrift",
        "texts",
    ),
    (
        "bases",
        "cachejob",
        "check",
        "comfyfiles",
        "draw",
        "newpictures",
        "pointerlines",
        "train",
    ),
    (
        "basecheck",
        "checkpoint",
        "flowform",
        "footprint",
        "inspect",
        "latentjob",
        "modelcard",
        "previews",
        "reference",
        "sample",
        "starting",
        "textjob",
    ),
    (
        "baselist",
        "cacheplan",
        "deployment",
        "estimates",
        "export",
        "importing",
        "trainjob",
    ),
    (
        "plan",
        "why",
    ),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

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
WITH_TORCH = {"noise", "precision", "quantise", "objectives", "runstate", "shards", "data", "train", "checkpoint"}
WITH_TORCH |= {"basecheck", "activations", "tracing", "footprint", "estimates", "plan", "lossscale", "uploader"}


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


def ours(path: Path) -> set[str]:
    """Our modules that a file imports, less `eridiff.`."""
    names = {name for name in imported(path) if name.split(".")[0] == "eridiff"}
    return {name.removeprefix("eridiff").removeprefix(".") for name in names}


def level(name: str) -> int:
    """The layer of a module; a family's files are one layer."""
    return LEVEL["families/*" if name.startswith("families.") else name]


def test_every_module_has_a_layer() -> None:
    modules = {"families/*" if name.startswith("families.") else name for name in FILES}
    assert modules == set(LEVEL)
    assert sum(map(len, LAYERS)) == len(LEVEL), "a module stands in two layers"


@pytest.mark.parametrize("name", FILES)
def test_imports_go_down(name: str) -> None:
    wrong = {other for other in ours(FILES[name]) if level(other) >= level(name)}
    assert wrong == set(), f"eridiff.{name} imports from its own layer or above"


def test_the_check_can_fail(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("def f() -> None:\n    from eridiff.training.train import train\n    import eridiff.why.why\n")
    assert ours(path) == {"train", "why"}
    path.write_text(
        "if TYPE_CHECKING:\n    import torch\ndef f() -> None:\n    import diffusers\nimport json, peft.utils\n"
    )
    assert imported(path, inside_functions=False) == {"json", "peft.utils"}


def test_eridiff_never_imports_stages_nor_tests() -> None:
    for path in FILES.values():
        assert not {name for name in imported(path) if name.split(".")[0] in ("stages", "tests")}, path


def test_families_never_import_each_other() -> None:
    folders = {name.split(".")[1] for name in FILES if name.startswith("families.")}
    assert len(folders) >= 3
    for folder in folders:
        for file in FAMILY_FILES:
            names = {name for name in ours(FILES[f"families.{folder}.{file}"]) if name.startswith("families.")}
            assert names == set(), f"{folder}/{file}.py imports a family's file"


def test_train_never_imports_sample() -> None:
    seen, todo = set(), ["train", "checkpoint", "previews"]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += ours(FILES[name]) & set(FILES)
    assert "draw" in seen  # previews
    assert not {"sample", "export", "why", "check"} & seen


def test_only_the_flow_imports_prefect() -> None:
    """stages/flow.py, and nothing else."""
    paths = [*FILES.values(), *(ROOT / "stages").glob("*.py")]
    assert {path.name for path in paths if "prefect" in {n.split(".")[0] for n in imported(path)}} <= {"flow.py"}


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


def test_light_modules_start_light() -> None:
    """All modules but those that work on tensors, imported in one process: no heavy library is loaded."""
    light = [name for name in FILES if name not in WITH_TORCH and name != "__main__"]
    assert processes.run(IMPORT_ALL, ",".join(light), ",".join(HEAVY)) == f"{len(light)}\n"


def test_one_function_writes_all_safetensors() -> None:
    """The library's own writers order metadata by chance: nothing of ours calls them."""
    for path in [*(ROOT / "eridiff").rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        text = path.read_text("utf-8")
        assert not re.search(r"save_file|save_pretrained|save_lora_weights|torch\.save|import safetensors", text), path
