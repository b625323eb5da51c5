"""`eridiff new`: a project, a folder with its own pictures and params, in a checkout or standalone.

Each project is a DVC repository of its own: one project's broken params.yaml stops no other. In a checkout
(projects/NAME) the code, the bases and the DVC cache are the checkout's; else see eridiff/projects/standalone.py.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from eridiff.core.errors import ConfigError
from eridiff.core.files import read_text, write_text
from eridiff.core.leftovers import take_away, take_away_of, temporary_path
from eridiff.dataset.intake import copy_files, list_files
from eridiff.dvc.own_pictures import set_safe_types, unsafe_types
from eridiff.dvc.pushing import POINTER
from eridiff.machine.code import template
from eridiff.machine.local import NAME, find_checkout, find_home
from eridiff.projects.standalone import IGNORED, RULES, shared_cache, write_standalone
from eridiff.versions import is_standalone

TMP = Path(".dvc/tmp")
SHARED = ("eridiff/", "stages/", "data/bases")  # paths of dvc.yaml that lie in the checkout


def project_dvc_yaml(text: str) -> str:
    """The checkout's dvc.yaml for projects/NAME: code and bases lie two folders up."""
    shared = "|".join(map(re.escape, SHARED))
    text = re.sub(rf"(?m)^(\s*- )({shared})", r"\1../../\2", text)
    return re.sub(r"(?m)^(\s*cmd: )(python -m )", r"\1PYTHONPATH=../.. \2", text)


def project_place(name: str) -> Path:
    """Where `eridiff new NAME` makes a project: a bare name in a checkout is projects/NAME, all else is a path.

    Raises: ConfigError for a name that is none, or a place within a checkout or another project.
    """
    given = Path(name).expanduser()
    checkout = find_checkout()
    inside = checkout is not None and checkout == find_home() and given.name == str(given)
    folder = checkout / "projects" / given if checkout and inside else Path(os.path.abspath(given))
    if not NAME.fullmatch(given.name):
        raise ConfigError(f"'{name}' is no name for a project: letters, digits, '.', '_' and '-' only.")
    home = find_home(folder.parent)
    if home and folder.parent.resolve() != home / "projects":
        raise ConfigError(
            f"{folder} lies inside {home}: give a bare name for a project of that checkout, or a folder outside."
        )
    return folder


def make_project(
    name: str, images: Path, params: Path, *, push: bool = False, fill: Callable[[Path], None] | None = None
) -> Path:
    """Make a project from a folder of pictures and a params file; returns its folder. name: as of `project_place`.

    The pictures are copied (reflinked where the file system can), never linked: an edit of one would alter the other.
    Nothing that exists is overwritten. It gets its name once it is whole: what a kill leaves is no project.
    push: whether `dvc push` sends the pictures too. fill: what else is to be written into it.
    """
    folder = project_place(name)
    root = find_checkout(folder.parent)
    _refuse_existing(folder)
    files = list_files(images)
    if not params.is_file():
        raise ConfigError(f"{params} is missing. Presets lie in {(root or template()) / 'presets'}.")
    if root:
        take_away(folder.parent, below=False)
    else:
        take_away_of(folder)
    begun = temporary_path(folder)
    try:
        if root:
            write_text(begun / "dvc.yaml", project_dvc_yaml(read_text(root / "dvc.yaml")))
        else:
            write_standalone(begun)
            write_text(begun / RULES, IGNORED)
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


def run_command(folder: Path) -> str:
    """The command that runs a project's pipeline: a standalone one's environment need not be activated."""
    return f"{'eridiff' if is_standalone(folder) else 'dvc'} repro"


def _refuse_existing(folder: Path) -> None:
    if not folder.exists():
        return
    if (folder / "dvc.yaml").exists() and not (folder / POINTER).exists():
        raise ConfigError(
            f"{folder} exists already, and is no whole project: {POINTER} is missing, as where an earlier eridiff was "
            "killed while it made it. If you put nothing there, remove it, then run this again."
        )
    raise ConfigError(f"{folder} exists already: choose another name, or work in it.")


def _init_dvc(root: Path | None, folder: Path, *, push: bool) -> None:
    """Make the folder a DVC repository with a shared cache, and track its pictures. root: the checkout; None outside.

    Git ignores the folder's name while it is temporary, which DVC refuses: so it does this without git, and what it
    would have git ignore is written here.
    """
    from dvc.config import Config

    if not ((root or folder) / ".git").exists():
        _run(["git", "init", "-q"], root or folder)
    databases = {"DVC_SITE_CACHE_DIR": str(folder.resolve() / TMP / "databases")}  # by the path, which is temporary
    _run(["dvc", "init", "-q", "--no-scm"], folder, **databases)
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore"):
        shutil.copyfile((root or template()) / name, folder / name)
    write_text(folder / "data" / ".gitignore", "/raw\n")
    if unsafe_types(folder):  # of a checkout whose owner changed it
        set_safe_types(folder)
    _share_cache(root, folder)
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


def _share_cache(root: Path | None, folder: Path) -> None:
    """Name the cache: the checkout's; standalone the one that DVC's own configuration names, or the user's."""
    cache = Path(_run(["dvc", "cache", "dir"], root or folder).strip())
    if root is None:
        if cache.is_relative_to(folder.resolve()):  # DVC's default
            _run(["dvc", "cache", "dir", "-q", "--local", str(shared_cache())], folder)
        return
    inside = cache.is_relative_to(root)
    place = os.path.relpath(cache, folder) if inside else str(cache)
    _run(["dvc", "cache", "dir", "-q", *([] if inside else ["--local"]), place], folder)


def _run(command: list[str], folder: Path, **more: str) -> str:
    """Run a command in a folder, with more in its environment; a failure is an error with what it printed."""
    # DVC is this environment's, which need not be activated.
    begun = [sys.executable, "-m", *command] if command[0] == "dvc" else command
    environment = {**os.environ, **more}
    try:
        done = subprocess.run(begun, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ConfigError(f"{command[0]} is not installed, or not on PATH: install it, then run this again.") from None
    if done.returncode:
        raise ConfigError(f"`{' '.join(command)}` failed in {folder}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
