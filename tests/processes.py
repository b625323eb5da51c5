"""Processes of tests: each has a limit, after which it is killed."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PIPE = subprocess.PIPE
LIMIT = 300.0  # seconds; nothing that a test waits for takes longer, but what says so


def begin(command: list[str], *, limit: float = LIMIT, **options: Any) -> "subprocess.Popen[Any]":
    """`subprocess.Popen`, killed after a limit: a test that was stopped, or never waits, leaves nothing for good."""
    process: subprocess.Popen[Any] = subprocess.Popen(command, **options)
    timer = threading.Timer(limit, process.kill)  # of one that has ended nothing is killed
    timer.daemon = True
    timer.start()
    return process


def start(code: str, *arguments: object, seed: int = 0) -> "subprocess.Popen[str]":
    """Start code in the current folder, arguments in sys.argv; hash randomisation is as on any machine, but seeded."""
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(ROOT)}
    return begin(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(code: str, *arguments: object, seed: int = 0) -> str:
    """What code prints; an error of the process is an error of the test."""
    process = start(code, *arguments, seed=seed)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return out
