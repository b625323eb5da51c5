"""How a new project's files are linked, by what its file system can do; the rest of `eridiff new` is in tests/e2e."""

import os
from pathlib import Path

import pytest

from eridiff import projects
from eridiff.files import link_kind


def refuse(*arguments: object) -> None:
    raise PermissionError("Operation not permitted")


def test_the_best_kind_of_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert link_kind(tmp_path) == "hardlink"
    monkeypatch.setattr(os, "link", refuse)
    assert link_kind(tmp_path) == "symlink"
    monkeypatch.setattr(os, "symlink", refuse)
    assert link_kind(tmp_path) == "copy"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("without", "set_up"), [((), False), (("link",), True), (("link", "symlink"), False)])
def test_dvc_is_told_where_only_symbolic_links_can_be_made(
    without: tuple[str, ...], set_up: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the pictures are added; the tracked configuration stays the checkout's."""
    for name in without:
        monkeypatch.setattr(os, name, refuse)
    root, folder = tmp_path, tmp_path / "projects/cats"
    for place in (root / ".git", root / ".dvc", folder / ".dvc", folder / "data"):
        place.mkdir(parents=True)
    (root / ".dvc/config").write_text("[cache]\n")
    (root / ".dvcignore").write_text("*.tmp\n")
    (folder / "data/raw.dvc").write_text("outs:\n- path: raw\n")
    commands: list[list[str]] = []

    def run(command: list[str], folder: Path) -> str:
        commands.append(command)
        return str(root / ".dvc/cache")

    monkeypatch.setattr(projects, "_run", run)
    projects._init_dvc(root, folder)
    told = ["dvc", "config", "-q", "--local", "cache.type", "symlink"]
    assert (told in commands) == set_up
    assert not set_up or commands.index(told) < commands.index(["dvc", "add", "data/raw"])
    assert (folder / ".dvc/config").read_text() == "[cache]\n"
    assert (folder / ".dvcignore").read_text() == "*.tmp\n"
