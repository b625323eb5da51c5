"""A child of the prefork ends as the real python would: exit code, output, what is said of an error."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.prefork import start

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
