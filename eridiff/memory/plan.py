"""`eridiff plan`: what each stage of a project takes on a GPU, before it runs, and which params would make it fit."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eridiff.acceleration.swap import CHUNK
from eridiff.bases.pointer_files import pointers_of
from eridiff.bases.wanted import has_pointers
from eridiff.caching.text import distinct_texts
from eridiff.check import SECTIONS, load_all
from eridiff.core.config import Section, read_yaml, validate
from eridiff.core.errors import ConfigError
from eridiff.core.files import read_text, write_text
from eridiff.family import load_family, published
from eridiff.formats.tables import TableRows, read_table
from eridiff.memory.stages import latents_estimate, made_up_batch, sample_estimate, text_estimate
from eridiff.memory.trace import trace
from eridiff.memory.train import CONTEXT, GIB, SPARE, MemoryEstimate, train_levels
from eridiff.models.precision import DTYPES
from eridiff.params.edit import filled
from eridiff.params.trigger import PLACE
from eridiff.weights.components import described
from eridiff.weights.pointers import PARTS, ModelSource, Pointer, empty_source

STAGES = ("latents", "text", "train", "sample")  # those that need a GPU
Params = dict[str, Any]  # section -> its keys
Changes = dict[str, dict[str, Any]]  # section -> key -> value

# Share of the rate of one large matrix product that a stage reaches once it runs, on an H100 (docs/benchmarks.md).
EFFICIENCY = {"latents": 0.45, "text": 0.5, "train": 0.28, "sample": 0.4}
PRODUCT = 4096  # side of that product
HOST = 1.4  # times what a call takes in the small layers where it is measured: measured there too


@dataclass(frozen=True, kw_only=True)
class Card:
    """The GPU that is planned for."""

    name: str
    memory: int  # bytes
    is_here: bool

    def fits(self, found: MemoryEstimate) -> bool:
        """Whether a stage fits, with what CUDA itself takes."""
        return found.memory + CONTEXT + SPARE <= self.memory


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One stage: what it takes as the params are, and after the changes that make it fit."""

    stage: str
    found: MemoryEstimate
    fits: bool
    units: int | None  # of work in all; None: not known before the stages before it ran
    unit: str
    note: str  # what is chosen when the stage starts
    changes: Changes  # that make it fit; none where it does, or where nothing would
    changed: MemoryEstimate | None
    seconds: float | None  # of all units; None: not known


