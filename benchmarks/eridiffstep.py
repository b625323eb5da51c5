"""eridiff's own training step, as its stage runs it: its loader, its draws, its optimizer, its choice of levers."""

from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.randombase import RandomBase
from eridiff.core.config import validate
from eridiff.models.quantise import Storage
from eridiff.params.train import TrainParams
from eridiff.training import train
from eridiff.training.data import plan_batches
from eridiff.training.optim import make_optimizer
from eridiff.training.train import Machine, Run, prepare_run

STEPS = 100_000  # of the plan: more than are run


def params_of(changes: Mapping[str, Any]) -> TrainParams:
    """train's params, as params.yaml would give them."""
    plain = {"steps": STEPS, "check_base": False, "lora": {"rank": 16, "alpha": 16.0}}
    return validate(TrainParams, {**plain, **changes}, where="benchmark", prefix="train")


def prepare(base: RandomBase, params: TrainParams, device: torch.device, store: Path | None, model: nn.Module) -> Run:
    """`prepare_run` over a denoiser with random weights in place of one from files."""

    def loaded(_: object, __: object, dtype: torch.dtype, storage: Storage | None = None) -> nn.Module:
        return storage.settle_all(model) if storage else model

    with patch.object(train, "load_denoiser", loaded):
        machine = Machine(device=device, fixed=False, store=store)
        return prepare_run(params, base.family, base.source, base.configs["vae"], machine)


def eridiff_step(base: RandomBase, params: TrainParams, device: torch.device, store: Path) -> Callable[[], Tensor]:
    """A function that trains one step and returns its loss. Weights are made before anything is prepared."""
    return eridiff_loop(base, params, device, store, base.denoiser(device))


def eridiff_loop(
    base: RandomBase, params: TrainParams, device: torch.device, store: Path, model: nn.Module
) -> Callable[[], Tensor]:
    """The loop of eridiff/training/train.py, a step a call."""
    run = prepare(base, params, device, store, model)
    optimizer = make_optimizer(params.optimizer, run.adapters.values())
    data = base.training_set(params.seed)
    batches = data.stream(plan_batches(data.samples, params.batch_size, 1000, params.seed), 1, 1)
    steps = count(1)

    def step() -> Tensor:
        losses = train._optimizer_step(run, batches, optimizer, next(steps))
        return torch.tensor(losses["loss"])

    return step
