"""What `eridiff new` lays down for DVC: its kind of links, and whether pictures are pushed; else see tests/e2e."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from eridiff.core.errors import ConfigError
from eridiff.core.files import link_kind, write_text
from eridiff.dvc.own_pictures import unsafe_types
from eridiff.dvc.pushing import GO, RENTED, STAY, pushes_pictures, what_stays
from eridiff.projects import projects
from tests.support.checkouts import make_checkout

ROOT = Path(__file__).parent.parent.parent


def test_the_best_kind_of_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError("Operation not permitted")

    assert link_kind(tmp_path) == "hardlink"
    monkeypatch.setattr(os, "link", refuse)
    assert link_kind(tmp_path) == "symlink"
    monkeypatch.setattr(os, "symlink", refuse)
    assert link_kind(tmp_path) == "copy"
    assert list(tmp_path.iterdir()) == []


def init(root: Path, monkeypatch: pytest.MonkeyPatch, *, config: str, push: bool) -> tuple[Path, list[list[str]]]:
    """A project's DVC, with the commands that would run: its folder, and they."""
    folder = root / "projects/cats"
    for place in (root / ".git", root / ".dvc", folder / ".dvc", folder / "data"):
        place.mkdir(parents=True)
    (root / ".dvc/config").write_text(config)
    (root / ".dvcignore").write_text("*.tmp\n")
    (root / ".dvc/.gitignore").write_text("/tmp\n")
    (folder / "data/raw.dvc").write_text("outs:\n- md5: 00.dir\n  path: raw\n")
    commands: list[list[str]] = []

    def run(command: list[str], folder: Path, **more: str) -> str:
        commands.append(command)
        return str(root / ".dvc/cache")

    monkeypatch.setattr(projects, "_run", run)
    projects._init_dvc(root, folder, push=push)
    return folder, commands


SAFE = "[cache]\ntype = reflink,copy\n"


@pytest.mark.parametrize("config", [SAFE, "[cache]\ntype = hardlink\n"])
def test_pictures_are_never_linked_whatever_the_checkout_does(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = init(tmp_path, monkeypatch, config=config, push=False)
    assert unsafe_types(folder) == ()
    assert (folder / ".dvc/config").read_text().count("reflink,copy") == 1
    assert (tmp_path / ".dvc/config").read_text() == config


@pytest.mark.parametrize(("push", "said"), [(False, [STAY, RENTED]), (True, [GO])])
def test_pictures_are_pushed_where_that_was_asked_for(
    push: bool, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pushes_pictures(tmp_path) is None  # git's, as the demo's
    folder, _ = init(tmp_path, monkeypatch, config=SAFE, push=push)
    assert pushes_pictures(folder) is push
    assert what_stays(folder) == said
    assert (folder / ".dvcignore").read_text() == "*.tmp\n"
    assert (folder / "data/.gitignore").read_text() == "/raw\n"
    assert not (folder / ".dvc/config.local").exists()


@pytest.mark.parametrize("moment", ["copy_files", "_init_dvc"])
def test_killed_half_way_it_has_no_name_and_goes(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even Python's own clearing up runs then; the next `eridiff new` of the same name takes it away."""
    root = make_checkout(tmp_path / "checkout", monkeypatch)
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "params.yaml").write_text("x: 1\n")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    script = f"""
import os, pathlib, signal
from eridiff.projects import projects
projects.{moment} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
projects.make_project("cats", pathlib.Path({str(tmp_path / "raw")!r}), pathlib.Path("params.yaml"))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, timeout=300
    )
    assert done.returncode == -signal.SIGKILL
    (left,) = (root / "projects").iterdir()
    assert left.name.startswith(".cats.") and left.suffix == ".tmp"  # which git and DVC ignore
    monkeypatch.setattr(projects, "_init_dvc", lambda *_, **__: None)
    made = projects.make_project(
        *("cats", tmp_path / "raw", root / "params.yaml"),
        fill=lambda folder: write_text(folder / "README.md", "filled"),
    )
    assert list((root / "projects").iterdir()) == [made]
    assert (made / "README.md").read_text() == "filled" and (made / "data/raw/0.png").exists()


def test_what_stands_there_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_checkout(tmp_path, monkeypatch)
    write_text(root / "projects/cats/dvc.yaml", "")
    with pytest.raises(ConfigError, match=r"no whole project: data/raw\.dvc is missing"):
        projects.make_project("cats", tmp_path, tmp_path)
    write_text(root / "projects/cats/data/raw.dvc", "")
    with pytest.raises(ConfigError, match="choose another name, or work in it"):
        projects.make_project("cats", tmp_path, tmp_path)
