"""A folder that is a checkout as far as bases and local.yaml are concerned, with nothing of this machine in it."""

from pathlib import Path

import pytest


def make_checkout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the folder a checkout without bases, and the current one."""
    (folder / "eridiff" / "families").mkdir(parents=True)
    (folder / "data" / "bases").mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder
