"""What a kill leaves of DVC's own files: DVC rewrites some in place, and one that was cut short stops every later run.

    .dvc/tmp/rwlock, .dvc/tmp/exps/rwlock   which process reads or writes which path
    dvc.lock, data/*.dvc                    what the pipeline was run with; which pictures it has
    .dvc/tmp/exps/**/run/*/*.{run,json}     experiments that run
    its databases (eridiff/dvc/state.py)

Mended only where no living process works on them. What is replaced is kept in .dvc/tmp/damaged.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from eridiff.core.files import MAX_BYTES, read_file, write_text
from eridiff.core.git import ask_git
from eridiff.core.json_files import load_json, parse_json
from eridiff.core.leftovers import lives
from eridiff.core.locks import try_lock
from eridiff.dvc.experiment_repair import clear_copies, forget_waiting, is_waiting, put_back
from eridiff.dvc.state import damaged_databases

TMP = Path(".dvc/tmp")
DAMAGED = TMP / "damaged"
MAX_BRACKETS = 10_000  # of what DVC writes, which is in blocks: some are in texts
PID = re.compile(r'"pid":\s*(\d+)')
CONFLICT = re.compile(r"^(<<<<<<<|=======|>>>>>>>)", re.MULTILINE)  # git's: the user's to resolve


def mend(project: Path) -> list[str]:
    """Put DVC's files of a project right; returns a line for each that was not. Nothing where DVC does not know it."""
    if not (project / ".dvc").is_dir():
        return []
    lines = _mend_moved(project)  # first: its mark is in a rwlock
    for folder in (project / TMP, project / TMP / "exps"):
        lines += _mend_rwlock(project, folder)
    with held(project / TMP / "lock") as free:
        if free:  # else DVC works here, and reads them again itself before it writes
            lines += _mend_tracked(project)
    return lines + _mend_databases(project) + _mend_experiments(project)


def _mend_moved(project: Path) -> list[str]:
    """Undo what a killed `dvc exp run` did to the checkout: it died holding the experiments' lock of the workspace."""
    path = project / TMP / "exps/rwlock"
    if not path.exists():
        return []
    written, record = path.stat().st_mtime, _parsed(read_file(path).decode("utf-8", "replace")) or {}
    holder = record.get("write", {}).get("workspace")
    if holder is None or _still_works(holder, written) or dvc_processes(project):
        return []
    return put_back(project, written)


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Hold one of DVC's locks (zc.lockfile: flock) for a moment; False where a living process holds it.

    A lock by hardlinks (`core.hardlink_lock`) is there while it is held: it has a second name then. What this user may
    not write is not theirs to mend either.
    """
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        yield False
        return
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        yield _is_ours(number)
    finally:
        os.close(number)


def _is_ours(number: int) -> bool:
    """Lock an open file; False where another holds it, or its file system has no locks: DVC has none there either."""
    try:
        return try_lock(number) and os.fstat(number).st_nlink < 2
    except OSError:
        return False


def _mend_rwlock(project: Path, folder: Path) -> list[str]:
    """Empty a rwlock that was cut short, and take out what killed processes hold in a whole one."""
    path = folder / "rwlock"
    if not path.exists():
        return []
    with held(folder / "rwlock.lock") as free:
        if not free:
            return []
        text, written = read_file(path).decode("utf-8", "replace"), path.stat().st_mtime
        name = path.relative_to(project)
        record = _parsed(text)
        if record is not None:
            return _without_the_dead(path, name, record, written)
        named = {int(pid) for pid in PID.findall(text)}
        if living := {pid for pid in named if lives(pid, written)} | dvc_processes(project):
            return [_in_use(name, living)]
        aside = _put_aside(project, path)
        write_text(path, "{}")
    return [f"{name} was cut short when a process was killed, and is empty again (what was left of it: {aside})"]


def _in_use(name: Path, living: set[int]) -> str:
    processes = ", ".join(map(str, sorted(living)))
    return f"{name} is damaged, but DVC works here (process {processes}): wait for it or stop it, then run this again"


def _parsed(text: str) -> dict[str, Any] | None:
    """A rwlock's content; None where it is not what DVC reads."""
    try:
        record = parse_json(text)
        readers = [holder for holders in record.get("read", {}).values() for holder in holders]
        for holder in [*record.get("write", {}).values(), *readers]:
            if type(holder["pid"]) is not int or not isinstance(holder["cmd"], str):
                return None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if set(record) <= {"read", "write"} else None


def _without_the_dead(path: Path, name: Path, record: dict[str, Any], written: float) -> list[str]:
    """Spare the next run DVC's warnings of killed processes, and its refusal where another has a dead one's number."""
    dead: dict[int, str] = {}

    def keeps(holder: Mapping[str, Any]) -> bool:
        if _still_works(holder, written):
            return True
        dead[holder["pid"]] = holder["cmd"]
        return False

    writers = {place: holder for place, holder in record.get("write", {}).items() if keeps(holder)}
    readers = {place: [one for one in holders if keeps(one)] for place, holders in record.get("read", {}).items()}
    if not dead:
        return []
    kept = {"write": writers, "read": {place: holders for place, holders in readers.items() if holders}}
    write_text(path, json.dumps({kind: held for kind, held in kept.items() if held}))
    said = ", ".join(f"{pid} ({command})" for pid, command in sorted(dead.items()))
    return [f"{name} named what was killed before it ended, and no longer does: process {said}"]


def _still_works(holder: Mapping[str, Any], written: float) -> bool:
    """Whether a holder is the living process that it names, not another that got its number."""
    import psutil

    if not lives(holder["pid"], written):
        return False
    try:
        words = psutil.Process(holder["pid"]).cmdline()
    except psutil.AccessDenied:
        return True
    except psutil.NoSuchProcess:
        return False
    return holder["cmd"] in " ".join(words) or _is_dvc(words)


