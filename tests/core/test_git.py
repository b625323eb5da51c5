import subprocess
from pathlib import Path

import pytest

from eridiff.core.errors import ConfigError
from eridiff.core.git import ask_git, tell_git


def test_what_git_prints_and_nothing_where_it_refuses(tmp_path: Path) -> None:
    assert ask_git(tmp_path, "rev-parse", "HEAD") is None  # no repository
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True, timeout=60)
    (tmp_path / "a").write_bytes(b"\xff\n")
    assert ask_git(tmp_path, "ls-files", "--others") == b"a\n"
    assert ask_git(tmp_path, "show", "HEAD:./a") is None  # no commit


def test_where_there_is_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_git(tmp_path, "status") is None
    assert tell_git(tmp_path, "status", way_out="Take care.") == ""


def test_a_refusal_of_what_git_is_told_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^`git log` failed: fatal: not a git repository .*\. Take care\.$"
    ) as caught:
        tell_git(tmp_path, "log", way_out="Take care.")
    assert "\n" not in str(caught.value)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True, timeout=60)
    assert tell_git(tmp_path, "rev-parse", "--git-dir", way_out="Take care.") == ".git\n"
