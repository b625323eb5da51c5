"""The same mathematics as diffusers' scripts: losses and adapter gradients of eridiff's step against theirs.

    python -m benchmarks.parity [--models flux-dev,sd35-large,sd35-medium,sdxl] [--precision bf16|fp32] [--out FOLDER]
    python -m benchmarks.parity --models sdxl --kohya CHECKOUT [--out FOLDER]
    python -m benchmarks.parity --tiny --device cpu --precision fp32

Both sides get the same weights, adapters, latents, embeddings, noise and noise levels; after each step the adapters
move by eridiff's gradients. On a GPU eridiff's step is the fast one, unless `--deterministic`. What the scripts do
otherwise is in DIFFERENCES, with how it is made equal here.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.eridiffstep import loaded, params_of
from benchmarks.kohyaparity import TARGETS, KohyaLoss
from benchmarks.randombase import RandomBase, random_base
from benchmarks.scriptloss import Drawn, Options, as_cached, make_loss
from benchmarks.scriptstep import MIXED, adapt
from eridiff.acceleration.attention import Kernel, use_attention
from eridiff.training.data import plan_batches
from eridiff.training.prepare import prepare
from eridiff.training.run import Machine, Run
from eridiff.training.step import Example, examples_of, train_step

MODELS = {"flux-dev": "flux", "sd35-large": "sd35", "sd35-medium": "sd35", "sdxl": "sdxl"}
LOSS_LIMITS = {"bf16": 1e-3, "fp32": 1e-6}  # relative
COSINE_LIMIT = 0.999
RATE = 1e-3  # at which the adapters move between steps
DIFFERENCES = """\
guidance: the Flux script embeds 3.5, eridiff 1.0: here train.guidance 3.5
noise levels: the scripts draw from the scheduler's 1000 (SD 3 shifts by 3): here eridiff's draws go to both;
    train.flow.density, logit_mean (of the other sign) and shift choose the same density
loss: the SD 3 script multiplies by sigma^2 (--precondition_outputs 1): here 0, or 1 with --weighting_scheme sigma_sqrt
min-SNR: the SDXL script adds 1 to the weight of v-prediction, eridiff divides by SNR + 1: here no weight
formats: the scripts form noisy latents, sigmas and targets in bf16, eridiff in fp32: here fp32. Autocast leaves norms,
    and sums after them, in fp32, eridiff keeps the base's format: rounding, which `--no-autocast` takes away
sizes: the SDXL script rounds time ids to bf16 (1023 becomes 1024): here sizes that bf16 holds
adapters: the scripts' lora_A is gaussian, eridiff's kaiming: here the same values; alpha is the rank in the scripts
    of SDXL and SD 3, 4 in Flux's, 16 in eridiff: here train.lora.alpha
"""


@dataclass(frozen=True, kw_only=True)
class Result:
    """How far two sides were apart, at worst, over all steps."""

    model: str
    precision: str
    steps: int
    loss_difference: float  # relative
    cosine: float  # of all adapters' gradients as one vector
    adapter_cosine: float  # of the single adapter tensor that agrees least, of those with a gradient
    norm_difference: float  # relative

    @property
    def is_equal(self) -> bool:
        """Whether the limits are kept; not-a-number does not keep them."""
        return self.loss_difference <= LOSS_LIMITS[self.precision] and self.cosine >= COSINE_LIMIT


class KeepingAdamW(torch.optim.AdamW):
    """AdamW that keeps the gradients that it was given."""

    kept: list[Tensor]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Keep, then move."""
        self.kept = [tensor.grad.detach().clone() for group in self.param_groups for tensor in group["params"]]
        super().step(closure)


