"""`eridiff new`: a project, a folder of the checkout with its own pictures and params, sharing all else.

Each project is a DVC repository of its own: one project's broken params.yaml stops no other. The code, the bases,
the store and the DVC cache are the checkout's.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from eridiff.errors import ConfigError
from eridiff.files import read_text, write_text
from eridiff.intake import copy_files, list_files
from eridiff.leftovers import take_away, temporary_path
from eridiff.ownpictures import set_safe_types, unsafe_types
from eridiff.project import NAME, checkout_root
from eridiff.pushing import POINTER

TMP = Path(".dvc/tmp")
SHARED = ("eridiff/", "stages/", "data/bases")  # paths of dvc.yaml that lie in the checkout


def project_dvc_yaml(text: str) -> str:
    """The checkout's dvc.yaml for projects/NAME: code and bases lie two folders up."""
    shared = "|".join(map(re.escape, SHARED))
    text = re.sub(rf"(?m)^(\s*- )({shared})", r"\1../../\2", text)
    return re.sub(r"(?m)^(\s*cmd: )(python -m )", r"\1PYTHONPATH=../.. \2", text)


def make_project(
    name: str, images: Path, params: Path, *, push: bool = False, fill: Callable[[Path], None] | None = None
) -> Path:
    """Make projects/NAME from a folder of pictures and a params file; returns its folder.

    The pictures are copied (reflinked where the file system can), never linked: an edit of one would alter the other.
    Nothing that exists is overwritten. It gets its name once it is whole: what a kill leaves is no project.
    push: whether `dvc push` sends the pictures too. fill: what else is to be written into it.
    """
    root = checkout_root()
    folder = root / "projects" / name
    if not NAME.fullmatch(name):
        raise ConfigError(f"'{name}' is no name for a project: letters, digits, '.', '_' and '-' only.")
    _refuse_existing(folder)
    files = list_files(images)
    if not params.is_file():
        raise ConfigError(f"{params} is missing. Presets lie in {root / 'presets'}.")
    take_away(folder.parent, below=False)
    begun = temporary_path(folder)
    try:
        write_text(begun / "dvc.yaml", project_dvc_yaml(read_text(root / "dvc.yaml")))
        shutil.copyfile(params, begun / "params.yaml")
        copy_files(images, files, begun / "data" / "raw")
        if fill:
            fill(begun)
        _init_dvc(root, begun, push=push)
        _refuse_existing(folder)  # of another `eridiff new`, meanwhile
        begun.rename(folder)
    except BaseException:
        shutil.rmtree(begun, ignore_errors=True)
        raise
    return folder


def _refuse_existing(folder: Path) -> None:
    if not folder.exists():
        return
    if (folder / "dvc.yaml").exists() and not (folder / POINTER).exists():
        raise ConfigError(
            f"{folder} exists already, and is no whole project: {POINTER} is missing, as where an earlier eridiff was "
            "killed while it made it. If you put nothing there, remove it, then run this again."
        )
    raise ConfigError(f"{folder} exists already: choose another name, or work in it.")


def _init_dvc(root: Path, folder: Path, *, push: bool) -> None:
    """Make the folder a DVC repository that shares the checkout's cache, and track its pictures.

    Git ignores the folder's name while it is temporary, which DVC refuses: so it does this without git, and what it
    would have git ignore is written here.
    """
    from dvc.config import Config

    if not (root / ".git").exists():
        _run(["git", "init", "-q"], root)
    databases = {"DVC_SITE_CACHE_DIR": str(folder.resolve() / TMP / "databases")}  # by the path, which is temporary
    _run(["dvc", "init", "-q", "--no-scm"], folder, **databases)
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore"):
        shutil.copyfile(root / name, folder / name)
    write_text(folder / "data" / ".gitignore", "/raw\n")
    if unsafe_types(folder):  # of a checkout whose owner changed it
        set_safe_types(folder)
    cache = Path(_run(["dvc", "cache", "dir"], root).strip())
    inside = cache.is_relative_to(root)
    place = os.path.relpath(cache, folder) if inside else str(cache)
    _run(["dvc", "cache", "dir", "-q", *([] if inside else ["--local"]), place], folder)
    with Config(str(folder / ".dvc")).edit("local") as values:
        values.setdefault("core", {})["no_scm"] = True
    _run(["dvc", "add", "data/raw"], folder, **databases)  # not -q: it hides why it fails
    with Config(str(folder / ".dvc")).edit("local") as values:
        del values["core"]["no_scm"]
    local = folder / ".dvc" / "config.local"
    if not read_text(local).strip():
        local.unlink()
    shutil.rmtree(folder / TMP, ignore_errors=True)
    if not push:
        pointer = folder / POINTER
        write_text(pointer, read_text(pointer).rstrip() + "\n  push: false\n")


def _run(command: list[str], folder: Path, **more: str) -> str:
    """Run a command in a folder, with more in its environment; a failure is an error with what it printed."""
    done = subprocess.run(command, cwd=folder, env={**os.environ, **more}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"`{' '.join(command)}` failed in {folder}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
