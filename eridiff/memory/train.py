"""The memory estimate of training: bytes and operations, from the model's shapes, through the code that will run.

Nothing is loaded: the denoiser is made of its pointer's config on torch's meta device (eridiff/memory/trace.py).
Memory is in bytes, operations are multiplications and additions.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eridiff.acceleration.adapters import WorkingAdapters
from eridiff.acceleration.levels import Kept, Level, full, in_order
from eridiff.acceleration.swap import swapped_bytes, swapped_places
from eridiff.core.files import canonical_json, digest_json, write_text
from eridiff.core.json_files import load_json
from eridiff.core.progress import say
from eridiff.family import Family
from eridiff.machine.local import Checkpointing
from eridiff.memory.meta_results import MetaResults
from eridiff.memory.trace import Part, Traced, trace
from eridiff.models.precision import DTYPES
from eridiff.models.quantise import RowScaledLinear
from eridiff.params.model import Quantised, QuantisedArithmetic
from eridiff.params.train import OPTIMIZERS, TrainParams
from eridiff.training.data import Batch
from eridiff.training.job import TrainJob
from eridiff.training.run import Machine, prepare_run
from eridiff.training.step import add_gradients, draw, train_step
from eridiff.weights.pointers import ModelSource, empty_source

GIB = 2**30
SPARE = GIB // 2  # of a GPU: workspaces of its libraries, and gaps between what is allocated
CONTEXT = 3 * GIB // 4  # what CUDA and its libraries take of a GPU themselves
META = torch.device("meta")
ESTIMATES = "footprints"  # a folder of the store, under the name that stores have had from the start
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a weight: four bits, an 8-bit scale for 64, a 32-bit one for 256 of those
COMPILED = 0.86  # of the activations that eager blocks keep, compiled ones do: 0.76 to 0.89 on an H200, three families
FLOAT_BYTES = 4  # of an adapter, its gradient, and each moment of AdamW
MEASURED = {"batch_size", "precision", "quantise", "deterministic", "ema_decay", "lora", "loss", "optimizer"}
MEASURED |= {"ddpm", "flow", "guidance"}


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Memory and operations of one unit of a stage's work: a picture, a caption, a step, a picture drawn."""

    weights: int  # bytes that stay
    work: int  # bytes beyond them, at most
    flops: float
    calls: float  # of torch's operators; 0 where they are compiled
    copied: float = 0  # bytes from RAM to the device

    @property
    def memory(self) -> int:
        """Bytes in all."""
        return self.weights + self.work


@dataclass(frozen=True, kw_only=True)
class Block:
    """One of the repeated blocks; in a list, in the order in which they are recomputed."""

    turn: int  # in the forward pass
    kept: int  # bytes until its backward pass
    kept_less: int  # the same, where it is recomputed
    flops: float  # that recomputing it does again
    calls: float


@dataclass(frozen=True, kw_only=True)
class TrainLevels:
    """One micro-batch of training at every level (eridiff/acceleration/levels.py), from two that were traced."""

    none: MemoryEstimate
    full: MemoryEstimate
    blocks: tuple[Block, ...]
    sizes: tuple[int, ...]  # bytes of the blocks' weights, in the denoiser's order

    @property
    def count(self) -> int:
        """How many blocks the denoiser has."""
        return len(self.blocks)

    def at(self, level: Level) -> MemoryEstimate:
        """What a level takes."""
        again = self.blocks[: level.recomputed]
        found = MemoryEstimate(
            weights=self.none.weights - swapped_bytes(self.sizes, level.swapped),
            work=self.full.work if len(again) == self.count else max(self._peak(len(again)), self.full.work),
            flops=self.none.flops + sum(block.flops for block in again),
            calls=self.none.calls + sum(block.calls for block in again),
            copied=2 * sum(self.sizes[place] for place in swapped_places(level.swapped, self.count)),
        )
        inputs = sum(block.kept_less for block in self.blocks) if level.offload else 0
        return replace(found, work=found.work - inputs)

    def _peak(self, again: int) -> int:
        """Bytes at most: in the backward pass, what earlier blocks still keep, and all of the one whose turn it is."""
        before = highest = 0
        for place, block in sorted(enumerate(self.blocks), key=lambda pair: pair[1].turn):
            highest = max(highest, before + block.kept)
            before += block.kept_less if place < again else block.kept
        return self.none.work - sum(block.kept for block in self.blocks) + highest

    def first(self, memory: int, swap: int | None = None) -> Level:
        """The first level that fits into memory (bytes); else the last. swap: as local.yaml says."""
        swapped = min(swap or 0, self.count)
        levels = [Level(recomputed=again, swapped=swapped) for again in range(self.count + 1)]
        if swap is None:
            levels += [replace(levels[-1], swapped=more) for more in range(1, self.count + 1)]
        levels.append(replace(levels[-1], offload=True))
        return next((level for level in levels if self.at(level).memory <= memory), levels[-1])


