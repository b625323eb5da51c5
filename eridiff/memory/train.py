"""The memory estimate of training: bytes and operations, from the model's shapes, through the code that will run.

Nothing is loaded: the denoiser is made of its pointer's config on torch's meta device (eridiff/memory/trace.py).
Memory is in bytes, operations are multiplications and additions.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from eridiff.core.files import canonical_json, digest_json, write_text
from eridiff.core.json_files import load_json
from eridiff.core.progress import say
from eridiff.family import Family
from eridiff.machine.local import Checkpointing
from eridiff.memory.trace import trace
from eridiff.models.activation_checkpointing import LEVELS, checkpoint_activations, offload_activations
from eridiff.models.quantise import RowScaledLinear
from eridiff.params.model import Quantised
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
FLOAT_BYTES = 4  # of an adapter, its gradient, and each moment of AdamW
MEASURED = {"batch_size", "precision", "quantise", "ema_decay", "lora", "loss", "optimizer", "ddpm", "flow", "guidance"}


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Memory and operations of one unit of a stage's work: a picture, a caption, a step, a picture drawn."""

    weights: int  # bytes that stay
    work: int  # bytes beyond them, at most
    flops: float
    calls: float  # of torch's operators; 0 where they are compiled

    @property
    def memory(self) -> int:
        """Bytes in all."""
        return self.weights + self.work


def train_estimates(
    params: TrainParams, family: Family, source: ModelSource, batch: Batch, levels: Sequence[Checkpointing] = LEVELS
) -> Iterator[tuple[Checkpointing, MemoryEstimate]]:
    """One micro-batch at each level of activation checkpointing, in order; the adapters' moments stay."""
    traceable = params.model_copy(update={"quantise": params.quantise and "int8"})  # the same expanded weights
    facts = {"scaling_factor": 1.0, "shift_factor": 0.0}
    machine = Machine(device=META, activation_checkpointing=levels[0])
    run = prepare_run(traceable, family, source, facts, machine)
    here, draws = batch.to(META), draw(run, batch, 1).map(lambda tensor: tensor.to(META))
    adapters = sum(tensor.numel() for tensor in run.adapters.values())
    moments = 2 * OPTIMIZERS[params.optimizer.name].moment_bytes
    average = FLOAT_BYTES if params.ema_decay is not None else 0
    weights = held(run.denoiser, params.quantise) + adapters * (moments + average)
    for level in levels:
        checkpoint_activations(run.denoiser, level)
        for tensor in run.adapters.values():
            tensor.grad = None

        def work(level: Checkpointing = level) -> None:
            with offload_activations(level, META):
                add_gradients(run, train_step(run, here, draws))

        traced = trace(work)
        yield level, MemoryEstimate(weights=weights, work=traced.peak, flops=traced.flops, calls=traced.calls)


def first_level(
    params: TrainParams, family: Family, source: ModelSource, batch: Batch, memory: int, remembered: Path | None = None
) -> tuple[Checkpointing, MemoryEstimate]:
    """The first level of activation checkpointing with which a micro-batch fits into memory (bytes); else the last.

    remembered: a file of what was counted before for just this, and where what is counted now is kept.
    """
    known = _read(remembered) if remembered else []
    for level in known:
        if level[1].memory <= memory or level[0] == LEVELS[-1]:
            return level
    known = []
    for level in train_estimates(params, family, source, batch):
        known.append(level)
        if level[1].memory <= memory:
            break
    if remembered:
        with suppress(OSError):  # a store that may only be read
            write_text(remembered, canonical_json([[name, vars(estimate)] for name, estimate in known]) + "\n")
    return known[-1]


def _read(path: Path) -> list[tuple[Checkpointing, MemoryEstimate]]:
    """Levels that were counted before; [] where there are none that can be read."""
    try:
        return [(level, MemoryEstimate(**facts)) for level, facts in load_json(path)]
    except (OSError, ValueError, TypeError):
        return []


def held(model: nn.Module, quantise: Quantised | None = None) -> int:
    """Bytes of a model's weights; layers that are traced as int8 count as what they are quantised to."""
    total = 0.0
    for module in model.modules():
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if quantise == "nf4" and isinstance(module, RowScaledLinear):
            total += module.weight.numel() * NF4_BYTES - module.weight.nbytes - module.get_buffer("scale").nbytes
        total += sum(tensor.nbytes for tensor in own)
    return int(total)


def choose_checkpointing(fixed: Checkpointing | None, job: TrainJob, code: str) -> Checkpointing:
    """What local.yaml fixes; else the first level that fits the memory that a GPU has free.

    The store remembers what was counted. code: digest of all code that this depends on.
    """
    params, data, device = job.params, job.data, job.device
    if fixed is not None or device.type != "cuda":
        return fixed or LEVELS[0]
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
    free = torch.cuda.mem_get_info(device)[0]
    level, found = first_level(params, job.family, empty_source([job.pointer]), batch, free - SPARE, remembered)
    needed = f"about {found.memory / GIB:.1f} of {free / GIB:.1f} GiB that {device} has free"
    say(f"train: activation checkpointing '{level}', {needed}")
    return level
