"""A project of before, whose dvc.yaml or links are not those of today: named by `why`, renewed by one command."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from eridiff.cli import app
from eridiff.errors import ConfigError
from eridiff.ownpictures import unsafe_types
from eridiff.projects import find_behind, project_dvc_yaml, renew_project
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
    assert find_behind(project) == []
    assert "../../eridiff/check.py" in (project / "dvc.yaml").read_text()
    assert run("renew") == "this project is as `eridiff new` makes one already\n"
    assert (project / "dvc.yaml").stat().st_mtime_ns == before.st_mtime_ns


def test_one_that_is_behind_is_named_and_renewed(project: Path) -> None:
    root = project.parent.parent
    (root / "dvc.yaml").write_text(DVC_YAML + "      - eridiff/new.py\n")
    (project / "params.yaml").write_text("train: mine\n")
    assert find_behind(project) == ["its dvc.yaml is not the checkout's, which has changed"]
    assert "`eridiff renew` brings it up" in run("why")
    assert "dvc.yaml renewed" in run("renew")
    assert (project / "dvc.yaml").read_text() == project_dvc_yaml(DVC_YAML + "      - eridiff/new.py\n")
    assert find_behind(project) == []
    assert "renew" not in run("why")
    assert (project / "params.yaml").read_text() == "train: mine\n"


@pytest.mark.parametrize("its", [None, "# DVC's own words", "*.mine\n"])
def test_what_dvc_ignores_is_renewed(project: Path, its: str | None) -> None:
    """Projects of before had no .dvcignore but DVC's, of comments; lines of the user's own stay."""
    (project.parent.parent / ".dvcignore").write_text("# Why.\ndata/bases/*/*/\n\n*.tmp\n")
    if its is not None:
        (project / ".dvcignore").write_text(its)
    (reason,) = find_behind(project)
    assert reason.startswith("its .dvcignore lacks lines of the checkout's")
    assert run("renew") == ".dvcignore has these lines of the checkout's now: data/bases/*/*/ *.tmp\n"
    kept = [] if its is None else its.splitlines()
    assert (project / ".dvcignore").read_text().splitlines() == [*kept, "data/bases/*/*/", "*.tmp"]
    assert find_behind(project) == []


def test_the_checkout_itself_is_no_project(project: Path) -> None:
    root = project.parent.parent
    assert find_behind(root) == []
    with pytest.raises(ConfigError, match=r"is no project: run this in a folder of .*projects"):
        renew_project(root)
    (root / "projects" / "empty").mkdir()
    with pytest.raises(ConfigError, match="is no project"):
        renew_project(root / "projects" / "empty")


OLD = '[core]\n    analytics = false\n[cache]\n    type = "hardlink,reflink,copy"\n    dir = ../../../.dvc/cache\n'


@pytest.mark.parametrize("local", ["", "[cache]\n    type = symlink\n"])
def test_a_project_of_hardlinks_is_moved_over(project: Path, local: str) -> None:
    """An edit had gone into the cache: its object is named, and the picture is the user's own again."""
    (project / "data/raw").mkdir(parents=True)
    objects = project.parent.parent / ".dvc/cache/files/md5"
    (objects / "8b").mkdir(parents=True)
    altered = objects / "8b/04d5e3775d298e78455efc5ca404d5"  # of "first"
    altered.write_bytes(b"second")
    (project / "data/raw/0.txt").hardlink_to(altered)
    altered.chmod(0o444)
    (project / ".dvc").mkdir()
    (project / ".dvc/config").write_text(OLD)
    (project / ".dvc/config.local").write_text(local)
    kinds = "symlink" if local else "hardlink"
    assert find_behind(project) == [f"its cache.type has {kinds}: an edit of data/raw would alter DVC's cache"]
    assert f"cache.type has {kinds}" in run("why") and "`eridiff renew`" in run("why")
    lines = run("renew").splitlines()
    assert lines[0] == f"cache.type is reflink,copy now, without {kinds}"
    assert lines[1] == "1 file of data/raw is your own now, no link into DVC's cache"
    assert lines[2].startswith(f"{altered} holds other bytes than its name says") and len(lines) == 3
    assert unsafe_types(project) == ()
    (project / "data/raw/0.txt").write_bytes(b"third")  # not as root too
    moved = objects / "a9/f0e61a137d86aa9db53465e0801612"  # of "second"
    assert moved.read_bytes() == b"second" and not altered.exists()
    assert run("renew") == "this project is as `eridiff new` makes one already\n"
    assert (project / ".dvc/config").read_text().count("dir = ") == 1
    (project / ".dvc/config").write_text(OLD)  # as by `git checkout` of a commit of before
    assert unsafe_types(project) == () and find_behind(project) == []
