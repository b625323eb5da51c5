"""The rows of a benchmark: each measured on its own, so that one that fails or comes too late takes none with it."""

import gc
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

Row = dict[str, float | str]


@dataclass
class Bench:
    """Where and how large; the rows so far."""

    folder: Path
    device: torch.device
    tiny: bool
    pictures: int
    prompts: int
    deadline: float  # of time.monotonic()
    rows: list[tuple[str, Row]] = field(default_factory=list)

    @property
    def side(self) -> int:
        """Side of the crops in pixels."""
        return 64 if self.tiny else 1024

    def row(self, name: str, measure: Callable[[Row], None]) -> None:
        """Measure one row; whatever fails is written into the table, since the others still count."""
        found: Row = {}
        self.rows.append((name, found))
        if time.monotonic() > self.deadline:
            found["note"] = "left out: no time"
            return
        start = time.monotonic()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            measure(found)
        except Exception as error:
            found["note"] = f"{type(error).__name__}: {error}".replace("\n", " ").replace("|", "/")[:300]
        if self.device.type == "cuda":
            found["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
        torch._dynamo.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        found["row s"] = time.monotonic() - start
        print(f"{name}: {', '.join(f'{key} {show(value)}' for key, value in found.items())}", flush=True)

    def table(self, columns: Sequence[str]) -> str:
        """All rows in Markdown."""
        lines = [f"| {' | '.join(('', *columns))} |", f"|{'---|' * (len(columns) + 1)}"]
        lines += [f"| {' | '.join((name, *(show(row.get(c, '')) for c in columns)))} |" for name, row in self.rows]
        return "\n".join(lines + [f"\n{name}: {row['note']}" for name, row in self.rows if "note" in row])

    def write(self, name: str, columns: Sequence[str], out: Path | None) -> None:
        """Print the table; with `out`, write NAME.md and NAME.json into it."""
        facts = machine(self)
        text = f"{', '.join(f'{key} {value}' for key, value in facts.items())}\n\n{self.table(columns)}\n"
        print(f"\n{text}", flush=True)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / f"{name}.md").write_text(text, "utf-8")
            rows = [{"name": row_name, **row} for row_name, row in self.rows]
            (out / f"{name}.json").write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n", "utf-8")


def show(value: float | str) -> str:
    """A cell: three figures."""
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def machine(bench: Bench) -> dict[str, str]:
    """What the figures hold for."""
    name = torch.cuda.get_device_name() if bench.device.type == "cuda" else platform.processor() or "CPU"
    cores = str(len(os.sched_getaffinity(0)))
    return {"device": name, "torch": torch.__version__, "cores": cores, "folder": str(bench.folder)}


@contextmanager
def rate(bench: Bench, count: int, found: Row, column: str) -> Iterator[None]:
    """Write things a second into a column, the device's work included."""
    start = time.monotonic()
    yield
    synchronize(bench)
    found[column] = count / (time.monotonic() - start)


def synchronize(bench: Bench) -> None:
    """Wait for the device."""
    if bench.device.type == "cuda":
        torch.cuda.synchronize()


def fresh(bench: Bench, name: str) -> Path:
    """An empty folder."""
    folder = bench.folder / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
