"""git, run in one way: asked, where a refusal is an answer too, and told, where it is an error."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from eridiff.core.errors import ConfigError


def ask_git(folder: Path, *arguments: str) -> bytes | None:
    """What a command of git prints in a folder; None where there is no git, no repository, or nothing of that name."""
    done = _run(folder, arguments)
    return done.stdout if done and done.returncode == 0 else None


def tell_git(folder: Path, *arguments: str, way_out: str) -> str:
    """What a command of git prints in a folder; nothing where there is no git.

    Raises: ConfigError with git's message where it refuses, and the way out.
    """
    done = _run(folder, arguments)
    if done and done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise ConfigError(f"`git {' '.join(arguments)}` failed: {said}. {way_out}")
    return done.stdout.decode("utf-8", "surrogateescape") if done else ""


def _run(folder: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[bytes] | None:
    """None where there is no git."""
    try:
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=False)
    except FileNotFoundError:
        return None
