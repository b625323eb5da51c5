"""`eridiff new`: a project, a folder of the checkout with its own pictures and params, sharing all else.

Each project is a DVC repository of its own: one project's broken params.yaml stops no other. The code, the bases,
the store and the DVC cache are the checkout's.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

from eridiff.errors import ConfigError
from eridiff.files import link_kind, write_text
from eridiff.intake import copy_files, list_files
from eridiff.project import NAME, checkout_root

SHARED = ("eridiff/", "stages/", "data/bases")  # paths of dvc.yaml that lie in the checkout


def project_dvc_yaml(text: str) -> str:
    """The checkout's dvc.yaml for projects/NAME: code and bases lie two folders up."""
    shared = "|".join(map(re.escape, SHARED))
    text = re.sub(rf"(?m)^(\s*- )({shared})", r"\1../../\2", text)
    return re.sub(r"(?m)^(\s*cmd: )(python -m )", r"\1PYTHONPATH=../.. \2", text)


def is_behind(folder: Path) -> bool:
    """Whether a project's dvc.yaml is another than the checkout's would give; never in the checkout itself."""
    return _is_project(folder) and (folder / "dvc.yaml").read_text("utf-8") != _renewed(folder)


def renew_project(folder: Path) -> bool:
    """Write a project's dvc.yaml anew from the checkout's; returns whether it changed. Nothing else is touched.

    Raises: ConfigError where the folder is no project.
    """
    if not _is_project(folder):
        raise ConfigError(f"{folder} is no project: run this in a folder of {checkout_root(folder) / 'projects'}.")
    behind = is_behind(folder)
    if behind:
        write_text(folder / "dvc.yaml", _renewed(folder))
    return behind


def _is_project(folder: Path) -> bool:
    return folder.resolve().parent == checkout_root(folder) / "projects" and (folder / "dvc.yaml").exists()


def _renewed(folder: Path) -> str:
    return project_dvc_yaml((checkout_root(folder) / "dvc.yaml").read_text("utf-8"))


def make_project(name: str, images: Path, params: Path) -> Path:
    """Make projects/NAME from a folder of pictures and a params file; returns its folder.

    The pictures are copied (reflinked where the file system can), never linked: DVC would make the originals
    read-only. Nothing that exists is overwritten.
    """
    root = checkout_root()
    folder = root / "projects" / name
    if not NAME.fullmatch(name):
        raise ConfigError(f"'{name}' is no name for a project: letters, digits, '.', '_' and '-' only.")
    if folder.exists():
        raise ConfigError(f"{folder} exists already: choose another name, or work in it.")
    files = list_files(images)
    if not params.is_file():
        raise ConfigError(f"{params} is missing. Presets lie in {root / 'presets'}.")
    try:
        write_text(folder / "dvc.yaml", project_dvc_yaml((root / "dvc.yaml").read_text("utf-8")))
        shutil.copyfile(params, folder / "params.yaml")
        copy_files(images, files, folder / "data" / "raw")
        _init_dvc(root, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _init_dvc(root: Path, folder: Path) -> None:
    """Make the folder a DVC repository that shares the checkout's cache, and track its pictures."""
    if not (root / ".git").exists():
        _run(["git", "init", "-q"], root)
    _run(["dvc", "init", "-q", "--subdir"], folder)
    for name in (".dvc/config", ".dvcignore"):
        shutil.copyfile(root / name, folder / name)
    cache = Path(_run(["dvc", "cache", "dir"], root).strip())
    inside = cache.is_relative_to(root)
    place = os.path.relpath(cache, folder) if inside else str(cache)
    _run(["dvc", "cache", "dir", "-q", *([] if inside else ["--local"]), place], folder)
    if link_kind(folder) == "symlink":  # else DVC would keep each file twice
        _run(["dvc", "config", "-q", "--local", "cache.type", "symlink"], folder)
    _run(["dvc", "add", "data/raw"], folder)  # not -q: it hides why it fails
    _run(["dvc", "unprotect", "data/raw"], folder)  # users edit their pictures and captions in place
    pointer = folder / "data" / "raw.dvc"
    write_text(pointer, pointer.read_text("utf-8").rstrip() + "\n  push: false\n")  # pictures leave when asked to


def _run(command: list[str], folder: Path) -> str:
    """Run a command in a folder; a failure is an error with what it printed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"`{' '.join(command)}` failed in {folder}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