class Planner:
    """Estimates for one project: its params, its base's shapes, its pictures where they are known."""

    def __init__(self, folder: Path, card: Card) -> None:
        self.folder, self.card = folder, card
        self.params: Params = dict(read_yaml(folder / "params.yaml"))
        sections = load_all(folder / "params.yaml")
        model = sections["model"]
        self.family = load_family(model.family)
        self.source: ModelSource = empty_source(planned_pointers(model.base, model.family))
        buckets = sections["buckets"]
        self.size, self.pictures = self._pictures(max(buckets.resolution, *buckets.more_resolutions, 0))

    def _pictures(self, side: int) -> tuple[tuple[int, int], int | None]:
        """The largest bucket and the number of pictures; before buckets ran, a square of the resolution."""
        table = self.folder / "data" / "buckets" / "buckets.parquet"
        if not table.exists():
            return (side, side), None
        rows = read_table(table)[0]
        return max(((row["bucket_w"], row["bucket_h"]) for row in rows), key=math.prod), len(rows)

    def estimates(self) -> Iterator[Estimate]:
        """Every stage, in order."""
        for stage in STAGES:
            yield self.estimate(stage)

    def estimate(self, stage: str) -> Estimate:
        """One stage, and the first of the ways by which it would fit."""
        found, note = self.unit_estimate(stage, self.params)
        changes, changed = ({}, None) if self.card.fits(found) else self._first_way(stage)
        units, unit = self.units(stage)
        return Estimate(
            stage=stage,
            found=found,
            fits=self.card.fits(found),
            units=units,
            unit=unit,
            note=note,
            changes=changes,
            changed=changed,
            seconds=self._seconds(stage, changed or found, units),
        )

    def _first_way(self, stage: str) -> tuple[Changes, MemoryEstimate | None]:
        for changes in ways(stage, self.params):
            found, _ = self.unit_estimate(stage, with_changes(self.params, changes))
            if self.card.fits(found):
                return changes, found
        return {}, None

    def section(self, name: str, params: Params) -> Any:
        """A section of some params, validated."""
        model: type[Section] = SECTIONS[name]
        return validate(model, params[name], where="params.yaml", prefix=name)

    def unit_estimate(self, stage: str, params: Params) -> tuple[MemoryEstimate, str]:
        """The estimate for one unit of a stage's work, and what would be chosen when the stage starts."""
        own = self.section(stage, params)
        if stage == "latents":
            return latents_estimate(own, self.family, self.source, self.size), ""
        encoding = self.section("text", params)
        if stage == "sample":  # encodes its prompts itself, one by one
            same = {"dtype": own.precision, "batch_size": 1, "max_tokens": own.max_tokens}
            encoding = encoding.model_copy(update=same)
        text, shapes = text_estimate(encoding, self.family, self.source)
        if stage == "text":
            return text, ""
        if stage == "sample":
            drawing = sample_estimate(own, self.family, self.source, shapes)
            busy = replace(text, flops=drawing.flops, calls=drawing.calls)
            return max(drawing, busy, key=lambda phase: phase.memory), ""
        vae = self.source.config("vae")
        batch = made_up_batch(own.batch_size, self.family, vae, shapes, self.size)
        levels = train_levels(own, self.family, self.source, batch)
        level = levels.first(self.card.memory - CONTEXT - SPARE)
        return levels.at(level), f"activation checkpointing: {level.described(levels.count)}"

    def units(self, stage: str) -> tuple[int | None, str]:
        """How much work a stage has in all, at most: nothing of it is in the store."""
        own = self.section(stage, self.params)
        if stage == "train":
            return own.steps * own.accumulation, "micro-batches"
        if stage == "sample":
            drawn = sum(2 if own.measures and PLACE in prompt.prompt else 1 for prompt in own.prompts)
            return drawn * len(own.seeds) * (1 + len(own.checkpoints) * len(own.strengths)), "pictures"
        if stage == "latents":
            return None if self.pictures is None else self.pictures * own.per_picture, "pictures"
        table = self.folder / "data" / "captions" / "captions.parquet"
        if not table.exists():
            return None, "captions"
        return len(distinct_texts(TableRows(table, ["variants"]))), "captions"

    def _seconds(self, stage: str, found: MemoryEstimate, units: int | None) -> float | None:
        if units is None or not self.card.is_here:
            return None
        own = self.section(stage, self.params)
        dtype = DTYPES[getattr(own, "precision", None) or own.dtype]
        copying = found.copied / copy_rate() if found.copied else 0
        return units * max(copying, seconds_of(found, EFFICIENCY[stage] * product_rate(dtype), seconds_of_a_call()))


def planned_pointers(base: str, family: str) -> list[Pointer]:
    """Pointers of a base; of a published one that is not here yet, what its makers published of its shapes."""
    configs = {} if has_pointers(base) else published(family).models.get(base, {})
    if not configs:
        return list(pointers_of(base, PARTS, family).values())
    return [
        Pointer(
            base=base, family=family, part=part, components={c: described(c, configs.get(c, {}), {}, "") for c in names}
        )
        for part, names in load_family(family).PARTS.items()
    ]


def ways(stage: str, params: Params) -> Iterator[Changes]:
    """Changes that take less memory, those first that change results least; each with all before it."""
    section, changes = params[stage], {}

    def also(**more: Any) -> Changes:
        changes.update(more)
        return {stage: dict(changes)}

    if stage in ("latents", "text") and section.get("batch_size", 2) > 1:
        yield also(batch_size=1)
    if stage == "latents" and section.get("tile") is None:
        yield also(tile=512)
    if stage == "text" and section.get("dtype", "fp32") == "fp32":
        yield also(dtype="bf16")
    batch = section.get("batch_size", 1)
    if stage == "train" and batch > 1:
        yield also(batch_size=1, accumulation=section.get("accumulation", 1) * batch)
    if stage in ("train", "sample"):
        if section.get("precision", "bf16") == "fp32":
            yield also(precision="bf16")
        for kind in ("fp8", "nf4"):
            if section.get("quantise") not in (kind, "nf4"):
                yield also(quantise=kind)


def with_changes(params: Params, changes: Changes) -> Params:
    """Params with some keys changed."""
    return {name: {**section, **changes.get(name, {})} for name, section in params.items()}


