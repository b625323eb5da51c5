"""The training loop: steps, the table of losses, checkpoints and states."""

import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from eridiff.core.errors import TrainError
from eridiff.core.progress import say
from eridiff.core.stopping import Asked, Stopped, never
from eridiff.params.train import TrainParams, kept_steps
from eridiff.training.data import TrainingSet, plan_batches
from eridiff.training.loss_scale import next_scale
from eridiff.training.optim import MovingAverage
from eridiff.training.prepare import prepare
from eridiff.training.resume import load_adapters, load_state, save_adapters, save_state
from eridiff.training.run import Run
from eridiff.training.step import Reading, examples_of, train_step
from eridiff.weights.nonfinite import blame, first_weight

Table = dict[str, list[float]]  # column -> value of each step, from step 1
Preview = Callable[[int], None]


def train(
    run: Run, data: TrainingSet, state: Path, state_every: int, preview: Preview | None = None, asked: Asked = never
) -> tuple[Table, float]:
    """Train to the last step, from the state if there is one; checkpoints are left in the state's folder.

    asked: which signal asks for the end. Returns the table of losses and the seconds that the steps took.
    Raises: TrainError where the loss is no longer finite; Stopped where a signal asked for it, the state saved.
    """
    params = run.params
    optimizer = run.make_optimizer()
    average = MovingAverage(run.adapters, params.ema_decay) if params.ema_decay is not None else None
    groups: dict[str, dict[str, Tensor]] = {"adapters": run.adapters}
    if average is not None:
        groups["average"] = average.tensors
    done, table = _resume(state, params, groups, optimizer)
    plan = plan_batches(data.samples, params.batch_size, params.steps * params.accumulation, params.seed)
    examples = data.stream(plan, params.accumulation, done + 1, examples_of(run))
    rows = _Rows(run, table, _Meter(done, params.steps))
    with prepare(train_step, run, optimizer, data) as step_once:
        for step in range(done + 1, params.steps + 1):
            if params.precision == "fp16":
                run.loss_scale = next_scale(table.get("loss_scale", []))
            rows.add(step, step_once([next(examples) for _ in range(params.accumulation)], step))
            if average is not None:
                average.update(run.adapters)
            signum, is_saved = asked(), step % params.save_every == 0 or step == params.steps
            is_kept = signum or is_saved or step % state_every == 0
            rows.read(0 if is_kept else step_once.late)
            if is_saved:
                save_adapters(state, step, groups)
            if is_kept:
                save_state(state, step, groups, optimizer, table)
            if signum:
                raise Stopped(signum, f"stopped after step {step} of {params.steps}: dvc repro goes on from there")
            if preview is not None:
                preview(step)
    return table, time.monotonic() - rows.meter.start


def _resume(
    state: Path, params: TrainParams, groups: dict[str, dict[str, Tensor]], optimizer: torch.optim.Optimizer
) -> tuple[int, Table]:
    """Take up the state, unless it is past the last step asked for: then begin again.

    Raises: TrainError where a checkpoint that will be put out is gone or damaged, and is not the state's own.
    """
    fresh = {group: {name: t.detach().clone() for name, t in named.items()} for group, named in groups.items()}
    empty, steps = optimizer.state_dict(), params.steps
    done, table = load_state(state, groups, optimizer)
    if done > steps:
        say(f"train: the kept state is at step {done}, past the {steps} asked for: starting again")
        for group, named in groups.items():
            for name, tensor in named.items():
                tensor.data.copy_(fresh[group][name])
        optimizer.load_state_dict(empty)
        return 0, {}
    if done:
        say(f"train: resuming after step {done} of {steps}")
    for step in (step for step in kept_steps(params) if step <= done):
        if step == done:
            save_adapters(state, step, groups)  # the same bytes, whatever lies there
        for group in groups:
            load_adapters(state, group, step)
    return done, table


class _Rows:
    """Rows of the table of losses, read when they are needed: reading one waits for the device."""

    def __init__(self, run: Run, table: Table, meter: "_Meter") -> None:
        self.run, self.table, self.meter = run, table, meter
        self._waiting: deque[tuple[int, Reading]] = deque()

    def add(self, step: int, reading: Reading) -> None:
        """A step's row, not read yet."""
        self._waiting.append((step, reading))

    def read(self, late: int) -> None:
        """Read all but the last `late` rows. Raises: TrainError where a number is not finite."""
        while len(self._waiting) > late:
            step, reading = self._waiting.popleft()
            row = reading()
            for name, value in row.items():
                self.table.setdefault(name, []).append(value)
            _refuse_nonfinite(self.run, row, step)
            self.meter.show(step, row["loss"])


def _refuse_nonfinite(run: Run, row: dict[str, float], step: int) -> None:
    """Raises: TrainError where a step's loss or gradients are not finite, with what may be the cause."""
    if all(math.isfinite(value) for value in row.values()):
        return
    raise TrainError(
        f"step {step}: the loss is {row['loss']} and the gradients' norm {row['grad_norm']}. Nothing of "
        f"this step is kept. {_why_nonfinite(run, step)}"
    )


def _why_nonfinite(run: Run, step: int) -> str:
    """Weights first, since no setting helps there; at the first step adapters add nothing: the rate is no cause."""
    precision, rate = run.params.precision, run.params.optimizer.lr
    if first_weight(run.denoiser, but=".lora_"):
        return blame({run.family.DENOISER: run.denoiser}, "train.precision", precision, but=".lora_")
    ways = [] if step == 1 else [f"a lower train.optimizer.lr (it is {rate:g})"]
    if precision != "fp32":
        ways.append("train.precision bf16 or fp32" if precision == "fp16" else "train.precision fp32")
    cause = "The base's weights are finite. "
    if not ways:
        return f"{cause}Nothing is trained yet and train.precision is fp32: this base does not bear these pictures."
    return f"{cause}Try {', or '.join(ways)}."


class _Meter:
    """Loss, rate and time left, in a line every few seconds."""

    def __init__(self, done: int, steps: int) -> None:
        self.first, self.steps = done, steps
        self.start = self.last = time.monotonic()
        self.average: float | None = None

    def show(self, step: int, loss: float) -> None:
        self.average = loss if self.average is None else 0.95 * self.average + 0.05 * loss
        now = time.monotonic()
        if now - self.last < 5 and step < self.steps:
            return
        rate = (step - self.first) / (now - self.start)
        left = (self.steps - step) / rate
        say(f"train: step {step}/{self.steps}, loss {self.average:.4f}, {rate:.2f} steps/s, {left:.0f} s left")
        self.last = now
