"""Make docs/pictures/recording.svg: one caption edited, what follows, and a second clone that runs nothing.

    python docs/pictures/record.py

Runs the commands that it shows, in two clones in a temporary folder; `make repro` must have run in this checkout. What
is cut is marked by "...".
"""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent.parent
OUT = Path(__file__).with_name("recording.svg")
WIDTH, LONGEST = 108, 11
FIRST = (
    "echo 'a teapot and its lid' > data/raw/neon/teapot.txt",
    "eridiff why",
    "dvc repro text",
)
SECOND = ("dvc pull --run-cache", "dvc repro")


def run(command: str, folder: Path, environment: dict[str, str]) -> list[str]:
    """Run a command line; its lines, without DVC's notes on git and progress."""
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, text=True, capture_output=True, check=True
    )  # fmt: skip
    unwanted = ("To track", "git add", "To enable", "dvc config", "Use `dvc push`", "Updating", "> python")
    lines = [line.rstrip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return [line for line in lines if not line.strip().startswith(unwanted) and "\r" not in line]


def show(console: Console, name: str, commands: tuple[str, ...], folder: Path, environment: dict[str, str]) -> None:
    """Run commands in a folder and print them as a terminal shows them."""
    for command in commands:
        console.print(Text.assemble((f"{name} $ ", "bold green"), (command, "bold")))
        lines = run(command, folder, environment)
        for line in lines[:LONGEST]:
            style = "yellow" if "encoded" in line or "runs" in line else ""
            console.print(Text(line, style=style, overflow="ellipsis", no_wrap=True))
        if len(lines) > LONGEST:
            console.print(Text("...", style="dim"))
    console.print()


def main() -> None:
    """Write the recording."""
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w"))  # noqa: SIM115
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = f"{ROOT / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "COLUMNS": str(WIDTH)}
        environment |= {"DVC_NO_ANALYTICS": "1", "PYTHONPATH": ""}
        subprocess.run(["git", "clone", "-q", str(ROOT), "demo"], cwd=folder, check=True)
        for copied in ("dvc.lock", ".dvc/cache"):
            source, target = ROOT / copied, folder / "demo" / copied
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
        run("dvc checkout -q && dvc remote add -q --local -d shared ../shared", folder / "demo", environment)
        show(console, "demo", FIRST, folder / "demo", environment)
        run("git checkout -q . && dvc checkout -q && dvc push -q --run-cache", folder / "demo", environment)
        subprocess.run(["git", "clone", "-q", str(folder / "demo"), "second"], cwd=folder, check=True)
        environment["ERIDIFF_STORE"] = str(folder / "nothing")
        run("dvc remote add -q --local -d shared ../shared", folder / "second", environment)
        show(console, "second", SECOND, folder / "second", environment)
    picture = console.export_svg(title="eridiff")
    OUT.write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL), "utf-8")  # no font from afar


if __name__ == "__main__":
    main()
