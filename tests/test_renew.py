"""A project whose dvc.yaml has fallen behind the checkout's: named by `why`, renewed by one command."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from eridiff.cli import app
from eridiff.errors import ConfigError
from eridiff.projects import is_behind, project_dvc_yaml, renew_project
from tests.checkouts import make_checkout

DVC_YAML = """stages:
  check:
    cmd: python -m stages.check
    deps:
      - params.yaml
      - eridiff/check.py
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = make_checkout(tmp_path / "checkout", monkeypatch)
    (root / "dvc.yaml").write_text(DVC_YAML)
    folder = root / "projects" / "cats"
    folder.mkdir(parents=True)
    (folder / "dvc.yaml").write_text(project_dvc_yaml(DVC_YAML))
    monkeypatch.chdir(folder)
    return folder


def run(*arguments: str) -> str:
    return CliRunner().invoke(app, arguments, catch_exceptions=False).output


def test_one_that_is_level_is_left_alone(project: Path) -> None:
    before = (project / "dvc.yaml").stat()
    assert not is_behind(project)
    assert "../../eridiff/check.py" in (project / "dvc.yaml").read_text()
    assert run("renew") == "dvc.yaml is the checkout's already\n"
    assert (project / "dvc.yaml").stat().st_mtime_ns == before.st_mtime_ns


def test_one_that_is_behind_is_named_and_renewed(project: Path) -> None:
    root = project.parent.parent
    (root / "dvc.yaml").write_text(DVC_YAML + "      - eridiff/new.py\n")
    (project / "params.yaml").write_text("train: mine\n")
    assert is_behind(project)
    assert "`eridiff renew` brings it up" in run("why")
    assert "dvc.yaml renewed" in run("renew")
    assert (project / "dvc.yaml").read_text() == project_dvc_yaml(DVC_YAML + "      - eridiff/new.py\n")
    assert not is_behind(project)
    assert "renew" not in run("why")
    assert (project / "params.yaml").read_text() == "train: mine\n"


def test_the_checkout_itself_is_no_project(project: Path) -> None:
    root = project.parent.parent
    assert not is_behind(root)
    with pytest.raises(ConfigError, match=r"is no project: run this in a folder of .*projects"):
        renew_project(root)
    (root / "projects" / "empty").mkdir()
    with pytest.raises(ConfigError, match="is no project"):
        renew_project(root / "projects" / "empty")