class Ours:
    """eridiff's side: the step that its loop calls, plain or fast; its loss, and the gradients before it moved."""

    def __init__(
        self, base: RandomBase, changes: Mapping[str, Any], device: torch.device, store: Path, stack: ExitStack
    ) -> None:
        options: dict[str, Any] = {"precision": base.precision, "seed": 5, **changes}
        options["optimizer"] = {"lr": RATE, "max_grad_norm": 1e12}  # never clipped
        options |= {"guidance": Options().guidance} if base.family.GUIDANCE else {}
        self.run: Run = loaded(base, params_of(options), Machine(device=device, store=store))
        self.optimizer = KeepingAdamW(self.run.adapters.values(), lr=RATE)
        self.data = base.training_set(self.run.params.seed)
        self.step = stack.enter_context(prepare(train_step, self.run, self.optimizer, self.data))
        self.complete = examples_of(self.run)

    def examples(self, steps: int) -> Iterator[Example]:
        """Of each step, in order."""
        params = self.run.params
        plan = plan_batches(self.data.samples, params.batch_size, steps, params.seed)
        for step, numbers in enumerate(plan, 1):
            yield self.complete(self.data.batch(numbers, step, 0), step)

    def __call__(self, example: Example, step: int) -> tuple[float, dict[str, Tensor]]:
        """Loss, and gradients by adapter tensor; the adapters move."""
        loss = self.step([example], step)()["loss"]
        kept = zip(self.run.adapters, self.optimizer.kept, strict=True)
        return loss, {name: gradient.double() for name, gradient in kept}


class ScriptLoss:
    """The script's model and loss."""

    def __init__(self, base: RandomBase, run: Run, options: Options, *, autocast: bool = True) -> None:
        """autocast: whether the script runs in it, as it does; else in one format throughout, as eridiff's does."""
        from accelerate import Accelerator

        mixed = MIXED[base.precision] if autocast else "no"
        self.accelerator = Accelerator(mixed_precision=mixed, cpu=run.device.type == "cpu")
        model: Any = base.denoiser(run.device)
        adapt(base, model, run.params.lora)
        model.enable_gradient_checkpointing()
        names = {name: name.replace(".default.weight", ".weight") for name, _ in model.named_parameters()}
        self.adapters = {names[name]: p for name, p in model.named_parameters() if p.requires_grad}
        self.model = self.accelerator.prepare(model.train())
        self.loss, self.dtype = make_loss(base, options), base.dtype

    def __call__(self, example: Example, drawn: Drawn) -> Tensor:
        """The loss; gradients are added up."""
        loss = self.loss(self.model, as_cached(example.batch, self.dtype), drawn)
        self.accelerator.backward(loss)
        return loss.detach()


class Peer(Protocol):
    """Another trainer's loss, over tensors that are set to eridiff's adapters."""

    @property
    def adapters(self) -> Mapping[str, Tensor]:
        """By eridiff's names."""

    def __call__(self, example: Example, drawn: Drawn) -> Tensor:
        """The loss; gradients are added up."""


MakePeer = Callable[[RandomBase, Run], Peer]


def ask(peer: Peer, run: Run, example: Example) -> tuple[float, dict[str, Tensor]]:
    """A peer's loss, and gradients by adapter tensor, of eridiff's adapters and draws."""
    assert peer.adapters.keys() == run.adapters.keys()
    for name, tensor in peer.adapters.items():
        tensor.data.copy_(run.adapters[name])
    here = example.to(run.device)
    # Another kernel than eridiff's: cuDNN's backward depends on who called it first in the process.
    kernel: Kernel | None = "flash" if run.device.type == "cuda" and run.params.precision != "fp32" else None
    with use_attention(kernel):
        loss = float(peer(here, drawn_by(run, here)))
    return loss, take_gradients(peer.adapters)


def drawn_by(run: Run, example: Example) -> Drawn:
    """eridiff's draws of a step, as the script would hold them, in fp32."""
    batch, draws = example.batch, example.draws
    raw = batch.mean.float() + batch.std.float() * draws.posterior
    return Drawn(
        latents=(raw - run.shift_factor) * run.scaling_factor,
        noise=draws.noise,
        timesteps=draws.level * 1000 if run.family.OBJECTIVE == "flow" else draws.level,
        sigmas=draws.level.float().view(-1, 1, 1, 1),
    )


