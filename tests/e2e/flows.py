"""Small projects of stages that sleep, and a `make serve` of their checkout in a temporary folder."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock
from ruamel.yaml import YAML

from eridiff.flow.access import local_secret
from eridiff.flow.server import environment, free_port, home
from tests.e2e.harness import ROOT, Clone, make_clone
from tests.e2e.prefork import SESSION
from tests.support.processes import begin

# Counts to train.steps, five a second, and goes on from where it was killed. Its child leaves the group and session.
COUNT = """
import os, pathlib, subprocess, sys, time
steps = int(sys.argv[1])
kept = pathlib.Path(sys.argv[2])
start = int(kept.read_text()) if kept.exists() and kept.read_text() else 0
child = subprocess.Popen(["setsid", "sleep", "987"])
print(f"on GPU {os.environ['CUDA_VISIBLE_DEVICES']}", flush=True)
print(f"counts from {start}", flush=True)
for step in range(start, steps):
    time.sleep(0.2)
    kept.write_text(str(step + 1))
child.kill()
pathlib.Path("count.txt").write_text(str(steps))
print(f"counted to {steps}", flush=True)
"""
BEGUN = "counts from"  # what it says then
ASKING = 0.6  # seconds between questions to the server: each costs it a hundredth
PARTS = {
    "pair": {
        "left": {"cmd": "echo left begins; sleep 2; echo left > left.txt", "outs": ["left.txt"]},
        "right": {"cmd": "sleep 2; echo ${train.steps} > right.txt", "params": ["train.steps"], "outs": ["right.txt"]},
        "both": {"cmd": "cat left.txt right.txt > both.txt", "deps": ["left.txt", "right.txt"], "outs": ["both.txt"]},
    },
    "far": {
        "fetch": {
            "cmd": "if [ -e tried ]; then echo got > got.txt; else touch tried; echo 'error: no route'; exit 1; fi",
            "outs": ["got.txt"],
            "meta": {"network": True},
        },
    },
    "tick": {"tock": {"cmd": "echo tock > tock.txt", "outs": ["tock.txt"]}},
    "count": {
        "count": {
            "cmd": "python count.py ${train.steps} " + "KEPT",
            "deps": ["count.py", "raw.bin"],
            "params": ["train.steps"],
            "outs": ["count.txt"],
            "meta": {"resource": "gpu"},
        },
    },
    "bad": {
        "fails": {"cmd": "echo 'error: the cat is no dog.' >&2; echo '  Take a dog.' >&2; exit 3", "outs": ["no.txt"]},
        "waits": {"cmd": "cp no.txt never.txt", "deps": ["no.txt"], "outs": ["never.txt"]},
        "other": {"cmd": "echo fine > fine.txt", "outs": ["fine.txt"]},
    },
}


def make_toys(folder: Path) -> Clone:
    """A checkout whose projects/ are PARTS; all but `bad` are committed."""
    clone = make_clone(folder, "checkout", cold=True)
    with (clone.root / ".gitignore").open("a") as file:
        file.write("kept.txt\nprojects/*/*.txt\nprojects/far/tried\n")
    for name, stages in PARTS.items():
        place = clone.root / "projects" / name
        place.mkdir(parents=True)
        text = json.dumps({"stages": stages}).replace("KEPT", str(clone.root / "kept.txt"))
        (place / "dvc.yaml").write_text(text)
        (place / "params.yaml").write_text("train:\n  steps: 3000\n")
        (place / "count.py").write_text(COUNT)
    first, *others = (clone.root / "projects" / name for name in PARTS)
    clone.run("dvc", "init", "-q", "--subdir", place=first)
    clone.run("dvc", "config", "core.analytics", "false", place=first)
    for place in others:
        shutil.copytree(first / ".dvc", place / ".dvc")
        shutil.copy(first / ".dvcignore", place / ".dvcignore")
    (clone.root / "projects/count/raw.bin").write_bytes(b"raw")  # as pictures: known by a .dvc file
    clone.run("dvc", "add", "-q", "raw.bin", place=clone.root / "projects/count")
    clone.commit("projects")
    clone.run("git", "rm", "-rq", "--cached", "projects/bad", place=clone.root)
    clone.run("git", "commit", "-qm", "bad is not committed", place=clone.root)
    return clone


@cache
def own_folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder that goes with this process."""
    return tempfile.TemporaryDirectory(prefix="flows-")


