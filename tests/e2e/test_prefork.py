"""A child of the prefork ends as the real python would: exit code, output, what is said of an error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.prefork import SESSION, start
from tests.support.checkouts import ROOT

pytestmark = pytest.mark.e2e

ENDINGS = {
    "words": "raise SystemExit('said')",
    "number": "raise SystemExit(7)",
    "negative": "raise SystemExit(-1)",
    "nothing": "raise SystemExit(None)",
    "error": "1 / 0",
    "interrupt": "raise KeyboardInterrupt",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "at_exit": "import atexit; atexit.register(print, 'bye'); print('x', end='')",
    "thread": "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()",
}


@pytest.mark.parametrize("name", ENDINGS)
def test_it_ends_as_the_real_python_does(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text(ENDINGS[name])
    found = []
    for python in (sys.executable, str(start().folder / "python")):
        command = [python, "-m", name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        code = done.returncode if done.returncode >= 0 else 128 - done.returncode  # as a shell says it
        found.append((code, done.stdout, done.stderr.splitlines()[-1:]))
    assert found[0] == found[1]


def test_a_worker_of_xdist_runs_the_code_that_it_is_given(tmp_path: Path) -> None:
    """It has what was imported before; the server of its own stages comes from the same process, and serves alike."""
    code = "import sys; print(sorted({'torch', 'pytest', 'eridiff'} & set(sys.modules)), sys.argv, sys.stdin.read())"
    found = [_say([python, "-u", "-c", code], tmp_path) for python in (sys.executable, str(start().worker))]
    assert found == ["[] ['-c'] asked\n", "['torch'] ['-c'] asked\n"]
    (tmp_path / "nested.py").write_text(
        "import os, subprocess, sys\n"
        "from tests.e2e.prefork import start, started\n"
        "assert started() is None\n"
        "print(subprocess.run([start().folder / 'python', '-m', 'part'], timeout=300).returncode, flush=True)\n"
        "assert started() not in (None, os.getpid())\n"
    )
    (tmp_path / "part.py").write_text("import os, sys; print('torch' in sys.modules, flush=True); sys.exit(3)")
    given = {SESSION: str(start().folder), "PYTHONPATH": str(ROOT)}
    assert _say([str(start().folder / "python"), "-m", "nested"], tmp_path, **given) == "True\n3\n"


def test_a_program_forks_the_stages_that_it_starts_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    said = "import os, sys; print('torch' in sys.modules, flush=True)"
    for name in ("part", "flow"):
        (tmp_path / "stages" / f"{name}.py").write_text(said)
    (tmp_path / "program.py").write_text(
        "import subprocess, sys\n"
        "print('torch' in sys.modules, flush=True)\n"
        "for name in ('part', 'flow'):\n"
        "    subprocess.run([sys.executable, '-u', '-m', f'stages.{name}'], timeout=300, check=True)\n"
    )
    command, given = [sys.executable, "-m", "program"], {"PYTHONPATH": str(start().stages)}
    assert _say(command, tmp_path, **given) == "False\nTrue\nFalse\n"
    assert _say(["python", "-m", "program"], tmp_path, PATH=str(start().stages), **given) == "False\nTrue\nFalse\n"


def _say(command: list[str], place: Path, **more: str) -> str:
    done = subprocess.run(
        command, cwd=place, env={**os.environ, **more}, input="asked", capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_child_keeps_what_it_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the tests' own python keeps nothing: else each stage of a clone compiles eridiff."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    (tmp_path / "part.py").write_text("")
    (tmp_path / "whole.py").write_text("import part")
    subprocess.run([str(start().folder / "python"), "-m", "whole"], cwd=tmp_path, check=True, timeout=300)
    assert "part" in {path.name.split(".")[0] for path in (tmp_path / "__pycache__").iterdir()}


def test_frames_of_the_import_system_have_no_module(tmp_path: Path) -> None:
    """A child answers so without looking; the real inspect looks, and finds none."""
    (tmp_path / "inner.py").write_text(
        "import inspect, sys\n"
        "frame, found = sys._getframe(), []\n"
        "while frame:\n"
        "    found.append((frame.f_code.co_filename.startswith('<'), str(inspect.getmodule(frame))))\n"
        "    frame = frame.f_back\n"
        "frozen = {name for inside, name in found if inside}\n"
        "print(frozen, inspect.getmodule(inspect.getsource).__name__, found[0][1].split()[1])\n"
    )
    (tmp_path / "outer.py").write_text("import inner")
    for python in (sys.executable, str(start().folder / "python")):
        command = [python, "-m", "outer"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True)
        assert done.stdout == "{'None'} inspect 'inner'\n"
