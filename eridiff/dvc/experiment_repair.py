"""What a killed `dvc exp run` leaves in git and beside it.

Before an experiment runs, DVC puts the edits of the checkout into git's stash, detaches HEAD, writes the experiment's
params into the checkout, commits that to a ref, and takes all of it back. Killed in between, the checkout has the
experiment's params, which the next `dvc repro` would train with, and the edits lie in the stash.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from eridiff.core.git import ask_git, tell_git

WAITING = "refs/exps/stash"  # experiments that are about to run; those of `dvc exp run --queue` are elsewhere
MOVED = re.compile(r"checkout: moving from (\S+) to ([0-9a-f]{40})")  # git's note of what DVC did with HEAD
WAY_OUT = "`dvc exp run` was killed while it had the checkout's edits put away: see docs/troubleshooting.md, Killed."
ASIDE = "left by a killed dvc exp run, with what was edited since"


def put_back(project: Path, begun: float) -> list[str]:
    """Give the checkout back what DVC had put away when it was killed; a line for what was done.

    begun: when DVC took hold of the workspace, s since 1970. What the checkout holds now is kept in git's stash.

    Raises: ConfigError with git's message where it refuses.
    """
    _unlock(project, begun)
    top = _git(project, "stash", "list", "-1", "--format=%ct %gs").strip()
    stashed = top.partition(" ")[2].startswith("WIP on ") and int(top.partition(" ")[0]) >= int(begun) - 1
    detached = not _git(project, "symbolic-ref", "-q", "HEAD", may_fail=True)
    if not stashed and not detached:
        return []
    branch = _branch_before(project) if detached else None
    kept = ""
    if _git(project, "status", "--porcelain", "--untracked-files=no"):
        _git(project, "stash", "push", "--quiet", "--message", ASIDE)
        kept = f" What it held meanwhile is kept: `git stash list` calls it '{ASIDE}'."
    if branch:
        _git(project, "symbolic-ref", "HEAD", branch)
    if stashed:
        _git(project, "stash", "pop", "--quiet", "--index", "stash@{1}" if kept else "stash@{0}")
    return [f"`dvc exp run` was killed while it had the checkout's edits put away: they are back.{kept}"]


def _unlock(project: Path, begun: float) -> None:
    """Take away git's locks that DVC, which writes git's files itself, left since then; not while a git works there."""
    top = Path(_git(project, "rev-parse", "--show-toplevel").strip())
    folder = project / _git(project, "rev-parse", "--git-dir").strip()
    locks = [path for path in (folder / "index.lock", folder / "HEAD.lock") if path.exists()]
    if locks and not any(place.is_relative_to(top) for place in _working_places("git")):
        for path in locks:
            if path.stat().st_mtime >= begun - 1:
                path.unlink()


def _branch_before(project: Path) -> str | None:
    """The branch that HEAD stood on when DVC detached it; None where it stood on none."""
    moved = MOVED.fullmatch(_git(project, "log", "-1", "--walk-reflogs", "--format=%gs", "HEAD").strip())
    if not moved:
        return None
    branch = f"refs/heads/{moved[1]}"
    return branch if _git(project, "rev-parse", "--verify", "-q", branch, may_fail=True).strip() == moved[2] else None


def is_waiting(project: Path) -> bool:
    """Whether an experiment is about to run, or was killed then."""
    return bool(_git(project, "rev-parse", "--verify", "-q", WAITING, may_fail=True))


def forget_waiting(project: Path) -> list[str]:
    """Forget experiments that were killed before they began: the next one would run them too."""
    _git(project, "update-ref", "-d", WAITING)
    return ["an experiment that was killed before it began is forgotten: start it again if you want it"]


def clear_copies(project: Path) -> list[str]:
    """Remove copies of the checkout that killed experiments worked in; their states are in the store."""
    lines = []
    for folder in sorted((project / ".dvc/tmp/exps/standalone").glob("tmp*")):
        if folder.is_dir() and not any(place.is_relative_to(folder.resolve()) for place in _working_places()):
            shutil.rmtree(folder)
            lines.append(f"{folder.relative_to(project)}, the copy of a killed experiment, is removed")
    return lines


def _working_places(name: str | None = None) -> Iterator[Path]:
    """Where all processes stand that can be looked at, or those of a name."""
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if name is None or process.name() == name:
                yield Path(process.cwd())


def _git(project: Path, *arguments: str, may_fail: bool = False) -> str:
    """What git prints. may_fail: nothing where it refuses, in place of an error."""
    if may_fail:
        return (ask_git(project, *arguments) or b"").decode("utf-8", "surrogateescape")
    return tell_git(project, *arguments, way_out=WAY_OUT)
