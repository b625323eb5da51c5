"""What `eridiff new` lays down for DVC: its kind of links, and whether pictures are pushed; else see tests/e2e."""

import os
from pathlib import Path

import pytest

from eridiff import projects
from eridiff.files import link_kind
from eridiff.ownpictures import unsafe_types
from eridiff.pushing import GO, RENTED, STAY, pushes_pictures, what_stays


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
    (folder / "data/raw.dvc").write_text("outs:\n- md5: 00.dir\n  path: raw\n")
    commands: list[list[str]] = []

    def run(command: list[str], folder: Path) -> str:
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
