"""Training: the step in plain sight, and the loop around it.

Legend: B batch, C H W channels and sides of latents. Every draw is a function of (seed, step, index).
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eridiff.acceleration.levels import Kept, Level, level_of, next_level
from eridiff.core.errors import TrainError
from eridiff.core.noise import normal, uniform
from eridiff.core.progress import say
from eridiff.core.stopping import Asked, Stopped, never
from eridiff.family import Family
from eridiff.machine.local import Checkpointing
from eridiff.models.load import load_denoiser
from eridiff.models.lora import add_adapter, target_modules
from eridiff.models.precision import DTYPES, avoid_cudnn_attention, fix_threads, use_deterministic_kernels
from eridiff.models.quantise import Storage
from eridiff.params.train import DdpmParams, FlowParams, TrainParams, kept_steps, refuse_other_objective
from eridiff.training.data import Batch, TrainingSet, plan_batches
from eridiff.training.loss_scale import next_scale, unscale
from eridiff.training.objectives import Ddpm, Flow, Objective, elementwise_loss
from eridiff.training.optim import MovingAverage, learning_rate, make_optimizer
from eridiff.training.resume import load_adapters, load_state, save_adapters, save_state
from eridiff.weights.nonfinite import blame, first_weight
from eridiff.weights.pointers import ModelSource


@dataclass(kw_only=True)
class Run:
    """All that a step needs."""

    params: TrainParams
    family: Family
    objective: Objective
    denoiser: nn.Module
    adapters: dict[str, Tensor]
    scaling_factor: float
    shift_factor: float
    device: torch.device
    kept: Kept
    fixed: bool  # by local.yaml; otherwise the next level is used when memory runs out
    loss_scale: float = 1.0  # other than 1 in fp16 alone (eridiff/training/loss_scale.py)


def train_step(run: Run, batch: Batch, step: int) -> Tensor:
    """Draw, mix, predict, compare: one micro-batch. Adds to the adapters' scaled gradients; returns the loss, fp32.

    The loss is the mean over C, H, W, then weighted, then the mean over the batch and the micro-batches.
    """
    params, shape = run.params, batch.mean.shape[1:]

    def draw(purpose: str, *shape: int) -> Tensor:
        return normal(params.seed, step, batch.indices, shape, purpose).to(run.device)

    raw = batch.mean.float() + batch.std.float() * draw("posterior", *shape)
    latents = (raw - run.shift_factor) * run.scaling_factor  # raw latents => training space

    num_tokens = shape[1] * shape[2] // run.family.PATCH**2
    level = run.objective.draw_level(uniform(params.seed, step, batch.indices, "level"), num_tokens).to(run.device)
    offset, perturbation = draw("offset", shape[0], 1, 1), draw("perturbation", *shape)
    mixed = run.objective.mix(latents, draw("noise", *shape), level, offset, perturbation)

    dtype = DTYPES[params.precision]
    text = {name: tensor.to(dtype) for name, tensor in batch.text.items()}
    guidance = 1.0 if params.guidance is None else params.guidance
    model_pred = run.family.predict(run.denoiser, mixed.noisy_latents.to(dtype), level, text, batch.sizes, guidance)

    loss_BCHW = elementwise_loss(params.loss, params.huber_delta, model_pred, mixed.target)
    loss = (loss_BCHW.mean(dim=(1, 2, 3)) * mixed.loss_weight).mean() / params.accumulation
    (loss * run.loss_scale).backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def make_objective(family: Family, scheduler: Mapping[str, Any], params: TrainParams) -> Objective:
    """The family's objective over the base's noise schedule."""
    refuse_other_objective(family, params)
    if family.OBJECTIVE == "ddpm":
        return Ddpm(scheduler, params.ddpm or DdpmParams())
    return Flow(scheduler, params.flow or FlowParams())


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
    objective = make_objective(family, source.config("scheduler"), params)
    loaded_on = torch.device("cpu") if machine.level(1).swapped else device  # the base as a whole need not fit
    storage = Storage(kind=params.quantise, device=loaded_on, store=machine.store)
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
    )


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
    optimizer = make_optimizer(params.optimizer, run.adapters.values())
    average = MovingAverage(run.adapters, params.ema_decay) if params.ema_decay is not None else None
    groups: dict[str, dict[str, Tensor]] = {"adapters": run.adapters}
    if average is not None:
        groups["average"] = average.tensors
    done, table = _resume(state, params, groups, optimizer)
    plan = plan_batches(data.samples, params.batch_size, params.steps * params.accumulation, params.seed)
    batches = data.stream(plan, params.accumulation, done + 1)
    meter = _Meter(done, params.steps)
    for step in range(done + 1, params.steps + 1):
        if params.precision == "fp16":
            run.loss_scale = next_scale(table.get("loss_scale", []))
        losses = _optimizer_step(run, batches, optimizer, step)
        if average is not None:
            average.update(run.adapters)
        for name, value in losses.items():
            table.setdefault(name, []).append(value)
        _refuse_nonfinite(run, losses, step)
        if step % params.save_every == 0 or step == params.steps:
            save_adapters(state, step, groups)
        signum = asked()
        if signum or step % state_every == 0 or step % params.save_every == 0 or step == params.steps:
            save_state(state, step, groups, optimizer, table)
        if signum:
            raise Stopped(signum, f"stopped after step {step} of {params.steps}: dvc repro goes on from there")
        if preview is not None:
            preview(step)
        meter.show(step, losses["loss"])
    return table, time.monotonic() - meter.start


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


def _optimizer_step(
    run: Run, batches: Iterator[Batch], optimizer: torch.optim.Optimizer, step: int
) -> dict[str, float]:
    """All micro-batches of one step and the optimizer's move; returns the step's row of the loss table."""
    params = run.params
    taken = [next(batches) for _ in range(params.accumulation)]
    while (loss := _accumulate(run, taken, step)) is None or not _unscaled(run, loss):
        optimizer.zero_grad(set_to_none=True)  # what came of the step before memory, or the range of fp16, ran out
        if loss is None:
            _checkpoint_more(run, step)
        else:
            _halve_scale(run, step)
    norm = nn.utils.clip_grad_norm_(list(run.adapters.values()), params.optimizer.max_grad_norm)
    rate = learning_rate(params.optimizer, step, params.steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    scale = {"loss_scale": run.loss_scale} if params.precision == "fp16" else {}
    return {"loss": loss.item(), "grad_norm": norm.item(), "lr": rate, **scale}


def _accumulate(run: Run, batches: list[Batch], step: int) -> Tensor | None:
    """Add a step's gradients up; its loss, or None where memory ran out and a next level of checkpointing is left."""
    loss = torch.zeros((), device=run.device)
    try:
        for batch in batches:
            with run.kept.step():
                loss += train_step(run, batch.to(run.device), step)
    except torch.OutOfMemoryError as error:
        if not run.fixed and next_level(run.kept.level, len(run.kept.blocks)):
            return None
        raise TrainError(
            f"step {step}: {run.device} has too little memory ({str(error).splitlines()[0]}). Nothing of this step is "
            "kept. Ways out: no `activation_checkpointing` in local.yaml, or `offload`; in params.yaml a smaller "
            "train.batch_size with more train.accumulation, train.quantise, a lower buckets.resolution."
        ) from None
    return loss


