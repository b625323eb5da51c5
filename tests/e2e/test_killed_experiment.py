"""`dvc exp run` killed while it has the checkout's edits in git's stash: the real one, at the real moment."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eridiff.dvcrepair import mend
from tests.processes import begin

pytestmark = pytest.mark.e2e
DVC_YAML = "stages: {a: {cmd: 'echo ${n} > a.txt', outs: [a.txt], params: [n]}}\n"


def run(project: Path, *command: str) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "t")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "t@localhost")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    place = tmp_path / "project"
    place.mkdir()
    (place / "dvc.yaml").write_text(DVC_YAML)
    (place / "params.yaml").write_text("n: 1\n")
    run(place, "git", "init", "-q", "-b", "main")
    run(place, "dvc", "init", "-q")
    run(place, "dvc", "repro", "-q")
    run(place, "git", "add", "-A")
    run(place, "git", "commit", "-qm", "start")
    return place


def test_the_edits_come_back_and_the_next_runs_go_on(project: Path) -> None:
    (project / "params.yaml").write_text("n: 1\nmine: 5\n")
    before = run(project, "git", "status", "--short", "--branch")
    command = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "-S", "n=25"]
    process = begin(command, cwd=project, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while (project / ".git/HEAD").read_text().startswith("ref: "):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert "stash@{0}: WIP on main" in run(project, "git", "stash", "list")
    assert "they are back" in mend(project)[0]
    assert run(project, "git", "status", "--short", "--branch") == before
    assert (project / "params.yaml").read_text() == "n: 1\nmine: 5\n"
    again = run(project, "dvc", "exp", "run", "--temp", "-S", "n=26", "-n", "next")
    assert again.count("Running stage 'a'") == 1  # and not the killed one too
    assert "Running stage" not in run(project, "dvc", "repro")
    assert mend(project) == []