def write_changes(folder: Path, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Put changes into params.yaml, its comments kept."""
    path = folder / "params.yaml"
    write_text(path, filled(read_text(path), changes))


def find_card(gigabytes: float | None) -> Card | None:
    """The GPU of this machine; or one of a size that is only planned for. None where there is neither."""
    here = torch.cuda.is_available()
    if gigabytes is not None:
        return Card(name="a card", memory=int(gigabytes * GIB), is_here=False)
    if not here:
        return None
    properties = torch.cuda.get_device_properties(0)
    return Card(name=properties.name, memory=properties.total_memory, is_here=True)


def seconds_of(found: MemoryEstimate, rate: float, call: float) -> float:
    """Seconds of one unit of work: of the GPU at a rate (operations a second), or of the host that calls it.

    The host calls ahead of the GPU, so the slower of the two decides. call: seconds of one operator.
    """
    return max(found.flops / rate, HOST * found.calls * call)


@cache
def seconds_of_a_call() -> float:
    """How long this machine takes to call one of torch's operators: in small layers, forward and backward."""
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU()) for _ in range(50)))

    def work(device: str) -> None:
        layers(torch.zeros(8, 8, device=device)).sum().backward()

    layers.to("cuda")
    for _ in range(2):
        work("cuda")
    torch.cuda.synchronize()
    start = time.monotonic()
    for _ in range(5):
        work("cuda")
    torch.cuda.synchronize()
    seconds = (time.monotonic() - start) / 5
    layers.to("meta")
    return seconds / trace(lambda: work("meta")).calls


@cache
def product_rate(dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product on the GPU of this machine."""
    a, b = (torch.randn(PRODUCT, PRODUCT, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * PRODUCT**3 / _gpu_seconds(lambda: a @ b)


@cache
def copy_rate() -> float:
    """Bytes a second from pinned RAM to the GPU of this machine."""
    host = torch.empty(CHUNK, dtype=torch.uint8, pin_memory=True)
    device = torch.empty_like(host, device="cuda")
    return CHUNK / _gpu_seconds(lambda: device.copy_(host, non_blocking=True))


def _gpu_seconds(work: Callable[[], Any]) -> float:
    """Seconds that the GPU takes for work, once warm."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    for _ in range(3):
        work()
    start.record()
    for _ in range(5):
        work()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000 / 5


def render(estimate: Estimate) -> Iterator[str]:
    """A stage's line, and what to do where it does not fit."""
    found = estimate.found
    sizes = (found.weights, found.work, found.memory + CONTEXT)
    words = ["fits" if estimate.fits else "DOES NOT FIT", estimate.note, _how_long(estimate)]
    numbers = "".join(f"{size / GIB:8.1f}" for size in sizes)
    yield f"{estimate.stage:9}{numbers} GiB  {', '.join(word for word in words if word)}"
    if estimate.changed is not None:
        leaves = [f"{estimate.stage}.{key}: {value}" for key, value in estimate.changes[estimate.stage].items()]
        yield f"{'':9}with {', '.join(leaves)}: {(estimate.changed.memory + CONTEXT) / GIB:.1f} GiB"
    elif not estimate.fits:
        yield f"{'':9}none of the ways fits: take a lower buckets.resolution or sample.size, or a larger card"


def _how_long(estimate: Estimate) -> str:
    if estimate.units is None:
        return f"how many {estimate.unit}: known once `dvc repro buckets` has run"
    known = "" if estimate.seconds is None else f", about {timedelta(seconds=round(estimate.seconds))}"
    return f"{estimate.units} {estimate.unit}{known}"


def plan_project(folder: Path, memory: float | None, *, write: bool) -> Iterator[str]:
    """Lines for a project; with write, params.yaml is changed as they say.

    Raises: ConfigError where there is no GPU and no memory (GiB) to plan for.
    """
    card = find_card(memory)
    if card is None:
        raise ConfigError("this machine has no CUDA device to plan for: name a card's memory, as in `--memory 24`.")
    yield f"{card.name}: {card.memory / GIB:.1f} GiB, of which CUDA takes about {CONTEXT / GIB:.1f} itself"
    yield f"{'':9}{'model':>8}{'work':>8}{'in all':>8}"
    changes: Changes = {}
    for estimate in Planner(folder, card).estimates():
        yield from render(estimate)
        changes |= estimate.changes
    if changes and write:
        write_changes(folder, changes)
        yield f"written: {folder / 'params.yaml'}"
    elif changes:
        yield "`eridiff plan --write` puts these changes into params.yaml"
