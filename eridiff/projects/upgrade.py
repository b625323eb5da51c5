"""`eridiff upgrade`: what an update of eridiff asks of a project, or of the checkout's own pipeline, in one command."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from eridiff.core.errors import ConfigError
from eridiff.core.files import read_text, write_text
from eridiff.dvc.before_versions import lists_code, with_versions
from eridiff.dvc.own_pictures import (
    SAFE_TYPES,
    cache_of,
    describe_unsafe,
    find_misnamed,
    make_own,
    rename_misnamed,
    set_safe_types,
    unsafe_types,
)
from eridiff.dvc.repair import TMP, dvc_processes, held
from eridiff.dvc.reruns import foresee_reruns
from eridiff.machine.code import template
from eridiff.machine.local import checkout_root, find_checkout
from eridiff.projects.projects import project_dvc_yaml
from eridiff.projects.standalone import PIPELINE, outdated_files, standalone_files
from eridiff.versions import is_standalone


def find_behind(folder: Path) -> list[str]:
    """What of a project, or of the checkout's pipeline, is not as it would be made today."""
    found = []
    if lists_code(folder / "dvc.lock"):
        found.append("its dvc.lock lists files of code, which have versions now")
    if is_standalone(folder):
        found += [f"this eridiff writes its {place} otherwise" for place in outdated_files(folder, standalone_files())]
    elif not _is_project(folder):
        return found
    elif read_text(folder / "dvc.yaml") != _renewed(folder):
        found.append("its dvc.yaml is not the checkout's, which has changed")
    if _not_ignored(folder):
        found.append("its .dvcignore lacks lines of the checkout's, so DVC reads files that are not whole yet")
    if unsafe := describe_unsafe(folder):
        found.append(unsafe)
    return found


def foresee_upgrade(folder: Path) -> list[str]:
    """Which stages will run again after `upgrade`, and why; [] where it changes nothing that DVC compares.

    Raises: ConfigError where the folder is neither project nor checkout.
    """
    files, lock = _todays_files(folder), folder / "dvc.lock"
    if not outdated_files(folder, files) and not lists_code(lock):
        return []
    text = with_versions(lock, files[PIPELINE])[0] if lists_code(lock) else read_text(lock) if lock.exists() else ""
    return foresee_reruns(folder, files[PIPELINE], text)


def upgrade(folder: Path) -> list[str]:
    """Bring a project, or the checkout's pipeline, up to today's form; returns what was done. Nothing runs by it.

    Raises: ConfigError where the folder is neither, or DVC works in it.
    """
    done = _upgrade_dvc_files(folder, _todays_files(folder))
    return done + _upgrade_rest(folder) if _is_project(folder) or is_standalone(folder) else done


def _todays_files(folder: Path) -> dict[str, str]:
    """The files that this eridiff writes in a folder, by their places in it: dvc.yaml, and standalone the versions."""
    if is_standalone(folder):
        return standalone_files()
    if _is_project(folder):
        return {PIPELINE: _renewed(folder)}
    if folder.resolve() != checkout_root(folder) or not (folder / "dvc.yaml").exists():
        root = checkout_root(folder)
        raise ConfigError(f"{folder} is no project: run this in a folder of {root / 'projects'}, or in {root}.")
    return {PIPELINE: read_text(folder / PIPELINE)}


def _upgrade_dvc_files(folder: Path, files: Mapping[str, str]) -> list[str]:
    """These files as they are today, and dvc.lock in today's form; each whole or as before, and not while DVC works."""
    lock, source = folder / "dvc.lock", "this eridiff's" if is_standalone(folder) else "the checkout's"
    if not outdated_files(folder, files) and not lists_code(lock):
        return []
    with _dvc_lock(folder) as free:
        if not free or dvc_processes(folder):  # while a stage runs, DVC lets its lock go, and writes dvc.lock after it
            raise ConfigError(f"DVC works in {folder}: wait for it or stop it, then run this again.")
        done = []
        for place in outdated_files(folder, files):
            write_text(folder / place, files[place])
            done.append(f"{place} is {source} now")
        if lists_code(lock):
            text, stages = with_versions(lock, files[PIPELINE])
            write_text(lock, text)
            done.append(f"dvc.lock has versions in place of files of code now: {', '.join(stages)}")
    return [*done, "`eridiff why` says what runs now"]


def _dvc_lock(folder: Path) -> AbstractContextManager[bool]:
    """DVC's own lock of a project; nothing to hold where DVC does not know the folder."""
    if not (folder / ".dvc").is_dir():
        return nullcontext(True)
    (folder / TMP).mkdir(exist_ok=True)
    return held(folder / TMP / "lock")


def _upgrade_rest(folder: Path) -> list[str]:
    """What else `eridiff new` makes otherwise today.

    DVC ignores what it ignores in the checkout. Where DVC made links of its pictures they are files of their own again,
    and objects of DVC's cache that were altered by an edit no longer stand under their names.
    """
    done = []
    if lacking := _not_ignored(folder):
        path = folder / ".dvcignore"
        before = read_text(path) if path.exists() else ""
        write_text(path, "".join(f"{line}\n" for line in [*before.splitlines(), *lacking]))
        done.append(f".dvcignore has these lines of the checkout's now: {' '.join(lacking)}")
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
    """Whether it is a project of a checkout."""
    root = find_checkout(folder)
    return root is not None and folder.resolve().parent == root / "projects" and (folder / "dvc.yaml").exists()


def _not_ignored(folder: Path) -> list[str]:
    """What the checkout's .dvcignore leaves out and the project's does not, which may have lines of its own."""
    source = template() if is_standalone(folder) else checkout_root(folder)
    paths = (source / ".dvcignore", folder / ".dvcignore")
    ours, its = (read_text(path).splitlines() if path.exists() else [] for path in paths)
    return [line for line in ours if line.strip() and not line.startswith("#") and line not in its]


def _renewed(folder: Path) -> str:
    return project_dvc_yaml(read_text(checkout_root(folder) / "dvc.yaml"))