def lay_database(data: Path) -> None:
    """The database of a server that has run once: to make one takes Prefect 12 CPU-seconds.

    One for all tests of a run. test_flow_once.py starts without it, as a user does at first.
    """
    shared = Path(os.environ.get(SESSION) or own_folder().name) / "prefect"
    made, place = home({"XDG_DATA_HOME": str(shared)}), home({"XDG_DATA_HOME": str(data)})
    with FileLock(f"{shared}.lock"):  # of all workers of xdist
        if not made.exists():
            given = {**os.environ, "XDG_DATA_HOME": str(shared), "PYTHONPATH": str(ROOT), "ERIDIFF_GPUS": ""}
            command = [sys.executable, "-m", "eridiff.flow.server", "once", "true"]
            subprocess.run(command, cwd=ROOT, env=given, check=True, capture_output=True, timeout=300)
    place.mkdir(parents=True, exist_ok=True)
    for name in ("prefect.db", "memo_store.toml"):
        shutil.copy(made / name, place / name)


class Outside:
    """A proxy that answers nobody: what is asked of the world outside this machine is written down here."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._listen, daemon=True).start()

    def environment(self) -> dict[str, str]:
        """What makes programs ask it."""
        url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        return {name: url for kind in ("http", "https", "all") for name in (f"{kind}_proxy", f"{kind}_PROXY".upper())}

    def _listen(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                connection.settimeout(5)
                self.asked.append(connection.recv(1000).decode(errors="replace").split("\r\n")[0])


class Served:
    """`make serve` of a checkout, with a home of its own, and what a browser would ask its server."""

    def __init__(self, clone: Clone, data: Path, *arguments: str, gpus: str = "0") -> None:
        self.clone, self.arguments, self.outside = clone, arguments, Outside()
        self.port, self.log = free_port(), data / "serve.log"
        self.environment = {
            **clone.launching(),
            "XDG_DATA_HOME": str(data),
            "PREFECT_SERVER_API_PORT": str(self.port),
            "ERIDIFF_GPUS": gpus,
            **self.outside.environment(),
        }
        self.process: subprocess.Popen[str] | None = None
        lay_database(data)

    def start(self, seconds: float = 120) -> "Served":
        """Start it and wait until the form can be filled in."""
        words = ["eridiff.flow.server", "serve", sys.executable, "-m", "stages.flow", "serve", *self.arguments]
        with self.log.open("w") as log:
            self.process = begin(
                [sys.executable, "-m", *words],
                limit=3600,  # of a whole file of tests
                cwd=self.clone.root,
                env=self.environment,
                stdout=log,
                stderr=log,
            )
        process = self.process
        ready = lambda: "serve: ready" in self.log.read_text() or process.poll() is not None  # noqa: E731
        wait(ready, seconds, lambda: self.log.read_text()[-3000:])
        assert process.poll() is None, self.log.read_text()[-3000:]
        self.deployment = self.ask("POST", "/deployments/filter", {})[0]["id"]
        return self

    def stop(self) -> None:
        """End it as Ctrl-C does."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            assert self.process.wait(60) == 0, self.log.read_text()[-3000:]

    @property
    def secret(self) -> str:
        """What the processes of this user send, and no page."""
        return local_secret(Path(environment(self.environment)["PREFECT_HOME"]))

    def page(self) -> dict[str, str]:
        """What a browser sends of the server's own page."""
        return {"Origin": f"http://127.0.0.1:{self.port}", "Sec-Fetch-Site": "same-origin"}

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One request of the API, from the page."""
        data = None if body is None else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.port}/api{path}"
        headers = {"Content-Type": "application/json", **self.page()}
        request = urllib.request.Request(url, data, headers, method=method)
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    text = answer.read()
                return json.loads(text) if text else None
            except urllib.error.HTTPError as error:
                if error.code != 503:  # SQLite writes for another
                    raise
                time.sleep(0.3)

    def submit(self, state: Any = None, **parameters: Any) -> str:
        """Press the button; the run's number."""
        body = {"parameters": parameters, "state": state or {"type": "SCHEDULED"}}
        return str(self.ask("POST", f"/deployments/{self.deployment}/create_flow_run", body)["id"])

    def run(self, number: str) -> dict[str, Any]:
        """A run as the server has it."""
        record: dict[str, Any] = self.ask("GET", f"/flow_runs/{number}")
        return record

    def ended(self, number: str, seconds: float = 150) -> dict[str, Any]:
        """A run once it has ended."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
        state = lambda: self.run(number)["state"]  # noqa: E731
        wait(lambda: state()["type"] in ends, seconds, lambda: str(state()), pause=ASKING)
        return self.run(number)

    def tasks(self, number: str) -> dict[str, dict[str, Any]]:
        """Stage -> its task."""
        body = {"flow_runs": {"id": {"any_": [number]}}}
        return {record["name"]: record for record in self.ask("POST", "/task_runs/filter", body)}

    def states(self, number: str) -> dict[str, str]:
        """Stage -> the name of its task's state."""
        return {name: record["state"]["name"] for name, record in self.tasks(number).items()}

    def lines(self, number: str) -> list[tuple[datetime, str]]:
        """What the page of a run shows of its log."""
        body = {"logs": {"flow_run_id": {"any_": [number]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return [(moment(line["timestamp"]), line["message"]) for line in self.ask("POST", "/logs/filter", body)]

    def says(self, number: str, words: str, seconds: float = 90) -> datetime:
        """When a run's log says something, once it does."""
        found = lambda: [at for at, line in self.lines(number) if words in line]  # noqa: E731
        wait(found, seconds, lambda: f"{words!r} is not in {self.lines(number)}", pause=ASKING)
        return found()[0]

    def counted_from(self, number: str) -> int:
        """Where the stage that counts began, in a run that has ended."""
        return int(next(line for _, line in self.lines(number) if BEGUN in line).removeprefix(BEGUN))

    def artifacts(self, number: str) -> dict[str, str]:
        """Key -> Markdown of what a run's page shows."""
        records = self.ask("POST", "/artifacts/filter", {"flow_runs": {"id": {"any_": [number]}}})
        return {record["key"]: record["data"] for record in records}

    def taken(self) -> int:
        """How many hold the GPU's slot."""
        limits = self.ask("POST", "/v2/concurrency_limits/filter", {})
        return sum(limit["active_slots"] for limit in limits if limit["name"].startswith("gpu-0"))

    def process_of(self, number: str) -> psutil.Process:
        """The process that runs a run."""
        for process in psutil.process_iter():
            try:
                if process.environ().get("PREFECT__FLOW_RUN_ID") == number and "prefect.engine" in process.cmdline():
                    return process
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        raise AssertionError(f"no process of run {number}")


@contextmanager
def serving(served: Served) -> Iterator[Served]:
    """`make serve` for as long as a block lasts; nothing of it lives on after that."""
    served.log.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield served.start()
    finally:
        served.stop()
    assert living(served.clone.root) == []


def moment(text: str) -> datetime:
    """A moment as the API writes it."""
    return datetime.fromisoformat(re.sub(r"Z$", "+00:00", text))


def wait(ready: Callable[[], Any], seconds: float, what: Callable[[], str], *, pause: float = 0.2) -> float:
    """Wait until something is so, looked at after each pause; the seconds that it took."""
    start = time.monotonic()
    while True:
        try:
            if ready():
                return time.monotonic() - start
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass  # the server starts or ends
        assert time.monotonic() - start < seconds, f"not within {seconds} s: {what()}"
        time.sleep(pause)


def living(root: Path) -> list[str]:
    """Commands of processes, but this one, that stand in a checkout or below it."""
    found = []
    for process in psutil.process_iter():
        try:
            inside = Path(process.cwd()).is_relative_to(root)
            if inside and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def stages_living(root: Path) -> list[str]:
    """Those of them that a stage started."""
    return [command for command in living(root) if "count.py" in command or "sleep 987" in command]


def kept_count(path: Path) -> int:
    """How far the stage that counts came, by what it kept."""
    return int(path.read_text() or 0) if path.exists() else 0


def set_params(clone: Clone, project: str, steps: int) -> None:
    """Edit a project's params.yaml."""
    with (clone.root / "projects" / project / "params.yaml").open("w") as file:
        YAML().dump({"train": {"steps": steps}}, file)
