"""Generated pages are current; every document that another names exists."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from eridiff.caching.drift_records import TOLERANCE
from eridiff.check import SECTIONS
from eridiff.core.config import parse_yaml
from eridiff.core.sections import nested
from eridiff.family import family_names
from eridiff.params.buckets import BucketParams
from eridiff.params.latents import IN_NO_KEY
from eridiff.params.train import TrainParams
from eridiff.projects.presets import all_presets
from eridiff.reference import pages
from tests.conftest import ROOT
from tests.support.pages import FENCE, PAGES, anchors, table_of


@pytest.mark.parametrize("name", pages())
def test_generated_pages_are_current(name: str) -> None:
    assert (ROOT / "docs" / name).read_text("utf-8") == pages()[name], "run `python -m eridiff.reference`"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", path.read_text("utf-8")):
        file = path.parent / target if target else path
        assert file.exists(), f"{path.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{path.name} links to {target}#{anchor}"


def test_every_page_is_in_the_index() -> None:
    named = set(re.findall(r"\]\((\w[\w-]*\.md)\)", (ROOT / "docs/README.md").read_text("utf-8")))
    assert named == {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}


def test_the_front_page_is_short() -> None:
    """Two screens; the first says what it is, shows one edited caption, how far it is, and how to try it."""
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    first = "\n".join(lines[:25])
    assert len(lines) <= 100
    assert (
        "pictures/recording.svg" in first and "Status: not yet run on real weights" in first and "make repro" in first
    )


def test_the_training_step_is_two_hops_from_the_front_page() -> None:
    """README -> the stage -> the file of train_step: both are links, and the stage names the file."""
    readme = (ROOT / "README.md").read_text("utf-8")
    (links,) = re.findall(r"\[(stages/train\.py)\]\(.*?\)\s*->\s*\[([\w/]+\.py)\]", readme)
    stage, step = ((ROOT / name).read_text("utf-8") for name in links)
    assert f"{links[1]}: train_step" in stage
    assert "\ndef train_step(" in step


def top_names() -> set[str]:
    """Packages and top modules of eridiff."""
    found = {
        path.stem for path in (ROOT / "eridiff").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    return found - {"__init__", "__main__"}


def test_the_map_has_every_package_and_the_contract_s_layers() -> None:
    text = (ROOT / "docs/development.md").read_text("utf-8")
    assert re.findall(r"^#+ .*", text, re.M)[:2] == ["# Development", "## Map"]
    cells = [line.split("|")[1] for line in text[: text.index("\n```")].splitlines() if line.startswith("| `")]
    named = set(re.findall(r"`eridiff/(\w+?)(?:/\w*/?|\.py)?`", " ".join(cells)))
    assert named == top_names()
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    (drawn,) = re.findall(r"^```\n(stages\n.*?)^```", text, re.M | re.S)
    assert drawn.splitlines() == ["stages", *layers[1:]]
    assert layers[0] == "__main__"


def test_the_files_of_a_new_family_are_those_of_every_family() -> None:
    """And `tests/contract/test_toy_family.py` runs one through every stage."""
    _, _, section = (ROOT / "docs/development.md").read_text("utf-8").partition("# A new family\n")
    named = set(re.findall(r"^\| `([\w.]+)` \|", section[: section.index("\n#")], re.M)) | {"__init__.py"}
    toy = ROOT / "tests/contract/families/toy"
    for folder in [toy, *(ROOT / "eridiff/families" / name for name in family_names())]:
        found = {path.name for path in folder.iterdir() if path.is_file()}
        assert named <= found <= named | {"published.json", "models.py"}, folder


# Code that a page may name: not what a run makes (data/, runs/), nor a place for a name (NAME, MODULE).
CODE = ("eridiff", "stages", "tests", "docs", "benchmarks", "presets")
SKIPPED = r"[A-Z]{4,}"


def missing(text: str) -> set[str]:
    """Files and modules of ours that a text names and that do not exist; of a bare name, anywhere in the tree."""
    found = {name for name in re.findall(r"`([\w./-]+)`", text) if not re.search(SKIPPED, name)}
    paths = {name for name in found if name.split("/")[0] in CODE and "/" in name and not (ROOT / name).exists()}
    bare = {name for name in found if re.fullmatch(r"\w+\.py", name)}
    for folder in (ROOT / name for name in (*CODE, "data")):
        bare -= {path.name for path in folder.rglob("*.py")}
    dotted = re.findall(rf"(?:-m |`)((?:{'|'.join(CODE)})(?:\.\w+)+)", text)
    modules = {name for name in dotted if not re.search(SKIPPED, name)}
    modules = {name for name in modules if not any(_is_code(ROOT.joinpath(*name.split(".")[:n])) for n in (-1, None))}
    return paths | bare | modules


def _is_code(path: Path) -> bool:
    return path.with_name(f"{path.name}.py").exists() or ((path / "__init__.py").exists() and path.parent != ROOT)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_files_that_a_page_names_exist(path: Path) -> None:
    assert missing(path.read_text("utf-8")) == set()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("`eridiff/families/NAME/keys.py`, `eridiff/family.py`, `keys.py`, `data/lora/x.safetensors`", set()),
        ("`eridiff/params_SECTION.py`, `eridiff/nothing/`", {"eridiff/nothing/"}),
        ("`nothing.py` and `python -m tests.nothing FOLDER`", {"nothing.py", "tests.nothing"}),
        ("`eridiff.dataset.intake.look_through`, `python -m eridiff.reference`", set()),
        ("`eridiff.intake.look_through`", {"eridiff.intake.look_through"}),
    ],
)
def test_what_does_not_exist_is_found(text: str, found: set[str]) -> None:
    assert missing(text) == found


def page(name: str) -> str:
    """A page with its line breaks gone."""
    return " ".join((ROOT / name).read_text("utf-8").split())


def test_what_the_predecessors_page_says_of_params() -> None:
    table = page("docs/eridiffusion.md")
    precisions = get_args(TrainParams.model_fields["precision"].annotation)
    (said,) = re.findall(r"`train\.precision`: (.*?);", table)
    assert set(re.findall(r"`(\w+)`", said)) == set(precisions)
    assert "`buckets.more_resolutions`" in table and "more_resolutions" in BucketParams.model_fields


def test_what_the_store_says_is_in_no_key() -> None:
    (said,) = re.findall(r"the section `latents`, less (.*?) \|", page("docs/store.md"))
    assert set(re.findall(r"`(\w+)`", said)) == IN_NO_KEY


def test_the_drift_check_s_tolerances() -> None:
    (said,) = re.findall(r"The tolerance, .*? is (.*?) \(\[how", page("docs/pipeline.md"))
    assert [float(number) for number in re.findall(r"0\.\d+", said)] == list(TOLERANCE.values())
    rows = table_of("docs/benchmarks.md", "Rounding of encoders")
    assert [float(row["tolerance"]) for row in rows] == list(TOLERANCE.values())


KEYS = {
    f"{path}.{field}"
    for name, model in SECTIONS.items()
    for path, section in [(name, model), *nested(model, name)]
    for field in section.model_fields
}
FILES = {"csv", "json", "jsonl", "md", "parquet", "png", "py", "safetensors", "tsv", "txt", "yaml"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_settings_within_a_sentence_exist(path: Path) -> None:
    """`train.optimizer.lr: 2e-4` names a key of params.yaml."""
    sections = "|".join(SECTIONS)
    named = set(re.findall(rf"`((?:{sections})\.[a-z0-9_.]+?)(?::[^`]*)?`", FENCE.sub("", path.read_text("utf-8"))))
    assert {name for name in named if name.rpartition(".")[2] not in FILES} <= KEYS


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_settings_in_blocks_exist(path: Path) -> None:
    for language, text in FENCE.findall(path.read_text("utf-8")):
        if language != "yaml" or not re.match(rf"(?:{'|'.join(SECTIONS)}):", text):
            continue
        for name, section in parse_yaml(text, path.name).items():
            for field in section:
                assert f"{name}.{field}" in KEYS, f"{path.name}: {name}.{field}"


def test_projects_lists_every_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    rows = [line for line in (ROOT / "docs/projects.md").read_text("utf-8").splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([\w-]+)`", row.split("|")[1])}
    assert {preset.name for preset in all_presets()} <= named


# Distributions that none of our modules imports, and who does.
INDIRECT = {"safetensors": "diffusers, transformers and peft", "sentencepiece": "transformers, for T5's spiece.model"}
MODULES = {"pillow": "PIL", "ruamel.yaml": "ruamel"}


def imported_packages() -> Iterator[str]:
    for folder in ("eridiff", "stages"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Import):
                    yield from (alias.name.split(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module:
                    yield node.module.split(".")[0]


def test_every_dependency_is_used() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    names = {re.split(r"[<>=\[]", line)[0] for line in listed}
    imported = set(imported_packages())
    assert names - INDIRECT.keys() == {name for name in names if MODULES.get(name, name) in imported}
