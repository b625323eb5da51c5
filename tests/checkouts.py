"""Folders that are a checkout as far as bases and local.yaml are concerned, with nothing of this machine in them."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALL = Path(__file__).parent / "small"  # the tests' own pictures, bases and params: docs/development.md


def link_bases(folder: Path) -> None:
    """Make the folder a checkout whose bases are the tests' own."""
    (folder / "eridiff" / "families").mkdir(parents=True)
    (folder / "data" / "bases").mkdir(parents=True)
    for base in (SMALL / "bases").iterdir():
        (folder / "data" / "bases" / base.name).symlink_to(base)


def make_checkout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the folder a checkout without bases, and the current one."""
    (folder / "eridiff" / "families").mkdir(parents=True)
    (folder / "data" / "bases").mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder
