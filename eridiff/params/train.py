"""The section `train` of params.yaml. Without torch, so that `check` and `why` start fast."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from eridiff.core.config import MAX_STEPS, Section, Seed
from eridiff.core.errors import ConfigError
from eridiff.family import Family
from eridiff.params.model import Quantised, QuantisedArithmetic


class LoraParams(Section):
    """The adapter."""

    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    """Rank of every adapter."""
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 16.0
    """Strength: the adapter's output is scaled by alpha / rank."""
    targets: str = "attention"
    """Target set: which modules are adapted, by a name from the family's list (`check` names them)."""


@dataclass(frozen=True)
class OptimizerKind:
    """An optimizer: where its class is, the options that it always gets, and bytes of a number in its two moments.

    Its class takes lr, betas, eps and weight_decay (decoupled).
    """

    module: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    on_queue: Mapping[str, Any] = field(default_factory=dict)  # options with which it never waits for a GPU
    moment_bytes: int = 4


ON_QUEUE = {"foreach": False, "fused": True, "capturable": True}  # torch's own, on CUDA

# Name in params -> optimizer. Names only: `check` starts without torch.
OPTIMIZERS: dict[str, OptimizerKind] = {
    "adamw": OptimizerKind("torch.optim", "AdamW", {"foreach": True}, ON_QUEUE),
    "adamw8bit": OptimizerKind("bitsandbytes.optim", "AdamW8bit", moment_bytes=1),
}
if TYPE_CHECKING:
    OptimizerName = str
else:
    OptimizerName = Literal[tuple(OPTIMIZERS)]  # for pydantic and docs/params.md


class OptimParams(Section):
    """How the adapters are optimized."""

    name: OptimizerName = "adamw"
    """AdamW, or bitsandbytes' AdamW with 8-bit moments (different results, less memory)."""
    lr: Annotated[float, Field(gt=0, le=100)] = 1e-4
    """Peak learning rate."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay of the two moments."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 0.01
    """Decoupled weight decay."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant (more steps can be added later), or a cosine to zero."""
    warmup_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 0
    """Steps over which the learning rate rises linearly."""
    max_grad_norm: Annotated[float, Field(gt=0, le=1e12)] = 1.0
    """Gradients are scaled down to this norm over all adapters."""


