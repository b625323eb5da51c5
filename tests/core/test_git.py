import subprocess
from pathlib import Path

import pytest

from eridiff.core.git import ask_git


def test_what_git_prints_and_nothing_where_it_refuses(tmp_path: Path) -> None:
    assert ask_git(tmp_path, "rev-parse", "HEAD") is None  # no repository
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True, timeout=60)
    (tmp_path / "a").write_bytes(b"\xff\n")
    assert ask_git(tmp_path, "ls-files", "--others") == b"a\n"
    assert ask_git(tmp_path, "show", "HEAD:./a") is None  # no commit


def test_where_there_is_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_git(tmp_path, "status") is None
