"""DVC's databases of a project, outside it: digests of files, links, an index. DVC makes what is not there."""

import getpass
import hashlib
import os
import re
import sqlite3
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

from eridiff.core.files import read_file

PLACE = Path("/var/tmp/dvc")  # DVC's default on Linux, for all users
SET = re.compile(r"^\s*site_cache_dir\s*=\s*[\"']?(.*?)[\"']?\s*$", re.MULTILINE)


def state_folder(project: Path) -> Path:
    """The folder of a project's databases: named by its path, its age, the user and DVC's generation, as DVC does it.

    Without DVC's import, which takes longer than all else here. Only the project's own configuration is looked at.
    """
    root = project.resolve()
    age = (root / ".dvc/tmp/btime").stat().st_mtime
    token = str((str(root), None, age, getpass.getuser(), int(version("dvc").split(".")[0]), 0))
    name = hashlib.md5(token.encode(), usedforsecurity=False).hexdigest()
    return _place(root) / "repo" / name


def _place(root: Path) -> Path:
    if named := os.environ.get("DVC_SITE_CACHE_DIR"):
        return Path(named)
    for name in ("config.local", "config"):
        path = root / ".dvc" / name
        if found := SET.search(read_file(path).decode("utf-8", "replace")) if path.exists() else None:
            return root / ".dvc" / found[1]
    return PLACE


def damaged_databases(project: Path) -> list[Path]:
    """Databases of a project that SQLite cannot read, or calls damaged; those in use are left out."""
    try:
        folder = state_folder(project)
    except FileNotFoundError:  # DVC never ran here
        return []
    return [path for path in sorted(folder.glob("**/*.db")) if not _is_whole(path)]


def _is_whole(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(path, timeout=0)) as connection:
            return bool(connection.execute("pragma quick_check(1)").fetchall() == [("ok",)])
    except sqlite3.OperationalError:  # locked, or not ours to open: nothing is known of it
        return True
    except sqlite3.DatabaseError:
        return False
