"""Generated pages are current; every document that another names exists."""

import ast
import re
import tomllib
from collections.abc import Iterator
from typing import get_args

import pytest

from eridiff.params.buckets import BucketParams
from eridiff.params.latents import IN_NO_KEY
from eridiff.params.train import TrainParams
from eridiff.projects.presets import all_presets
from eridiff.reference import pages
from tests.conftest import ROOT


@pytest.mark.parametrize("name", pages())
def test_generated_pages_are_current(name: str) -> None:
    assert (ROOT / "docs" / name).read_text("utf-8") == pages()[name], "run `python -m eridiff.reference`"


@pytest.mark.parametrize("path", sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")]), ids=lambda p: p.name)
def test_links_lead_somewhere(path) -> None:  # type: ignore[no-untyped-def]
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text("utf-8")):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


def page(name: str) -> str:
    """A page with its line breaks gone."""
    return " ".join((ROOT / name).read_text("utf-8").split())


def test_what_the_readme_says_of_params() -> None:
    readme = page("README.md")
    precisions = get_args(TrainParams.model_fields["precision"].annotation)
    (said,) = re.findall(r"`train\.precision`: (.*?);", readme)
    assert set(re.findall(r"`(\w+)`", said)) == set(precisions)
    assert "`buckets.more_resolutions`" in readme and "more_resolutions" in BucketParams.model_fields
    assert "Several areas at once: not yet" not in readme and "tested on CPUs only" not in readme


def test_what_caches_says_is_in_no_key() -> None:
    (said,) = re.findall(r"the section `latents`, less (.*?) \|", page("docs/caches.md"))
    assert set(re.findall(r"`(\w+)`", said)) == IN_NO_KEY


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