class DdpmParams(Section):
    """Options of denoising diffusion (epsilon or v-prediction, as the base's scheduler says)."""

    loss_weight: Literal["none", "min_snr", "debiased"] = "none"
    """Weight of each timestep: none; min(SNR, gamma) / SNR (+ 1 for v); or 1 / sqrt(SNR)."""
    min_snr_gamma: Annotated[float, Field(gt=0, le=1e6)] = 5.0
    """gamma of `min_snr`."""
    noise_offset: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Strength of an additional normal draw per channel, added to the noise: lets the LoRA change the mean
    brightness."""
    input_perturbation: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Extra noise on the input only, not in the target."""
    timestep_min: Annotated[int, Field(ge=0, le=999)] = 0
    """Smallest timestep drawn."""
    timestep_max: Annotated[int, Field(ge=0, le=999)] = 999
    """Largest timestep drawn."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.timestep_min > self.timestep_max:
            raise ValueError(f"timestep_min {self.timestep_min} is above timestep_max {self.timestep_max}")
        return self


class FlowParams(Section):
    """Options of rectified flow."""

    density: Literal["uniform", "logit_normal", "mode", "cosmap"] = "logit_normal"
    """How the noise level sigma is drawn in (0, 1)."""
    logit_mean: Annotated[float, Field(ge=-100, le=100)] = 0.0
    """Mean of `logit_normal`: sigma = sigmoid(draw), so a larger mean means MORE noise (diffusers: less)."""
    logit_std: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Standard deviation of `logit_normal`."""
    mode_scale: Annotated[float, Field(ge=-100, le=100)] = 1.29
    """Scale of `mode`."""
    shift: Annotated[float, Field(gt=0, le=1000)] | Literal["resolution"] = 1.0
    """sigma <- s sigma / (1 + (s - 1) sigma); `resolution`: s = exp(mu), mu linear in the number of tokens."""
    sigma_min: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Smallest noise level."""
    sigma_max: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Largest noise level."""
    loss_weight: Literal["none", "sigma_sqrt", "cosmap"] = "none"
    """Weight of each noise level: none; sigma^-2; or 2 / (pi (1 - 2 sigma + 2 sigma^2))."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.sigma_min > self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} is above sigma_max {self.sigma_max}")
        return self


NO_BYTE = {"check_base"}  # params of train that change no byte of what it makes


class TrainParams(Section):
    """How the LoRA is trained."""

    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    """Optimizer steps. Under a constant schedule training can be extended later: raise this number."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 1
    """Pictures per micro-batch, all of one bucket."""
    accumulation: Annotated[int, Field(ge=1, le=65536)] = 1
    """Micro-batches per step."""
    seed: Seed = 0
    """Seed of every draw: order, noise, timesteps, captions, adapters."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Number format of the frozen base. Adapters, noise and loss are fp32. fp16 is for cards without bf16: its range is
    small, so the loss is scaled, and what overflows is an error."""
    quantise: Quantised | None = None
    """Store the weights of the base's blocks in fewer bits and compute in `precision` all the same: fp8 and int8 take
    half of bf16's memory, nf4 a little more than a quarter. Each rounds the base (docs/training.md). A section also
    multiplies in eight bits, which is faster and rounds every input and gradient too."""
    caption_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of samples that are trained with the empty caption."""
    guidance: Annotated[float, Field(ge=0, le=1000)] | None = None
    """Embedded guidance, if the family's denoiser takes one; null: 1.0."""
    loss: Literal["mse", "huber", "smooth_l1"] = "mse"
    """Loss of each element."""
    huber_delta: Annotated[float, Field(gt=0, le=1e6)] = 0.1
    """Error size at which huber and smooth_l1 change from squares to absolute values."""
    save_every: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 250
    """Steps between two checkpoints; the last step is always one."""
    keep: Annotated[int, Field(ge=1, le=100_000)] = 4
    """How many of the latest checkpoints are kept."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a moving average of the adapters, saved beside each checkpoint; null: none."""
    deterministic: bool = False
    """The plain step, with kernels that give the same bits on each run of the same hardware; false: on CUDA the fast
    one, which differs from it by rounding (docs/training.md)."""
    check_base: bool = True
    """Before the first step, check that the base was loaded right: false for bases with random weights."""
    lora: LoraParams = Field(default_factory=LoraParams)
    """The adapter."""
    optimizer: OptimParams = Field(default_factory=OptimParams)
    """How the adapters are optimized."""
    ddpm: DdpmParams | None = None
    """Options of families that are trained by denoising diffusion."""
    flow: FlowParams | None = None
    """Options of families that are trained by rectified flow."""

    @model_validator(mode="after")
    def _computable(self) -> Self:
        asked = isinstance(self.quantise, QuantisedArithmetic) and self.quantise.compute == "fp8"
        if asked and self.precision != "bf16":
            raise ValueError(
                f"quantise computes in fp8, whose products are bf16, but precision is {self.precision}. Set precision: "
                "bf16, or quantise: fp8, which only stores"
            )
        return self


def refuse_other_objective(family: Family, params: TrainParams) -> None:
    """Refuse options of the objective that the family is not trained by.

    Raises: ConfigError that names the section and the way out.
    """
    other = "flow" if family.OBJECTIVE == "ddpm" else "ddpm"
    if getattr(params, other) is not None:
        raise ConfigError(
            f"params.yaml: train.{other} is set, but this family is trained by {family.OBJECTIVE}: use "
            f"train.{family.OBJECTIVE}, or remove it."
        )
    if params.guidance is not None and not family.GUIDANCE:
        raise ConfigError("params.yaml: train.guidance is set, but this family's denoiser takes none: remove it.")


def kept_steps(params: TrainParams) -> list[int]:
    """Steps whose checkpoints are put out: the latest `keep` of those saved."""
    saved = range(params.save_every, params.steps + 1, params.save_every)  # a range: no list of all of them is made
    last = [] if saved and saved[-1] == params.steps else [params.steps]
    return [*saved[max(0, len(saved) + len(last) - params.keep) :], *last]
