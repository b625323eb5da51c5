"""The words that run everything: setup, check, test, repro; flow and serve. Python's standard library only.

`make WORD` calls `python -m eridiff WORD`, so both do the same.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "eridiff-setup.txt"
# Python 3.11 brings an older pip, which takes 100 CPU-seconds to choose releases of 230 packages; this one 40.
PIP = "pip>=26"
TORCH = "torch==2.13.0"
# PyTorch's own index of CPU builds: the wheel on PyPI brings several GB of CUDA libraries.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
LEFT_OUT = ("slow", "e2e", "gpu", "flow", "proof")  # marks of tests that `make test` leaves aside
QUICK = ["-m", f"not ({' or '.join(LEFT_OUT)})", "-n", "2", "--dist", "loadfile"]
SIZES = {"cpu": "about 2 GB, one to five minutes", "cuda": "about 8 GB, five to twenty minutes"}


def refuse_platform() -> None:
    """Linux and WSL2 with Python 3.11 or later; anything else is refused with a sentence."""
    if sys.platform == "win32":
        sys.exit("error: eridiff does not run on native Windows. Install WSL2 (`wsl --install`) and run it there.")
    if sys.version_info < (3, 11):  # noqa: UP036 - run by whatever python3 is there
        sys.exit(f"error: eridiff needs Python 3.11 or later; this is {sys.version.split()[0]}. Install python3.11.")


def in_checkout() -> bool:
    """Whether this is a checkout's code: an installed package has no such words, but `eridiff repro`."""
    return (ROOT / "pyproject.toml").exists() and not (ROOT / "eridiff" / "template").exists()


def choose_torch(wanted: str) -> str:
    """`cpu` or `cuda`; `auto` is cuda where the NVIDIA driver's tool is found."""
    if wanted == "auto":
        return "cuda" if shutil.which("nvidia-smi") or Path("/usr/lib/wsl/lib/nvidia-smi").exists() else "cpu"
    return wanted


def setup(torch: str) -> None:
    """Make .venv and install into it, once; again where pyproject.toml or constraints.txt changed."""
    build = choose_torch(torch)
    digest = hashlib.sha256(build.encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    if STAMP.exists() and STAMP.read_text() == digest.hexdigest():
        return
    print(f"setup: installing into .venv with torch for {build}: {SIZES[build]}", flush=True)
    start = time.monotonic()
    if not (VENV / "bin" / "python").exists():
        run(
            [sys.executable, "-m", "venv", str(VENV)],
            "python3's venv module is missing: apt install python3-venv",
        )
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install"]
    pip += [] if sys.stdout.isatty() else ["--quiet"]
    run([*pip, PIP], "pip could not be brought up to date")
    if build == "cpu":  # without its dependencies: those come from PyPI, below
        run([*pip, TORCH, "--no-deps", "--extra-index-url", CPU_INDEX], "torch could not be installed")
    run(
        [*pip, TORCH, "--constraint", "constraints.txt", "--editable", ".[dev,flow]"],
        "the packages could not be installed",
    )
    STAMP.write_text(digest.hexdigest())
    print(f"setup: done in {time.monotonic() - start:.0f} s", flush=True)


def run(command: list[str], failed: str) -> None:
    """Run one command in the checkout; a failure ends with its exit code and one sentence."""
    settings = {key: value for key, value in environment().items() if key != "ERIDIFF_MAKE"}  # see end_with_make
    code = subprocess.run(command, cwd=ROOT, env=settings, check=False).returncode
    if code:
        print(f"error: {failed} (exit code {code}).", file=sys.stderr)
        sys.exit(code)


def environment() -> dict[str, str]:
    """The environment with .venv in front: `dvc` starts stages, and experiments start `dvc`, by name."""
    paths = [str(VENV / "bin"), os.environ.get("PATH", "")]
    return {**os.environ, "PATH": os.pathsep.join(paths), "VIRTUAL_ENV": str(VENV), "DVC_NO_ANALYTICS": "1"}


def check() -> None:
    """Lint, format, types, and who imports whom."""
    tool = str(VENV / "bin" / "python")
    run([tool, "-m", "ruff", "check", "."], "ruff found faults")
    run([tool, "-m", "ruff", "format", "--check", "."], "`ruff format .` would change files")
    run([tool, "-m", "mypy"], "mypy found faults")
    linter = [str(VENV / "bin" / "lint-imports"), "--no-cache", "--no-logo"]
    run(linter, "a contract of imports in pyproject.toml ([tool.importlinter]) is broken")
    run([tool, "-m", "tests.proofs"], "tests/golden/proofs.json cannot be read")  # warns, and fails nothing
    print("check: all well", flush=True)


def test(arguments: list[str]) -> None:
    """Run the tests; arguments go to pytest."""
    run([str(VENV / "bin" / "python"), "-m", "pytest", *arguments], "tests failed")


def repro(arguments: list[str]) -> None:
    """Run the pipeline; arguments go to `dvc repro`."""
    os.chdir(ROOT)
    python = str(VENV / "bin" / "python")
    os.execve(python, [python, "-m", "eridiff.reproduce", *arguments], environment())


def flow(word: str, arguments: list[str]) -> None:
    """Run the pipeline once under Prefect (`flow`), or show its form and run what is asked for (`serve`)."""
    os.chdir(ROOT)
    python = str(VENV / "bin" / "python")
    beside = "once" if word == "flow" else "serve"
    command = [python, "-m", "eridiff.flow.server", beside, python, "-m", "stages.flow", word, *arguments]
    os.execve(python, command, environment())


WORDS = ("setup", "check", "test", "repro", "flow", "serve")


def main() -> None:
    """Run one of the words."""
    refuse_platform()
    parser = argparse.ArgumentParser(prog="python -m eridiff", description=__doc__)
    parser.add_argument("word", choices=WORDS)
    parser.add_argument("--torch", choices=("auto", "cpu", "cuda"), default=os.environ.get("TORCH", "auto"))
    arguments, rest = parser.parse_known_args()
    setup(arguments.torch)
    if arguments.word == "check":
        check()
    elif arguments.word == "test":
        test(rest or QUICK)
    elif arguments.word == "repro":
        repro(rest)
    elif arguments.word in ("flow", "serve"):
        flow(arguments.word, rest)
