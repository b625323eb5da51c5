"""Python code run in processes of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def start(code: str, *arguments: object, seed: int = 0) -> "subprocess.Popen[str]":
    """Start code in the current folder, arguments in sys.argv; hash randomisation is as on any machine, but seeded."""
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(code: str, *arguments: object, seed: int = 0) -> str:
    """What code prints; an error of the process is an error of the test."""
    process = start(code, *arguments, seed=seed)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return out
