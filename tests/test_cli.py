"""The command line's exit codes."""

import json
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eridiff import __version__, words
from eridiff.cli import app
from tests.support.checkouts import make_checkout


def test_why_fails_where_params_have_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkout(tmp_path, monkeypatch)
    (tmp_path / "params.yaml").write_text("train: {stepz: 3}\n")
    told = CliRunner().invoke(app, ["why"])
    assert told.exit_code == 1 and told.output.startswith("error: ") and "train.stepz" in told.output
    told = CliRunner().invoke(app, ["why", "--json"])
    assert told.exit_code == 1 and "train.stepz" in json.loads(told.stdout)["error"]


def test_it_says_which_eridiff_it_is() -> None:
    told = CliRunner().invoke(app, ["--version"])
    assert (told.exit_code, told.output) == (0, f"eridiff {__version__}\n")


def test_repro_runs_the_stages_of_this_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its environment need not be activated: dvc.yaml says `python`."""
    started: list[tuple[list[str], str]] = []
    monkeypatch.setattr(os, "execve", lambda _, command, environment: started.append((command, environment["PATH"])))
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["repro", "--force", "-s", "train"]).exit_code == 0
    path = f"{Path(sys.executable).parent}{os.pathsep}/usr/bin"
    assert started == [([sys.executable, "-m", "eridiff.reproduce", "--force", "-s", "train"], path)]


@pytest.mark.parametrize("option", ["--weights", "--variant"])
def test_base_add_takes_the_weights_by_both_names_of_the_option(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """--variant is the earlier name."""
    given: list[object] = []
    monkeypatch.setattr("eridiff.bases.add.add_base", lambda *arguments: given.append(arguments) or [])
    assert CliRunner().invoke(app, ["base", "add", "mine", "folder", option, "fp16"]).exit_code == 0
    assert given == [("mine", ["folder"], None, "fp16")]


def test_the_four_words_are_a_checkouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package would make a .venv among its libraries."""
    assert words.in_checkout()
    monkeypatch.setattr(words, "ROOT", tmp_path)
    assert not words.in_checkout()
    (tmp_path / "pyproject.toml").write_text("")  # of somebody else
    (tmp_path / "eridiff/template").mkdir(parents=True)
    assert not words.in_checkout()
