"""A training as it stands in memory: the denoiser with its adapters, the objective, and what this machine adds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eridiff.acceleration.levels import Kept, Level, level_of, next_level
from eridiff.family import Family
from eridiff.machine.local import Checkpointing
from eridiff.models.load import load_denoiser
from eridiff.models.lora import add_adapter, target_modules
from eridiff.models.precision import DTYPES, avoid_cudnn_attention, fix_threads, use_deterministic_kernels
from eridiff.models.quantise import storage_of
from eridiff.params.train import DdpmParams, FlowParams, TrainParams, refuse_other_objective
from eridiff.training.objectives import Ddpm, Flow, Objective
from eridiff.training.optim import make_optimizer
from eridiff.weights.pointers import ModelSource


@dataclass(kw_only=True)
class Run:
    """All that a step needs."""

    params: TrainParams
    family: Family
    objective: Objective
    denoiser: nn.Module
    adapters: dict[str, Tensor]  # fp32, trainable
    scaling_factor: float
    shift_factor: float
    device: torch.device
    kept: Kept
    fixed: bool  # by local.yaml; otherwise the next level is used when memory runs out
    store: Path | None = None  # the store's folder, which remembers what was checked on this machine
    levers: str = "plain"  # what the step is made of, in words: fast ones change it
    loss_scale: float = 1.0  # other than 1 in fp16 alone (eridiff/training/loss_scale.py)

    @property
    def is_fast(self) -> bool:
        """Whether levers that differ by rounding are taken: their checks need the store (eridiff/acceleration)."""
        return self.device.type == "cuda" and not self.params.deterministic and self.store is not None

    @property
    def can_keep_less(self) -> bool:
        """Whether a level is left that keeps less on the device."""
        return not self.fixed and next_level(self.kept.level, len(self.kept.blocks)) is not None

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the params over the adapters."""
        return make_optimizer(self.params.optimizer, self.adapters.values(), self.device if self.is_fast else None)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a training has on this machine: none of it changes a byte of the result beyond rounding.

    activation_checkpointing: as local.yaml says, with `swap` beside it, or the level that was chosen. fixed: whether it
    stays where memory runs out. store: the store's folder, where a quantised base is kept.
    """

    device: torch.device
    activation_checkpointing: Checkpointing | Level = "none"
    swap: int = 0
    fixed: bool = True
    store: Path | None = None

    def level(self, count: int) -> Level:
        """What of so many blocks is kept on the device."""
        asked = self.activation_checkpointing
        return asked if isinstance(asked, Level) else level_of(asked, self.swap, count)


def make_objective(family: Family, scheduler: Mapping[str, Any], params: TrainParams) -> Objective:
    """The family's objective over the base's noise schedule."""
    refuse_other_objective(family, params)
    if family.OBJECTIVE == "ddpm":
        return Ddpm(scheduler, params.ddpm or DdpmParams())
    return Flow(scheduler, params.flow or FlowParams())


def prepare_run(
    params: TrainParams, family: Family, source: ModelSource, latent_facts: Mapping[str, Any], machine: Machine
) -> Run:
    """Load the denoiser, add the adapters, move both to the device.

    latent_facts: the VAE's scaling_factor and shift_factor, as the latents' index says.
    """
    device = machine.device
    fix_threads(device)
    use_deterministic_kernels(params.deterministic)
    avoid_cudnn_attention()
    objective = make_objective(family, source.config("scheduler"), params).to(device)
    loaded_on = torch.device("cpu") if machine.level(1).swapped else device  # the base as a whole need not fit
    storage = storage_of(params.quantise, loaded_on, machine.store)
    denoiser = load_denoiser(family, source, DTYPES[params.precision], storage)
    unused = family.unused_modules(source.config(family.DENOISER))
    modules = target_modules(denoiser, family.TARGET_SETS, params.lora.targets, unused)
    adapters = add_adapter(denoiser, params.lora, modules, params.seed)
    kept = Kept(denoiser, family.BLOCKS, device)
    kept.set(machine.level(len(kept.blocks)))
    denoiser.to(device)
    return Run(
        params=params,
        family=family,
        objective=objective,
        denoiser=denoiser,
        adapters=adapters,
        scaling_factor=float(latent_facts["scaling_factor"]),
        shift_factor=float(latent_facts["shift_factor"] or 0.0),
        device=device,
        kept=kept,
        fixed=machine.fixed,
        store=machine.store,
    )
