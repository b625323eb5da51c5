"""Temporary files say whose they are: those of killed processes are taken away, those of living ones are not."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eridiff.caching.fill import fill
from eridiff.core.errors import run_main
from eridiff.core.files import atomic_write
from eridiff.core.leftovers import OURS, clear_project, is_left, lives, take_away, temporary_path
from eridiff.store.store import Store
from tests.support import processes
from tests.support.processes import begin

ROOT = Path(__file__).parent.parent.parent
WRITE = """
import sys
from pathlib import Path
from eridiff.core.files import atomic_write
with atomic_write(Path(sys.argv[1])) as file:
    file.write(b"half")
    print("writes", flush=True)
    sys.stdin.read()
"""


def killed_while_writing(path: Path, *, reaped: bool = True) -> Path:
    """What a process leaves that is killed in the middle of writing a file. reaped: its parent has noticed."""
    process = begin(
        [sys.executable, "-c", WRITE, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == b"writes\n"
    (left,) = path.parent.glob(".*.tmp")
    assert not is_left(left)  # it lives
    process.send_signal(signal.SIGKILL)
    if reaped:
        process.communicate()
    else:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    return left


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    for name in ("data/buckets", "data/raw", "runs"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("name", ["data/buckets/buckets.parquet", "runs/text.json", "params.yaml"])
def test_the_next_start_takes_away_what_a_killed_process_left(project: Path, name: str) -> None:
    left = killed_while_writing(project / name)
    before = signal.getsignal(signal.SIGTERM)
    try:
        run_main(lambda: None)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not left.exists()
    assert not (project / name).exists()


def test_what_a_zombie_left_is_taken_away(project: Path) -> None:
    """Nobody reaps it in a container without an init, so it would count as living for good."""
    left = killed_while_writing(project / "data/buckets/buckets.parquet", reaped=False)
    assert clear_project(project) == [left]


def test_what_a_living_process_writes_stays(project: Path) -> None:
    with atomic_write(project / "data/x") as file:
        file.write(b"whole")
        assert clear_project(project) == []
    assert (project / "data/x").read_bytes() == b"whole"


def test_a_folder_of_a_killed_export(project: Path) -> None:
    gone = temporary_path(project / "data/export")
    dead = gone.with_name(gone.name.replace(f"-{os.getpid()}-", f"-{2**22 + 1}-"))  # no process has this number
    (dead / "new").mkdir(parents=True)
    (dead / "new/x.safetensors").write_bytes(b"half")
    gone.mkdir()
    assert clear_project(project) == [dead]
    assert gone.exists() and not dead.exists()


def test_a_number_that_another_process_has_now_is_no_owner() -> None:
    assert lives(os.getpid(), time.time())
    assert not lives(os.getpid(), time.time() - 10 * 86400)  # this process was not there then


def test_other_machines_and_names_without_an_owner_have_their_time(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = temporary_path(project / "data/a")
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    theirs = temporary_path(project / "data/b")
    monkeypatch.undo()
    monkeypatch.chdir(project)
    earlier = project / "data/.buckets.parquet.0123456789ab.tmp"
    export = project / "data/.export-abcd_234"
    of_dvc = project / "data/step.safetensors.q8CJx0dGAAbTzIYH1C-8_g.tmp"
    for path, age in ((mine, 0), (theirs, 3600), (earlier, 60), (export, 60), (of_dvc, 60)):
        path.write_bytes(b"")
        os.utime(path, (time.time() - age,) * 2)
    assert clear_project(project) == []
    for path, age in ((theirs, 90_000), (earlier, 4000), (export, 4000), (of_dvc, 4000)):
        os.utime(path, (time.time() - age,) * 2)
    assert sorted(clear_project(project)) == sorted([theirs, earlier, export, of_dvc])
    assert mine.exists()


def test_nothing_is_taken_from_a_users_pictures_nor_outside_a_project(project: Path, tmp_path: Path) -> None:
    old = [project / "data/raw/.cat.png.0123456789ab.tmp", project / "other/.cat.png.0123456789ab.tmp"]
    for path in old:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
        os.utime(path, (1, 1))
    assert clear_project(project) == []
    (project / "dvc.yaml").unlink()
    (project / "data/.x.0123456789ab.tmp").write_bytes(b"")
    os.utime(project / "data/.x.0123456789ab.tmp", (1, 1))
    assert clear_project(project) == []
    assert take_away(project / "data", below=False) == [project / "data/.x.0123456789ab.tmp"]


@pytest.mark.parametrize("name", ["a", "buckets.parquet", "new\nline", ".hidden"])
def test_names_say_whose_they_are(name: str) -> None:
    found = OURS.fullmatch(temporary_path(Path("data") / name).name)
    assert found and int(found["pid"]) == os.getpid()


def test_every_temporary_name_is_ignored_by_git_and_dvc(tmp_path: Path) -> None:
    from dvc.ignore import DvcIgnorePatterns

    names = [
        temporary_path(Path("data/export")).name,
        ".buckets.parquet.0123456789ab.tmp",  # of earlier versions
        ".q8CJx0dGAAbTzIYH1C-8_g.tmp",  # DVC's own
        "step.safetensors.q8CJx0dGAAbTzIYH1C-8_g.tmp",
    ]
    (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    processes.run(
        "import subprocess, sys\n"
        "subprocess.run(['git', 'init', '-q', sys.argv[1]], check=True)\n"
        "for name in sys.argv[2:]:\n"
        "    for folder in ('', 'data/', 'runs/', 'projects/cats/data/buckets/'):\n"
        "        done = subprocess.run(['git', 'check-ignore', '-q', folder + name], cwd=sys.argv[1])\n"
        "        assert done.returncode == 0, folder + name\n",
        tmp_path,
        *names,
    )
    patterns = DvcIgnorePatterns((ROOT / ".dvcignore").read_text().splitlines(), str(tmp_path), os.sep)
    for name in names:
        assert patterns.matches(str(tmp_path / "data"), name, False), name
        assert patterns.matches(str(tmp_path / "data"), name, True), name
    assert not patterns.matches(str(tmp_path / "data"), "cat.png", False)


def test_no_module_makes_temporary_names_of_its_own() -> None:
    """One function names them all, so that one pattern ignores and one walk clears them.

    experiments.py tries changes on a copy in the system's own folder.
    """
    found = {
        path.name
        for path in [*(ROOT / "eridiff").rglob("*.py"), *(ROOT / "stages").glob("*.py")]
        if re.search(r"tempfile|mkdtemp|[}x]\.tmp", path.read_text())
    }
    assert found == {"leftovers.py", "experiments.py"}


def test_the_store_too(tmp_path: Path) -> None:
    """A stage that fills the store takes away what a killed one left there."""
    store = Store(tmp_path / "store", "latents")
    left = killed_while_writing(tmp_path / "store/latents/entries/ab/key.safetensors")
    fill(store, [], list, lambda: 0, tmp_path / "out", what="latents")
    assert not left.exists()