def _unscaled(run: Run, loss: Tensor) -> bool:
    """Divide gradients by the loss's scale; False where they alone overflowed, so that a smaller scale may do."""
    if run.params.precision != "fp16":
        return True
    return unscale(run.adapters.values(), run.loss_scale) or not bool(loss.isfinite())


def _halve_scale(run: Run, step: int) -> None:
    """Go on with half the scale of the loss: gradients overflowed."""
    run.loss_scale /= 2
    if run.loss_scale < 1:
        raise TrainError(f"step {step}: gradients overflow fp16 at any scale. Take train.precision bf16 or fp32.")
    say(f"train: step {step}: gradients overflow fp16; again with the loss scaled by {run.loss_scale:g}")


def _checkpoint_more(run: Run, step: int) -> None:
    """Go on with the next level: exact, so it may begin at any step."""
    run.kept.fall()
    level = run.kept.described()
    say(f"train: {run.device} has too little memory at step {step}: activation checkpointing {level} from here on")


def _refuse_nonfinite(run: Run, losses: dict[str, float], step: int) -> None:
    """Raises: TrainError where a step's loss or gradients are not finite, with what may be the cause."""
    if all(math.isfinite(value) for value in losses.values()):
        return
    raise TrainError(
        f"step {step}: the loss is {losses['loss']} and the gradients' norm {losses['grad_norm']}. Nothing of "
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
