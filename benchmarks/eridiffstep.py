"""eridiff's own training step, as its stage runs it: its loader, its draws, its optimizer, its choice of levers."""

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.randombase import RandomBase
from eridiff.acceleration.levels import Level
from eridiff.core.config import validate
from eridiff.core.progress import say
from eridiff.memory.train import GIB, SPARE, train_levels
from eridiff.models.quantise import Storage
from eridiff.params.train import TrainParams
from eridiff.training import run as training_run
from eridiff.training.data import TrainingSet, plan_batches
from eridiff.training.prepare import prepare
from eridiff.training.run import Machine, Run, prepare_run
from eridiff.training.step import Reading, examples_of, train_step

STEPS = 100_000  # of the plan: more than are run


def params_of(changes: Mapping[str, Any]) -> TrainParams:
    """train's params, as params.yaml would give them."""
    plain = {"steps": STEPS, "check_base": False, "lora": {"rank": 16, "alpha": 16.0}}
    return validate(TrainParams, {**plain, **changes}, where="benchmark", prefix="train")


def loaded(base: RandomBase, params: TrainParams, machine: Machine, place: torch.device | None = None) -> Run:
    """`prepare_run` over a denoiser with random weights in place of one from files."""

    def load(_: object, __: object, dtype: torch.dtype, storage: Storage | None = None) -> nn.Module:
        assert dtype == base.dtype
        return base.denoiser(machine.device, storage.settle if storage else None, place)

    with patch.object(training_run, "load_denoiser", load):
        return prepare_run(params, base.family, base.source, {"shift_factor": None, **base.configs["vae"]}, machine)


def first_level(base: RandomBase, params: TrainParams, data: TrainingSet, device: torch.device) -> Level:
    """The level of memory that the stage would begin with (eridiff/memory/train.py)."""
    if device.type != "cuda":
        return Level()
    batch = data.batch([0] * params.batch_size, 1, 0)
    levels = train_levels(params, base.family, base.source, batch)
    level = levels.first(torch.cuda.mem_get_info(device)[0] - SPARE)
    say(f"train: {level.described(levels.count)}, {levels.at(level).memory / GIB:.1f} GiB foretold")
    return level


def eridiff_step(
    base: RandomBase, params: TrainParams, device: torch.device, store: Path, place: torch.device | None = None
) -> Callable[[], Tensor]:
    """A function that trains one step and returns its loss: the loop of eridiff/training/train.py, a step a call.

    place: where the base's weights lie when they come from their files, if not on the device.
    """
    data = base.training_set(params.seed)
    level = first_level(base, params, data, device)
    run = loaded(base, params, Machine(device=device, activation_checkpointing=level, fixed=False, store=store), place)
    plan = plan_batches(data.samples, params.batch_size, 1000, params.seed)
    examples, steps = data.stream(plan, 1, 1, examples_of(run)), count(1)
    context = ExitStack()  # kept by the function below: dropped, it would end
    step_once = context.enter_context(prepare(train_step, run, run.make_optimizer(), data))
    waiting: deque[Reading] = deque()

    def step() -> Tensor:
        """The loss of the latest row that the loop would have read: the first one is of this step."""
        waiting.append(step_once([next(examples)], next(steps)))
        loss = waiting[0]()["loss"]
        while len(waiting) > step_once.late:
            loss = waiting.popleft()()["loss"]
        return torch.tensor(loss)

    vars(step)["context"] = context
    return step