def train_levels(params: TrainParams, family: Family, source: ModelSource, batch: Batch) -> TrainLevels:
    """One micro-batch at each level, by tracing the step that a GPU takes; the adapters' moments stay."""
    stored = not isinstance(params.quantise, QuantisedArithmetic)  # whose weights are expanded as those of int8 are
    traceable = params.model_copy(update={"quantise": params.quantise and "int8"}) if stored else params
    facts = {"scaling_factor": 1.0, "shift_factor": 0.0}
    run = prepare_run(traceable, family, source, facts, Machine(device=META))
    here, draws = batch.to(META), draw(run, batch, 1).map(lambda tensor: tensor.to(META))
    adapters = sum(tensor.numel() for tensor in run.adapters.values())
    moments = 2 * OPTIMIZERS[params.optimizer.name].moment_bytes
    average = FLOAT_BYTES if params.ema_decay is not None else 0

    if params.deterministic:
        working, masters = None, 0
    else:  # fp32 adapters beside the copies in the denoiser, which in fp32 are they themselves; and their gradients
        working = WorkingAdapters(run.denoiser, run.adapters, DTYPES[params.precision])
        masters = FLOAT_BYTES * (1 if params.precision == "fp32" else 2)

    def work() -> None:
        if working:
            working.add_gradients(train_step(run, here, draws), first=True)
            return
        for tensor in run.adapters.values():
            tensor.grad = None
        add_gradients(run, train_step(run, here, draws))

    resident = held(run.denoiser, params.quantise) + adapters * (moments + average + masters)
    return trace_levels(run.kept, resident, work, params.quantise, compiled=working is not None)


def trace_levels(
    kept: Kept, weights: int, work: Callable[[], Any], quantise: Quantised | None = None, *, compiled: bool = False
) -> TrainLevels:
    """What `work`, a micro-batch of a denoiser on the meta device, takes at each level.

    weights: bytes that stay whatever the level. quantise: to what the denoiser's int8 layers will be quantised.
    compiled: the blocks will be: they hold a share of the activations; recomputed ones keep what attention returns.
    """
    share, known, found = COMPILED if compiled else 1.0, MetaResults(), []
    for level in (Level(), full(len(kept.blocks))):
        kept.set(level)
        found.append(trace(work, kept.blocks, known))
    kept.set(Level())
    none, again = (_estimate(traced, weights, share) for traced in found)
    blocks = _blocks(found[0], found[1], share, compiled=compiled)
    if compiled:
        attention = sum(part.attention for part in found[0].parts)
        flops = none.flops + sum(block.flops for block in blocks)
        again = replace(again, work=again.work + int(share * attention), flops=flops)
    sizes = tuple(held(block, quantise, trained=False) for block in in_order(kept.denoiser, kept.blocks))
    return TrainLevels(none=none, full=again, blocks=blocks, sizes=sizes)