def _is_dvc(words: Sequence[str]) -> bool:
    """Whether a command is DVC's: `dvc ...`, `python .../dvc ...`, `python -m dvc ...`."""
    return any(Path(word).name == "dvc" for word in words[:4])


def dvc_processes(project: Path) -> set[int]:
    """Processes of DVC that work in a project, less this one and those that started it."""
    import psutil

    here = project.resolve()
    own = {os.getpid(), *(process.pid for process in psutil.Process().parents())}
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid not in own and _is_dvc(process.cmdline()) and Path(process.cwd()).is_relative_to(here):
                found.add(process.pid)
    return found


def _put_aside(project: Path, path: Path) -> Path:
    """Keep a copy of a damaged file; returns where, from the project's folder."""
    folder = project / DAMAGED
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while (aside := folder / f"{path.name}.{number}").exists():
        number += 1
    aside.write_bytes(read_file(path))
    return aside.relative_to(project)


def _mend_tracked(project: Path) -> list[str]:
    """dvc.lock and pointers to data that do not hold what DVC reads: back as git's last commit has them."""
    lines = []
    for path in [project / "dvc.lock", *sorted(project.glob("*.dvc")), *sorted(project.glob("data/*.dvc"))]:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:  # no kill makes a file that long
            continue
        is_whole = _is_lock if path.name == "dvc.lock" else _is_pointer
        content = read_file(path)
        if is_whole(content) or CONFLICT.search(content.decode("utf-8", errors="replace")):
            continue
        name, aside = path.relative_to(project), _put_aside(project, path)
        lines.append(f"{name} was cut short when a process was killed (kept: {aside}). {_restore(project, path)}")
    return lines


def _restore(project: Path, path: Path) -> str:
    """Put a damaged file right; says what it is now."""
    name = path.relative_to(project)
    is_lock = path.name == "dvc.lock"
    committed = ask_git(project, "show", f"HEAD:./{name}")
    if committed is not None and (_is_lock if is_lock else _is_pointer)(committed):
        write_text(path, committed.decode("utf-8"))
        return "It is again as git's last commit has it: `dvc repro` takes what ran since from its run-cache"
    if is_lock:
        path.unlink()
        return "It is removed, since git has none: `dvc repro` takes what ran before from its run-cache"
    write_text(path, f"outs:\n- hash: md5\n  path: {json.dumps(path.stem)}\n  push: false\n")
    return f"It is written again for {name.with_suffix('')} as it stands: look at its `push`, which is false"


def _read(content: bytes) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if content.count(b"[") + content.count(b"{") > MAX_BRACKETS:
        return None
    try:
        return YAML(typ="safe").load(content.decode("utf-8"))
    except (UnicodeDecodeError, YAMLError, ValueError, RecursionError):
        return None


def _is_lock(content: bytes) -> bool:
    """Whether this is a dvc.lock as DVC reads it."""
    record = _read(content)
    if not isinstance(record, dict) or record.get("schema") != "2.0" or not isinstance(record.get("stages", {}), dict):
        return False
    return all(isinstance(stage, dict) and _is_stage(stage) for stage in record.get("stages", {}).values())


def _is_stage(stage: dict[str, Any]) -> bool:
    entries = [stage.get(kind, []) for kind in ("deps", "outs")]
    params = stage.get("params", {})
    if not isinstance(stage.get("cmd"), str | list) or not all(isinstance(listed, list) for listed in entries):
        return False
    groups = isinstance(params, dict) and all(isinstance(group, dict) for group in params.values())
    return groups and all(_is_entry(entry) for listed in entries for entry in listed)


def _is_entry(entry: Any) -> bool:
    """A dep or out: a path and what else is known of it, nothing left open."""
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str) or None in entry.values():
        return False
    digest = entry.get("md5", "none")
    return isinstance(digest, str) and len(digest) > 2  # DVC's own bound


def _is_pointer(content: bytes) -> bool:
    """Whether this is a `.dvc` file as DVC reads it, which names something."""
    record = _read(content)
    outs = record.get("outs") if isinstance(record, dict) else None
    return isinstance(outs, list) and bool(outs) and all(_is_entry(out) for out in outs)


def _mend_databases(project: Path) -> list[str]:
    """Take away DVC's databases that cannot be read; it digests again what they knew."""
    damaged = damaged_databases(project)
    if damaged and (living := dvc_processes(project)):
        return [_in_use(path, living) for path in damaged]
    for path in damaged:
        for part in path.parent.glob(f"{path.name}*"):  # its journal too
            part.unlink()
    return [
        f"{path} was damaged, and is gone: DVC reads again what it knew of this project's files" for path in damaged
    ]


def _mend_experiments(project: Path) -> list[str]:
    """Take away what killed experiments left: copies, requests, and records cut short, at which `exp show` stops."""
    folder = project / TMP / "exps"
    copies, waiting = list((folder / "standalone").glob("tmp*")), folder.is_dir() and is_waiting(project)
    records = [path for path in [*folder.glob("run/*/*"), *folder.glob("standalone/run/*/*")] if _is_cut_record(path)]
    if not (copies or waiting or records) or dvc_processes(project):
        return []
    lines = clear_copies(project) + (forget_waiting(project) if waiting else [])
    for path in sorted(records):
        aside = _put_aside(project, path)
        path.unlink()
        lines.append(
            f"{path.relative_to(project)} was cut short when a process was killed, and is gone (kept: {aside})"
        )
    return lines


def _is_cut_record(path: Path) -> bool:
    if path.suffix not in (".run", ".json") or not path.is_file():
        return False
    try:
        load_json(path, MAX_BYTES)
    except ValueError:
        return True
    return False
