"""What git says, asked in one way; where there is no git, or it refuses, it says nothing."""

import subprocess
from pathlib import Path


def ask_git(folder: Path, *arguments: str) -> bytes | None:
    """What a command of git prints in a folder; None where there is no git, no repository, or nothing of that name."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
