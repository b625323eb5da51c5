"""What a kill leaves of DVC's own files is mended, where nobody works on them; the files are DVC's own."""

import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from dvc.fs import localfs
from dvc.repo import Repo
from dvc.rwlock import RWLockFileCorruptedError, RWLockFileFormatError, rwlock
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from voluptuous import Invalid

from eridiff.dvc import repair as dvcrepair
from eridiff.dvc.repair import mend
from eridiff.dvc.state import state_folder
from tests.support.processes import begin

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")  # of a library of DVC's
ROOT = Path(__file__).parent.parent.parent
LOCK = """schema: '2.0'
stages:
  a:
    cmd: mkdir -p oa
    deps:
    - path: raw
      hash: md5
      md5: c7f0ef53f06f653f79d3a6a36dcfd39b.dir
      size: 6
      nfiles: 3
    params:
      params.yaml:
        n: 1
    outs:
    - path: oa
      hash: md5
      md5: c7f0ef53f06f653f79d3a6a36dcfd39b.dir
"""
POINTER = "outs:\n- md5: c7f0ef53f06f653f79d3a6a36dcfd39b.dir\n  size: 6\n  hash: md5\n  path: raw\n  push: false\n"
DEAD = 2**22 + 1  # no process has this number


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / ".dvc/tmp/exps").mkdir(parents=True)
    (tmp_path / "data/raw").mkdir(parents=True)
    (tmp_path / "dvc.lock").write_text(LOCK)
    (tmp_path / "data/raw.dvc").write_text(POINTER)
    return tmp_path


def take(folder: Path, command: str = "dvc repro") -> None:
    """What DVC does around a stage."""
    with rwlock(str(folder), localfs, command, ["/project/raw"], ["/project/oa"], False):
        pass


def git(project: Path, *arguments: str) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run(["git", *who, *arguments], cwd=project, check=True, capture_output=True, timeout=300)


@pytest.mark.parametrize("where", ["", "exps"])
@pytest.mark.parametrize(
    "content", ["", '{"write": {"/project/oa": {"pid": ' + str(DEAD) + ', "cm', "\0" * 40, "[]", '{"a": 1}']
)
def test_a_rwlock_that_was_cut_short_is_emptied(project: Path, where: str, content: str) -> None:
    folder = project / ".dvc/tmp" / where
    (folder / "rwlock").write_text(content)
    with pytest.raises((RWLockFileCorruptedError, RWLockFileFormatError)):
        take(folder)
    (line,) = mend(project)
    assert line.startswith(f"{(folder / 'rwlock').relative_to(project)} was cut short when a process was killed")
    take(folder)
    assert json.loads((folder / "rwlock").read_text()) == {}
    assert (project / ".dvc/tmp/damaged/rwlock.1").read_text() == content
    assert mend(project) == []


KILLED_IN_THE_WRITE = """
import json, os, signal, sys
from dvc.fs import localfs
from dvc import rwlock
json.dump = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # the file is open, and empty, at this moment
with rwlock.rwlock(sys.argv[1], localfs, "dvc repro", ["/project/raw"], [], False):
    pass
"""