def _blocks(none: Traced, again: Traced, share: float, *, compiled: bool) -> tuple[Block, ...]:
    """Each block by itself; what recomputing runs again adds up to the difference of the two."""
    pairs = list(zip(none.parts, again.parts, strict=True))
    rerun = [part if part.kept > less.kept else Part() for part, less in pairs]  # others get no gradient
    flops = (again.flops - none.flops) / max(1, sum(part.flops for part in rerun))
    calls = (again.calls - none.calls) / max(1, sum(part.calls for part in rerun))
    return tuple(
        Block(
            turn=part.turn,
            kept=int(share * part.kept),
            kept_less=int(share * (less.kept + (run.attention if compiled else 0))),
            flops=flops * run.flops - (run.attention_flops if compiled else 0),
            calls=calls * run.calls,
        )
        for (part, less), run in zip(pairs, rerun, strict=True)
    )


def _estimate(traced: Traced, weights: int, share: float) -> MemoryEstimate:
    return MemoryEstimate(weights=weights, work=int(share * traced.peak), flops=traced.flops, calls=traced.calls)


def remembered_levels(
    params: TrainParams, family: Family, source: ModelSource, batch: Batch, path: Path
) -> TrainLevels:
    """`train_levels`, traced once: `path` is where what was found is kept."""
    with suppress(OSError, ValueError, TypeError, KeyError):  # none, damaged, or of an earlier form
        return _levels(load_json(path))
    levels = train_levels(params, family, source, batch)
    with suppress(OSError):  # a store that may only be read
        write_text(path, canonical_json(asdict(levels)) + "\n")
    return levels


def _levels(facts: Any) -> TrainLevels:
    return TrainLevels(
        none=MemoryEstimate(**facts["none"]),
        full=MemoryEstimate(**facts["full"]),
        blocks=tuple(Block(**block) for block in facts["blocks"]),
        sizes=tuple(facts["sizes"]),
    )


def held(model: nn.Module, quantise: Quantised | None = None, *, trained: bool = True) -> int:
    """Bytes of a model's weights; layers that are traced as int8 count as what they are quantised to.

    trained: also those that are trained.
    """
    total = 0.0
    for module in model.modules():
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if quantise == "nf4" and isinstance(module, RowScaledLinear):
            total += module.weight.numel() * NF4_BYTES - module.weight.nbytes - module.get_buffer("scale").nbytes
        total += sum(tensor.nbytes for tensor in own if trained or not tensor.requires_grad)
    return int(total)


def choose_checkpointing(
    fixed: Checkpointing | None, swap: int | None, job: TrainJob, code: str
) -> Checkpointing | Level:
    """What local.yaml fixes; else the first level that fits the memory that a GPU has free.

    The store remembers what was counted. code: digest of all code that this depends on.
    """
    params, data, device = job.params, job.data, job.device
    if fixed is not None or device.type != "cuda":
        return "none" if fixed is None else fixed
    largest = max(range(len(data.samples)), key=lambda place: math.prod(data.samples[place].bucket))
    batch = data.batch([largest] * params.batch_size, 1, 0)
    identity = {
        "params": params.model_dump(include=MEASURED),
        "base": job.pointer.identity(),
        "bucket": data.samples[largest].bucket,
        "text": {name: tensor.shape for name, tensor in batch.text.items()},
        "torch": torch.__version__,
        "code": code,
    }
    remembered = job.root / ESTIMATES / f"{digest_json(identity)}.json"
    levels = remembered_levels(params, job.family, empty_source([job.pointer]), batch, remembered)
    free = torch.cuda.mem_get_info(device)[0]
    level = levels.first(free - SPARE, swap)
    needed = f"about {levels.at(level).memory / GIB:.1f} of {free / GIB:.1f} GiB that {device} has free"
    say(f"train: activation checkpointing {level.described(levels.count)}, {needed}")
    return level
