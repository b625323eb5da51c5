"""The training step beside the diffusers script's, on one device: full-size models with random weights.

    python -m benchmarks.step [--rows flux-b1,sdxl-b1 ...] [--sides script,fast] [--out FOLDER] [--minutes 8]
    python -m benchmarks.step --tiny --device cpu        # that it runs

Sides of a row take turns of a few steps. script: the loop of diffusers' example; plain: eridiff with
`train.deterministic: true`; fast: with false. A row with a smaller card's memory has one side after the other; other
trainers follow alone, since no card holds all sides at once.
"""

import argparse
import json
import math
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.steprow import PEERS, ROWS, SIDES, USEFUL_TERAFLOPS, Row

ROOT = Path(__file__).parent.parent
COLUMNS = ("script ms", "plain ms", "fast ms", "fast p10-p90", "img/s", "GiB script / plain / fast", "MFU")
COLUMNS += ("times the script", "first step cold / warm", "finite")
TURN, TURNS = 4, 3  # steps of a turn, turns of a side
MOST_SECONDS = 14.0  # of a side's timed steps: slow ones get fewer, but 6
LIMIT = 240.0  # seconds for one answer of a side


class LateError(Exception):
    """A side that did not answer in time, or ended."""


class Worker:
    """A process of benchmarks/stepside.py."""

    def __init__(self, row: Row, side: str, arguments: argparse.Namespace, work: Path) -> None:
        self.side, self.found = side, dict[str, Any]()
        self.turns: list[dict[str, Any]] = []
        caches = work / f"{row.name}-{side}"
        self.errors = work / f"{row.name}-{side}.txt"
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
            "TRITON_CACHE_DIR": str(caches / "triton"),
            "HF_HUB_OFFLINE": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        command = [sys.executable, "-m", "benchmarks.stepside", "--row", row.name, "--side", side]
        command += ["--device", arguments.device, "--store", str(caches / "store")]
        command += ["--tiny"] if arguments.tiny else []
        command += ["--checkout", str(arguments.peers[side])] if side in arguments.peers else []
        pipe = subprocess.PIPE
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                command, env=environment, stdin=pipe, stdout=pipe, stderr=errors, text=True, cwd=ROOT
            )
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def ask(self, what: str = "") -> dict[str, Any]:
        """Say a line, and wait for the answer. Raises: LateError."""
        if what and self.process.stdin is not None:
            try:
                self.process.stdin.write(f"{what}\n")
                self.process.stdin.flush()
            except BrokenPipeError:
                pass  # it ended: the next line read says so
        try:
            line = self.lines.get(timeout=LIMIT)
        except queue.Empty:
            raise LateError(f"{self.side}: no answer to '{what}' in {LIMIT:.0f} s") from None
        if line is None:
            raise LateError(f"{self.side}: ended: {self.errors.read_text('utf-8').strip()[-300:]}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LateError(f"{self.side}: {answer['error']}")
        return answer

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def measure(row: Row, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """One row: every side built and warmed up, then turns; a side that fails is a note."""
    found: dict[str, Any] = {"name": row.name, "batch": row.batch, "notes": []}
    sides, peers = (
        [s for s in all_ if not arguments.sides or s in arguments.sides.split(",")]
        for all_ in (row.sides, arguments.peers)
    )
    groups = [[side] for side in sides] if row.gib is not None else [sides]
    groups += [[peer] for peer in peers]
    for group in groups:
        workers = [Worker(row, side, arguments, work) for side in group]
        try:
            measure_together(workers, found)
        finally:
            for worker in workers:
                worker.end()
    if row.is_warmed and found.get("fast"):
        found["fast"]["first warm s"] = first_step(row, arguments, work, found["notes"])
    return found | summary(row, found, arguments.tiny)


def measure_together(workers: Sequence[Worker], found: dict[str, Any]) -> None:
    """Sides that are on the device at once: eridiff's first, since it chooses by the memory that is left."""
    for worker in sorted(workers, key=lambda worker: worker.side == "script"):
        try:
            found["machine"] = worker.ask()
            worker.found |= worker.ask("build")
            worker.found |= worker.ask("warm_up")
        except LateError as error:
            found["notes"].append(str(error))
            worker.end()
    alive = [worker for worker in workers if worker.process.poll() is None]
    steps = {worker.side: round(MOST_SECONDS / max(worker.found["step s"], 1e-4) / TURNS) for worker in alive}
    try:
        for _ in range(TURNS):
            for worker in alive:
                worker.turns.append(worker.ask(f"turn {min(TURN, max(2, steps[worker.side]))}"))
        for worker in alive:
            worker.found |= worker.ask("memory")
        if alive:
            found["TFLOP/s"] = alive[0].ask("rate")["TFLOP/s"]
    except LateError as error:
        found["notes"].append(str(error))
    for worker in alive:
        if worker.turns:
            found[worker.side] = {**worker.found, **figures(worker.turns)}
        found.setdefault("words", {})[worker.side] = words_of(worker.errors)


def words_of(path: Path) -> list[str]:
    """What the stage itself said: its lines begin with its name."""
    return [line for line in path.read_text("utf-8").splitlines() if line.startswith("train:")][:12]


def figures(turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median and spread of all timed steps."""
    seconds = sorted(second for turn in turns for second in turn["seconds"])
    losses = [loss for turn in turns for loss in turn["losses"]]
    tenths = statistics.quantiles(seconds, n=10) if len(seconds) > 1 else seconds * 9
    return {
        "ms": 1000 * statistics.median(seconds),
        "p10 ms": 1000 * tenths[0],
        "p90 ms": 1000 * tenths[8],
        "steps": len(seconds),
        "wall ms": 1000 * sum(turn["wall s"] for turn in turns) / len(seconds),
        "losses": losses,
        "finite": all(map(math.isfinite, losses)),
    }


def first_step(row: Row, arguments: argparse.Namespace, work: Path, notes: list[str]) -> float | None:
    """Seconds to a first step over the caches that the row left."""
    worker = Worker(row, "fast", arguments, work)
    try:
        worker.ask()
        answer = worker.ask("build")
    except LateError as error:
        notes.append(f"warm: {error}")
        return None
    finally:
        worker.end()
    return float(answer["build s"] + answer["first s"])


def summary(row: Row, found: dict[str, Any], tiny: bool) -> dict[str, Any]:
    """What follows from the sides: pictures a second, useful MFU, the ratio."""
    ours = found.get("fast") or found.get("plain")
    if ours is None:
        return {}
    result: dict[str, Any] = {"img/s": 1000 * row.batch / ours["ms"]}
    if not tiny and "TFLOP/s" in found:
        result["MFU"] = USEFUL_TERAFLOPS[row.model] * result["img/s"] / found["TFLOP/s"]
    if "script" in found:
        result["ratio"] = found["script"]["ms"] / ours["ms"]
    if others := [found[side]["ms"] for side in ("script", *PEERS) if side in found]:
        result["fastest ratio"] = min(others) / ours["ms"]
    return result


def cells(found: dict[str, Any]) -> list[str]:
    """The row's cells of the table."""

    def of(side: str, key: str, form: str = "{:.0f}") -> str:
        value = found.get(side, {}).get(key)
        return "" if value is None else form.format(value)

    fast, sides = found.get("fast", {}), ("script", "plain", "fast")
    cold = f"{fast['build s'] + fast['first s']:.0f}" if fast else ""
    memory = " / ".join(of(side, "peak GiB", "{:.1f}") or "-" for side in sides)
    finite = ", ".join(f"{side} no" for side in sides if side in found and not found[side]["finite"]) or "yes"
    return [
        found["name"],
        *(of(side, "ms") for side in sides),
        f"{of('fast', 'p10 ms')}-{of('fast', 'p90 ms')}" if fast else "",
        f"{found['img/s']:.2f}" if "img/s" in found else "",
        memory,
        f"{found['MFU']:.0%}" if "MFU" in found else "",
        f"{found['ratio']:.2f}" if "ratio" in found else "",
        f"{cold} / {of('fast', 'first warm s') or '-'} s" if fast else "",
        finite if any(side in found for side in sides) else "",
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """All rows in Markdown, notes below."""
    peers = [peer for peer in PEERS if any(peer in row for row in rows)]
    extra = [*(f"{peer} ms, GiB" for peer in peers), "times the fastest"] if peers else []
    lines = [f"| {' | '.join(('', *COLUMNS, *extra))} |"]
    lines.append("|---" * (1 + len(COLUMNS) + len(extra)) + "|")
    for row in rows:
        more = [f"{row[peer]['ms']:.0f}, {row[peer]['peak GiB']:.1f}" if peer in row else "" for peer in peers]
        more += [f"{row['fastest ratio']:.2f}" if "fastest ratio" in row else ""] if peers else []
        lines.append(f"| {' | '.join((*cells(row), *more))} |")
    lines += [f"\n{row['name']}: {note}" for row in rows for note in row.get("notes", ())]
    return "\n".join(lines) + "\n"


def write(rows: Sequence[dict[str, Any]], out: Path | None) -> None:
    """The table and the JSON so far."""
    facts: dict[str, str] = next((row["machine"] for row in rows if "machine" in row), {})
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        text = ", ".join(f"{key} {value}" for key, value in facts.items())
        (out / "step.md").write_text(f"{text}\n\n{table(rows)}", "utf-8")
        (out / "step.json").write_text(json.dumps({"machine": facts, "rows": list(rows)}, indent=1) + "\n", "utf-8")


def main() -> None:
    """Measure the rows, the most valuable first, until the minutes are over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--sides", default="", help="of script, plain, fast and the peers; default: the row's own")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--minutes", type=float, default=8.0, help="no row is begun after them")
    for peer in PEERS:
        parser.add_argument(f"--{peer}", type=Path, metavar="FOLDER", help="a checkout: its step is a side of each row")
    parser.add_argument("--tiny", action="store_true", help="the small bases, 64 x 64 pictures")
    arguments = parser.parse_args()
    arguments.peers = {peer: path.resolve() for peer in PEERS if (path := getattr(arguments, peer)) is not None}
    for name, known in ((arguments.rows, ROWS), (arguments.sides, (*SIDES, *PEERS))):
        if unknown := sorted(set(name.split(",")) - {*known, ""}):
            parser.error(f"unknown: {', '.join(unknown)}. Known: {', '.join(known)}")
    rows: list[dict[str, Any]] = []
    deadline = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as work:
        for name in arguments.rows.split(","):
            start = time.monotonic()
            if start > deadline:
                rows.append({"name": name, "notes": ["left out: no time"]})
            else:
                rows.append(measure(ROWS[name], arguments, Path(work)))
                rows[-1]["row s"] = time.monotonic() - start
                print(f"{name}: {rows[-1]['row s']:.0f} s", flush=True)
            write(rows, arguments.out)
    print(table(rows), flush=True)


if __name__ == "__main__":
    main()