def test_killed_at_the_moment_of_the_write(project: Path) -> None:
    folder = project / ".dvc/tmp"
    done = subprocess.run([sys.executable, "-c", KILLED_IN_THE_WRITE, str(folder)], check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL
    assert (folder / "rwlock").read_bytes() == b""
    assert len(mend(project)) == 1
    take(folder)


WORKS = "import sys; print('works', flush=True); sys.stdin.read()"


@pytest.fixture
def worker(project: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process whose command is dvc's and that works in the project."""
    process = begin(
        [sys.executable, "-c", WORKS, "dvc", "repro"], cwd=project, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"works\n"
    yield process
    process.communicate()


def test_a_living_process_keeps_a_damaged_rwlock(project: Path, worker: "subprocess.Popen[bytes]") -> None:
    path = project / ".dvc/tmp/rwlock"
    for content in (f'{{"write": {{"/project/oa": {{"pid": {worker.pid}, "cm', f'{{"read": {{"x": [{{"pid": {DEAD}'):
        path.write_text(content)
        (line,) = mend(project)
        assert f"DVC works here (process {worker.pid})" in line
        assert path.read_text() == content
    worker.communicate()
    assert "was cut short" in mend(project)[0]


def test_a_process_that_nobody_reaped_keeps_nothing(project: Path, worker: "subprocess.Popen[bytes]") -> None:
    path = project / ".dvc/tmp/rwlock"
    path.write_text(f'{{"write": {{"/project/oa": {{"pid": {worker.pid}, "cm')
    worker.kill()
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    assert "was cut short" in mend(project)[0]


def test_what_a_living_process_holds_stays_and_the_dead_goes(project: Path, worker: "subprocess.Popen[bytes]") -> None:
    path = project / ".dvc/tmp/rwlock"
    living, dead = ({"pid": pid, "cmd": "dvc repro"} for pid in (worker.pid, DEAD))
    other = {"pid": os.getppid(), "cmd": "/elsewhere/dvc repro"}  # a living process that is none of DVC's
    record = {"write": {"/project/oa": living, "/project/ob": dead}, "read": {"/project/raw": [living, dead, other]}}
    path.write_text(json.dumps(record))
    (line,) = mend(project)
    assert f"{DEAD} (dvc repro)" in line and str(worker.pid) not in line
    assert json.loads(path.read_text()) == {"write": {"/project/oa": living}, "read": {"/project/raw": [living]}}


def test_a_rwlock_that_is_being_written_is_left_alone(project: Path) -> None:
    path = project / ".dvc/tmp/rwlock"
    path.write_text("")
    with dvcrepair.held(project / ".dvc/tmp/rwlock.lock") as free:
        assert free
        assert mend(project) == []
        assert path.read_text() == ""


def test_what_may_not_be_written_is_left_alone(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / ".dvc/tmp/rwlock").write_text("")
    (project / "dvc.lock").write_text("")
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root, who may write all
    assert mend(project) == []
    assert not (project / ".dvc/tmp/lock").exists()


def test_without_git_there_are_no_experiments(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert mend(project) == []
    (project / "dvc.lock").write_text("")
    assert "since git has none" in mend(project)[0]


def accepted(content: bytes) -> bool:
    """Whether DVC reads a dvc.lock: its own schema over its own parser."""
    try:
        record = YAML(typ="safe").load(content.decode())
        COMPILED_LOCKFILE_SCHEMA(record)
    except (YAMLError, Invalid, UnicodeDecodeError):
        return False
    return True


def test_a_lock_is_damaged_where_dvc_says_so() -> None:
    """Cut at every byte; DVC's own schema is the second source."""
    whole = LOCK.encode()
    cut = [whole[:length] for length in range(len(whole) + 1)]
    refused = [content for content in cut if not accepted(content)]
    assert len(refused) > 100 and whole not in refused
    assert [content for content in refused if dvcrepair._is_lock(content)] == []
    assert dvcrepair._is_lock(whole)
    assert dvcrepair._is_lock((ROOT / "dvc.lock").read_bytes())


@pytest.mark.parametrize("kept", [0, len(LOCK) // 2, len(LOCK) - 40])
@pytest.mark.parametrize("name", ["dvc.lock", "data/raw.dvc"])
def test_a_tracked_file_comes_back_from_git(project: Path, name: str, kept: int) -> None:
    git(project, "init", "-q")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "start")
    path = project / name
    whole = path.read_bytes()
    damaged = whole[: min(kept, 40 if name != "dvc.lock" else kept)]
    path.write_bytes(damaged)
    (line,) = mend(project)
    assert line.startswith(f"{name} was cut short when a process was killed (kept: .dvc/tmp/damaged/{path.name}.1)")
    assert path.read_bytes() == whole
    assert (project / f".dvc/tmp/damaged/{path.name}.1").read_bytes() == damaged
    assert mend(project) == []


def test_without_git_the_lock_goes_and_the_pointer_is_written_again(project: Path) -> None:
    (project / "dvc.lock").write_text(LOCK[: LOCK.index("mkdir")])
    (project / "data/raw.dvc").write_text("")
    lines = mend(project)
    assert not (project / "dvc.lock").exists() and "run-cache" in lines[0]
    assert YAML(typ="safe").load((project / "data/raw.dvc").read_text()) == {
        "outs": [{"hash": "md5", "path": "raw", "push": False}]
    }
    assert "look at its `push`" in lines[1]


def test_a_conflict_of_git_and_a_file_in_use_are_left_alone(project: Path) -> None:
    conflict = f"<<<<<<< HEAD\n{LOCK}=======\n{LOCK}>>>>>>> other\n"
    (project / "dvc.lock").write_text(conflict)
    assert mend(project) == []
    assert (project / "dvc.lock").read_text() == conflict
    (project / "dvc.lock").write_text("")
    with dvcrepair.held(project / ".dvc/tmp/lock"):
        assert mend(project) == []
    assert len(mend(project)) == 1


def test_records_of_experiments_that_are_cut_short_go(project: Path) -> None:
    folder = project / ".dvc/tmp/exps/standalone/run/abc"
    folder.mkdir(parents=True)
    (folder / "abc.run").write_text('{"git_url": "fi')
    (folder / "abc.json").write_text('{"pid": 1}')
    (line,) = mend(project)
    assert "abc.run was cut short" in line
    assert [path.name for path in folder.iterdir()] == ["abc.json"]


def test_whole_files_and_other_folders_are_not_touched(project: Path, tmp_path: Path) -> None:
    take(project / ".dvc/tmp")
    before = {path: path.stat() for path in project.rglob("*") if path.is_file()}
    assert mend(project) == []
    assert {path: path.stat().st_mtime_ns for path in before} == {path: s.st_mtime_ns for path, s in before.items()}
    assert mend(tmp_path / "data") == []


@pytest.fixture
def databases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of DVC's own making, whose databases lie in a folder of the test."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    place = tmp_path / "repo"
    place.mkdir()
    (place / "a").write_text("a")
    with Repo.init(str(place), no_scm=True) as repo:
        repo.add(str(place / "a"))
        assert str(state_folder(place)) == repo.site_cache_dir
    return place


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"X" + b[1:]], ids=["half", "flipped"])
def test_databases_that_dvc_cannot_read_are_taken_away(databases: Path, damage: Callable[[bytes], bytes]) -> None:
    assert mend(databases) == []
    paths = sorted(state_folder(databases).glob("**/*.db"))
    assert len(paths) >= 2
    for path in paths:
        path.write_bytes(damage(path.read_bytes()))
        for part in path.parent.glob(f"{path.name}-*"):
            part.unlink()
    with pytest.raises(sqlite3.DatabaseError), Repo(str(databases)) as repo:
        repo.status()
    assert all("was damaged, and is gone" in line for line in mend(databases))
    with Repo(str(databases)) as repo:
        assert repo.status() == {}


def test_a_database_that_is_in_use_is_left_alone(databases: Path) -> None:
    path = next(state_folder(databases).glob("**/*.db"))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("begin exclusive")
        assert mend(databases) == []
    assert path.exists()


def test_where_the_databases_lie(databases: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DVC_SITE_CACHE_DIR")
    assert state_folder(databases).is_relative_to("/var/tmp/dvc")
    (databases / ".dvc/config.local").write_text(f"[core]\n    site_cache_dir = {tmp_path / 'other'}\n")
    with Repo(str(databases)) as repo:
        assert str(state_folder(databases)) == repo.site_cache_dir


def test_a_file_system_without_locks_is_left_alone(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rwlock = project / ".dvc/tmp/rwlock"
    rwlock.parent.mkdir(parents=True, exist_ok=True)
    rwlock.write_text("")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("eridiff.core.locks.fcntl.flock", refuse)
    assert mend(project) == [] and rwlock.read_text() == ""
