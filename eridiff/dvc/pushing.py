"""What `dvc push` sends of a project: results always, its pictures and captions where data/raw.dvc lets it.

DVC ends a run with "Use `dvc push` to send your updates to remote storage", whatever stays behind.
"""

from pathlib import Path

from eridiff.core.config import read_yaml

POINTER = Path("data/raw.dvc")
STAY = "your pictures and captions stay on this machine: `dvc push` sends results, not data/raw (docs/projects.md)"
GO = "`dvc push` sends your pictures and captions too (docs/projects.md)"
RENTED = "before you give a rented machine back: copy data/raw away, or take `push: false` out of data/raw.dvc and push"


def pushes_pictures(folder: Path) -> bool | None:
    """Whether `dvc push` sends the pictures of the project in a folder; None where DVC does not track them."""
    if not (folder / POINTER).exists():
        return None
    return all(out.get("push", True) for out in read_yaml(folder / POINTER)["outs"])


def what_stays(folder: Path) -> list[str]:
    """What to say of a project that was just made."""
    return [GO] if pushes_pictures(folder) else [STAY, RENTED]
