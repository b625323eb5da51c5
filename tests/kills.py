"""SIGKILL at random moments of `make repro` of the tests' small project, of one process or of all.

    python -m tests.kills --kills 50 --seed 1

Stages are a python of their own, as a user's. The short round among the tests forks them (tests/e2e/prefork.py), all
else is as here.

After each kill all that it left running must end by itself; a run that is let through must then give the very outs of
a run that nobody disturbed, and leave nothing behind.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from tests.e2e.harness import make_clone
from tests.support.processes import begin

VICTIMS = ("all", "make", "make repro's own process", "its supervisor", "dvc", "a stage")
LONGEST = 40.0  # seconds: the latest moment of a kill; what ends before is a run that was let through
PATIENCE = 60.0  # seconds for what was left to end


class Victim:
    """A clone whose run is disturbed, and what it gives undisturbed."""

    def __init__(self, folder: Path, *, cold: bool) -> None:
        self.clone = make_clone(folder, "clone", cold=cold)
        (self.clone.root / "local.yaml").write_text("state_every: 1\n")
        self.makefile = folder / "Makefile"  # the checkout's own would look whether all is installed first
        self.makefile.write_text(f"repro:\n\t@ERIDIFF_MAKE=$$PPID exec {sys.executable} -m eridiff.reproduce\n")
        self.log = folder / "log"
        self.finish()
        self.expected = self.clone.lock()
        self.clone.commit("outs")  # .gitignore files of DVC's own

    def forget(self) -> None:
        """Start from nothing: no store, no cache, no lock, no outs."""
        for place in (self.clone.store, self.clone.root / ".dvc/cache", self.clone.root / ".dvc/tmp"):
            shutil.rmtree(place, ignore_errors=True)
        self.clone.run("git", "clean", "-dfxq", "--exclude=local.yaml")
        self.clone.run("git", "rm", "-q", "--cached", "--ignore-unmatch", "dvc.lock")
        (self.clone.root / "dvc.lock").unlink(missing_ok=True)

    def start(self) -> "subprocess.Popen[bytes]":
        """`make repro`, in a session of its own."""
        environment = self.clone.launching()
        paths = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), str(self.clone.root)]))
        with self.log.open("wb") as file:
            return begin(
                ["make", "-f", str(self.makefile), "repro"],
                cwd=self.clone.root,
                env={**environment, "PYTHONPATH": paths},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                limit=600,
            )

    def finish(self) -> None:
        """A run that is let through."""
        assert self.start().wait(600) == 0, self.log.read_text()

    def living(self) -> list[psutil.Process]:
        """What runs in the clone, less zombies."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(self.clone.root):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def kill(self, whom: str, seconds: float) -> str:
        """Start a run and kill so much later; what was killed, or that the run had ended."""
        process = self.start()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return self._kill(process, whom)
        assert process.returncode == 0, self.log.read_text()
        return "nothing: it had ended"

    def _kill(self, process: "subprocess.Popen[bytes]", whom: str) -> str:
        if whom == "all":
            for one in self.living():
                one.kill()
            process.wait()
            return whom
        found = [one for one in self.living() if _is(one, whom, process.pid)]
        for one in found[:1]:
            one.kill()
        if not found:  # not there yet, or not any more
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)
        return whom if found else "its group"

    def ended(self) -> float:
        """Wait until nothing of it runs; the seconds that it took."""
        begun = time.monotonic()
        while left := self.living():
            assert time.monotonic() - begun < PATIENCE, f"still run: {[one.cmdline() for one in left]}"
            time.sleep(0.1)
        return time.monotonic() - begun

    def judge(self) -> None:
        """After a run that was let through: the same outs, and nothing left."""
        assert self.clone.lock() == self.expected
        self.clone.run("git", "add", "dvc.lock")
        status = self.clone.run("git", "status", "--porcelain", "--untracked-files=all").stdout.splitlines()
        assert status in ([], ["M  dvc.lock"]), status
        tmp = self.clone.root / ".dvc/tmp"
        assert json.loads((tmp / "rwlock").read_text() or "{}") == {}, (tmp / "rwlock").read_text()
        assert [path for path in self.clone.root.rglob("*.tmp") if ".git" not in path.parts] == []
        assert list(self.clone.store.rglob("*.tmp")) == []
        assert list(tmp.glob("damaged/*")) == [] or "cut short" in self.log.read_text()
        again = self.clone.run(sys.executable, "-m", "dvc", "status").stdout
        assert "up to date" in again, again


def _is(process: psutil.Process, whom: str, make: int) -> bool:
    try:
        words = process.cmdline()
    except psutil.NoSuchProcess:
        return False
    if whom == "make":
        return bool(process.pid == make)
    text = {
        "make repro's own process": "-m eridiff.reproduce",
        "its supervisor": "-m eridiff.flow.supervise",
        "dvc": "-m dvc repro",
        "a stage": "-m stages.",
    }[whom]
    said = " ".join(words[words.index("-m") :]) if "-m" in words else ""
    return said.startswith(text)


def attack(folder: Path, kills: int, seed: int, *, latest: float = LONGEST, cold: bool = True) -> Counter[str]:
    """So many kills; what was killed how often. Raises: AssertionError where one does harm."""
    drawn, victim, done = random.Random(seed), Victim(folder, cold=cold), Counter[str]()
    while sum(done.values()) - done["nothing: it had ended"] < kills:
        victim.forget()
        for _ in range(drawn.randint(1, 5)):
            whom, seconds = drawn.choice(VICTIMS), drawn.uniform(0.2, latest)
            killed = victim.kill(whom, seconds)
            took = victim.ended()
            done[killed] += 1
            print(f"{seconds:5.1f} s: {killed}, all ended {took:.1f} s later", flush=True)
        victim.finish()
        victim.judge()
        print("as a run that nobody disturbed", flush=True)
    return done


def main() -> None:
    """The driver."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        print(dict(attack(Path(folder), arguments.kills, arguments.seed)))


if __name__ == "__main__":
    main()