def take_gradients(adapters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradients in fp64, taken off the tensors."""
    found = {}
    for name, tensor in adapters.items():
        found[name] = torch.zeros_like(tensor).double() if tensor.grad is None else tensor.grad.double()
        tensor.grad = None
    return found


def compare(
    base: RandomBase, device: torch.device, steps: int, make_peer: MakePeer, changes: Mapping[str, Any]
) -> Result:
    """Both sides over some steps; the adapters follow eridiff's gradients."""
    worst = {"loss": 0.0, "cosine": 1.0, "adapter": 1.0, "norm": 0.0}
    with ExitStack() as stack:
        store = Path(stack.enter_context(TemporaryDirectory()))
        ours = Ours(base, changes, device, store, stack)
        peer = make_peer(base, ours.run)
        for step, example in enumerate(ours.examples(steps), 1):
            expected, others = ask(peer, ours.run, example)
            loss, gradients = ours(example, step)
            mine, other = (
                torch.cat([named[name].flatten() for name in sorted(named)]) for named in (gradients, others)
            )
            single = [cosine(gradients[name], others[name]) for name in others if others[name].norm() > 0]
            worst["loss"] = _worse(worst["loss"], abs(loss - expected) / abs(expected))
            worst["norm"] = _worse(worst["norm"], float((mine.norm() / other.norm() - 1).abs()))
            worst["cosine"] = -_worse(-worst["cosine"], -cosine(mine, other))
            worst["adapter"] = -_worse(-worst["adapter"], -min(single))
    return Result(
        model=base.name,
        precision=base.precision,
        steps=steps,
        loss_difference=worst["loss"],
        cosine=worst["cosine"],
        adapter_cosine=worst["adapter"],
        norm_difference=worst["norm"],
    )


def _worse(one: float, other: float) -> float:
    """The larger; not-a-number stays."""
    return one if one != one or one > other else other


def cosine(one: Tensor, other: Tensor) -> float:
    """Of two tensors, as vectors."""
    return float((one.flatten() @ other.flatten()) / (one.norm() * other.norm()))


def table(results: list[Result]) -> str:
    """All results in Markdown."""
    lines = ["| model | precision | steps | loss, relative | cosine of gradients | least adapter | norm, relative | |"]
    lines.append("|---" * 8 + "|")
    lines += [
        f"| {r.model} | {r.precision} | {r.steps} | {r.loss_difference:.1e} | {r.cosine:.6f} | {r.adapter_cosine:.6f} "
        f"| {r.norm_difference:.1e} | {'equal' if r.is_equal else 'NOT EQUAL'} |"
        for r in results
    ]
    return "\n".join(lines) + "\n"


def peer_of(arguments: argparse.Namespace) -> tuple[MakePeer, dict[str, Any]]:
    """How the other side is made, and the params of eridiff's."""
    changes = {"deterministic": arguments.deterministic, "batch_size": arguments.batch}
    if arguments.kohya is None:
        options, autocast = Options(precondition=False), not arguments.no_autocast
        return lambda base, run: ScriptLoss(base, run, options, autocast=autocast), changes
    checkout, lora = arguments.kohya.resolve(), {"rank": 16, "alpha": 16.0, "targets": TARGETS}
    return lambda base, run: KohyaLoss(base, run, checkout), {**changes, "lora": lora}


def main() -> int:
    """Compare each model; 1 where a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="flux-dev,sd35-large,sdxl", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--precision", choices=LOSS_LIMITS, default="bf16")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--side", type=int, help="of the pictures in pixels; default: 1024")
    parser.add_argument("--no-autocast", action="store_true", help="the script in bf16 throughout, as eridiff is")
    parser.add_argument("--deterministic", action="store_true", help="train.deterministic: true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true", help="the small bases")
    parser.add_argument("--kohya", type=Path, metavar="FOLDER", help="against sd-scripts' SDXL, of a checkout")
    arguments = parser.parse_args()
    make_peer, changes = peer_of(arguments)
    results = []
    for model in arguments.models.split(","):
        base = replace(random_base(MODELS[model], model, tiny=arguments.tiny), precision=arguments.precision)
        base = replace(base, side=arguments.side) if arguments.side else base
        device = torch.device(arguments.device)
        results.append(compare(base, device, arguments.steps, make_peer, changes))
        print(table(results[-1:]), flush=True)
        if arguments.out is not None:
            arguments.out.mkdir(parents=True, exist_ok=True)
            (arguments.out / "parity.md").write_text(f"{table(results)}\n{DIFFERENCES}", "utf-8")
            text = json.dumps([vars(result) for result in results], indent=1)
            (arguments.out / "parity.json").write_text(f"{text}\n", "utf-8")
    print(table(results), DIFFERENCES, sep="\n")
    return 0 if all(result.is_equal for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
