"""What a killed `dvc exp run` did to the checkout is undone: its edits, its branch, its params."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from eridiff.dvcrepair import mend
from eridiff.exprepair import ASIDE, put_back
from tests.processes import begin

DEAD = 2**22 + 1  # no process has this number


def git(project: Path, *arguments: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    done = subprocess.run(
        ["git", *who, *arguments], cwd=project, check=True, capture_output=True, text=True, timeout=300
    )
    return done.stdout


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "t")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "t@localhost")
    (tmp_path / ".dvc/tmp/exps").mkdir(parents=True)
    (tmp_path / ".gitignore").write_text(".dvc/tmp\n")
    (tmp_path / "params.yaml").write_text("n: 1\n")
    (tmp_path / "other.yaml").write_text("a\n")
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "start")
    return tmp_path


def killed_in_the_middle(project: Path, *, steps: int) -> None:
    """What DVC does, up to a step: hold the workspace, stash, detach HEAD, apply, write params."""
    holder = {"pid": DEAD, "cmd": "dvc exp run --temp"}
    (project / ".dvc/tmp/exps/rwlock").write_text(json.dumps({"write": {"workspace": holder}}))
    if steps > 0 and git(project, "status", "--porcelain"):
        git(project, "stash", "push", "-q")
    if steps > 1:
        git(project, "checkout", "-q", git(project, "rev-parse", "HEAD").strip())
    if steps > 2:
        if git(project, "stash", "list"):
            git(project, "stash", "apply", "-q", "--index")
        (project / "params.yaml").write_text("n: 25\nmine: 5\n")
        git(project, "add", "params.yaml")


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
@pytest.mark.parametrize("edited", [True, False])
def test_the_checkout_is_as_it_was(project: Path, steps: int, edited: bool) -> None:
    if edited:
        (project / "params.yaml").write_text("n: 1\nmine: 5\n")
        (project / "other.yaml").write_text("b\n")
        git(project, "add", "other.yaml")  # one edit is in the index, one is not
    before = git(project, "status", "--short", "--branch"), (project / "params.yaml").read_text()
    killed_in_the_middle(project, steps=steps)
    lines = mend(project)
    assert (git(project, "status", "--short", "--branch"), (project / "params.yaml").read_text()) == before
    assert (project / "other.yaml").read_text() == ("b\n" if edited else "a\n")
    stash = git(project, "stash", "list")
    assert (ASIDE in stash) == (steps == 3) and stash.count("\n") == (steps == 3)
    assert any("they are back" in line for line in lines) == (steps > 1 or (edited and steps == 1))
    assert mend(project) == []


def test_what_was_edited_after_the_kill_is_kept_in_the_stash(project: Path) -> None:
    (project / "params.yaml").write_text("n: 1\nmine: 5\n")
    killed_in_the_middle(project, steps=3)
    (project / "other.yaml").write_text("edited since\n")
    assert ASIDE in mend(project)[0]
    assert (project / "params.yaml").read_text() == "n: 1\nmine: 5\n"
    assert "+edited since" in git(project, "stash", "show", "-p", "stash@{0}")


def test_a_lock_of_git_that_dvc_left_is_no_hindrance(project: Path) -> None:
    killed_in_the_middle(project, steps=3)
    (project / ".git/index.lock").touch()
    assert "they are back" in mend(project)[0]
    assert (project / "params.yaml").read_text() == "n: 1\n"
    (project / ".git/index.lock").touch()  # somebody else's
    assert mend(project) == []
    assert (project / ".git/index.lock").exists()


def test_a_users_own_stash_and_detached_head_stay(project: Path) -> None:
    (project / "params.yaml").write_text("n: 2\n")
    git(project, "stash", "push", "-q")
    assert put_back(project, time.time() + 60) == []  # the stash is older than the hold on the workspace
    git(project, "checkout", "-q", "--detach")
    assert mend(project) == []  # nobody died holding the workspace
    assert "WIP on main" in git(project, "stash", "list")
    assert git(project, "rev-parse", "--abbrev-ref", "HEAD") == "HEAD\n"


def test_an_experiment_that_never_began_is_forgotten_and_copies_go(project: Path) -> None:
    git(project, "update-ref", "refs/exps/stash", "HEAD")
    copy = project / ".dvc/tmp/exps/standalone/tmpabcdefgh"
    (copy / "data").mkdir(parents=True)
    (copy / "data/x").write_bytes(b"x")
    with begin(["cat"], cwd=copy, stdin=subprocess.PIPE) as works:  # a stage that lives
        lines = mend(project)
        assert copy.exists()
        works.communicate()
    assert [line.partition(":")[0] for line in lines] == ["an experiment that was killed before it began is forgotten"]
    assert "copy of a killed experiment" in mend(project)[0]
    assert not copy.exists()
    assert mend(project) == []
