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
from eridiff.files import write_text
from eridiff.intake import copy_files, list_files
from eridiff.ownpictures import (
    SAFE_TYPES,
    cache_of,
    describe_unsafe,
    find_misnamed,
    make_own,
    rename_misnamed,
    set_safe_types,
    unsafe_types,
)
from eridiff.project import NAME, checkout_root
from eridiff.pushing import POINTER

SHARED = ("eridiff/", "stages/", "data/bases")  # paths of dvc.yaml that lie in the checkout


def project_dvc_yaml(text: str) -> str:
    """The checkout's dvc.yaml for projects/NAME: code and bases lie two folders up."""
    shared = "|".join(map(re.escape, SHARED))
    text = re.sub(rf"(?m)^(\s*- )({shared})", r"\1../../\2", text)
    return re.sub(r"(?m)^(\s*cmd: )(python -m )", r"\1PYTHONPATH=../.. \2", text)


def find_behind(folder: Path) -> list[str]:
    """What of a project is not as `eridiff new` makes it today; [] in the checkout itself."""
    if not _is_project(folder):
        return []
    found = []
    if (folder / "dvc.yaml").read_text("utf-8") != _renewed(folder):
        found.append("its dvc.yaml is not the checkout's, which has changed")
    if unsafe := describe_unsafe(folder):
        found.append(unsafe)
    return found


def renew_project(folder: Path) -> list[str]:
    """Bring a project of before up to what `eridiff new` makes today; returns what was done.

    Its dvc.yaml is the checkout's. Where DVC made links of its pictures they are files of their own again, and objects
    of DVC's cache that were altered by an edit no longer stand under their names.

    Raises: ConfigError where the folder is no project.
    """
    if not _is_project(folder):
        raise ConfigError(f"{folder} is no project: run this in a folder of {checkout_root(folder) / 'projects'}.")
    done = []
    if (folder / "dvc.yaml").read_text("utf-8") != _renewed(folder):
        write_text(folder / "dvc.yaml", _renewed(folder))
        done.append("dvc.yaml renewed: `eridiff why` says what runs now")
    if unsafe := unsafe_types(folder):
        set_safe_types(folder)
        done.append(f"cache.type is {','.join(SAFE_TYPES)} now, without {' and '.join(unsafe)}")
    if (folder / ".dvc").is_dir():
        cache = cache_of(folder)
        changed = make_own(folder / "data" / "raw", cache)
        some = "1 file of data/raw is" if len(changed) == 1 else f"{len(changed)} files of data/raw are"
        done += [f"{some} your own now, no link into DVC's cache"] if changed else []
        done += rename_misnamed(cache, find_misnamed(cache))
    return done


def _is_project(folder: Path) -> bool:
    return folder.resolve().parent == checkout_root(folder) / "projects" and (folder / "dvc.yaml").exists()


def _renewed(folder: Path) -> str:
    return project_dvc_yaml((checkout_root(folder) / "dvc.yaml").read_text("utf-8"))


def make_project(name: str, images: Path, params: Path, *, push: bool = False) -> Path:
    """Make projects/NAME from a folder of pictures and a params file; returns its folder.

    The pictures are copied (reflinked where the file system can), never linked: an edit of one would alter the other.
    Nothing that exists is overwritten. push: whether `dvc push` sends the pictures too.
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
        _init_dvc(root, folder, push=push)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _init_dvc(root: Path, folder: Path, *, push: bool) -> None:
    """Make the folder a DVC repository that shares the checkout's cache, and track its pictures."""
    if not (root / ".git").exists():
        _run(["git", "init", "-q"], root)
    _run(["dvc", "init", "-q", "--subdir"], folder)
    for name in (".dvc/config", ".dvcignore"):
        shutil.copyfile(root / name, folder / name)
    if unsafe_types(folder):  # of a checkout whose owner changed it
        set_safe_types(folder)
    cache = Path(_run(["dvc", "cache", "dir"], root).strip())
    inside = cache.is_relative_to(root)
    place = os.path.relpath(cache, folder) if inside else str(cache)
    _run(["dvc", "cache", "dir", "-q", *([] if inside else ["--local"]), place], folder)
    _run(["dvc", "add", "data/raw"], folder)  # not -q: it hides why it fails
    if not push:
        pointer = folder / POINTER
        write_text(pointer, pointer.read_text("utf-8").rstrip() + "\n  push: false\n")


def _run(command: list[str], folder: Path) -> str:
    """Run a command in a folder; a failure is an error with what it printed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"`{' '.join(command)}` failed in {folder}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
