"""Was this base loaded right? Before the first step: the plain denoiser on cached samples, and the VAE round trip.

A file whose names were mapped wrongly, or weights of another scale, load without a word and train to nothing. Neither
check draws from a global generator, and neither changes a byte of what is trained.

Legend: B batch, C H W channels and sides of latents, t target, x the denoiser's input.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eridiff.bases.find import candidates, find_source
from eridiff.bases.pointer_files import pointers_of
from eridiff.core.errors import BaseError
from eridiff.core.noise import normal
from eridiff.family import Family
from eridiff.models.load import load_vae
from eridiff.models.precision import DTYPES
from eridiff.params.model import ModelParams
from eridiff.training.data import TrainingSet
from eridiff.training.objectives import Ddpm
from eridiff.training.run import Run
from eridiff.weights.nonfinite import blame
from eridiff.weights.pointers import ModelSource

LEVELS = (0.25, 0.5, 0.75)  # of the way to pure noise
SAMPLES = 10
VAE_SAMPLES = 2
VAE_SIDE = 64  # latent pixels: enough to see, and no more memory than a small picture takes
VAE_SHARE = 0.25  # of what tells latents apart, which must survive the round trip
WAY_OUT = (
    "This base was not loaded right, or is none of these pictures. Look at its files with `eridiff inspect`, and add "
    "it again. `train.check_base: false` trains all the same."
)


@dataclass(frozen=True, kw_only=True)
class Level:
    """Mean squared errors at one noise level."""

    share: float  # of LEVELS
    loss: float  # of the plain denoiser
    trivial: float  # of a predictor that only scales its input, at its best scale

    @property
    def is_beaten(self) -> bool:
        """Whether the denoiser knows more than how to scale; not-a-number does not."""
        return self.loss < self.trivial


def measure_denoiser(run: Run, data: TrainingSet) -> list[Level]:
    """The unadapted denoiser's loss at three noise levels on ten samples, against the trivial predictor's."""
    chosen = _spread(len(data.samples), SAMPLES)
    return [_measure_level(run, data, chosen, share) for share in LEVELS]


def _measure_level(run: Run, data: TrainingSet, chosen: Sequence[int], share: float) -> Level:
    """One level: sums over all elements, so that large pictures count as such."""
    tt = tx = xx = error = 0.0
    count = 0
    for place, number in enumerate(chosen):
        batch = data.batch([number], 0, place).to(run.device)
        latents = (batch.mean.float() - run.shift_factor) * run.scaling_factor
        level = torch.full((1,), share, device=run.device)
        if isinstance(run.objective, Ddpm):
            level = (level * len(run.objective.alphas_cumprod)).long()
        noise = normal(0, place, [0], latents.shape[1:], "base check").to(run.device)
        mixed = run.objective.mix(latents, noise, level, None, None)
        answer = _answer(run, mixed.noisy_latents, level, batch)
        t, x = mixed.target.double(), mixed.noisy_latents.double()
        tt, tx, xx = tt + float((t * t).sum()), tx + float((t * x).sum()), xx + float((x * x).sum())
        error, count = error + float(((answer.double() - t) ** 2).sum()), count + t.numel()
    return Level(share=share, loss=error / count, trivial=(tt - tx * tx / xx) / count)


def _answer(run: Run, noisy_latents: Tensor, level: Tensor, batch: Any) -> Tensor:
    """The denoiser's prediction, as a training step asks for it, unguided. Fresh adapters add nothing to it."""
    dtype = DTYPES[run.params.precision]
    text = {name: tensor.to(dtype) for name, tensor in batch.text.items()}
    with torch.no_grad():  # guidance 1.0: what the pictures are, not what guiding makes of them
        return run.family.predict(run.denoiser, noisy_latents.to(dtype), level, text, batch.sizes, 1.0)


def measure_vae(vae: Any, data: TrainingSet, device: torch.device) -> float:
    """How much of cached latents survives decoding and encoding: 1 all, 0 no more than each channel's mean."""
    lost = whole = 0.0
    for number in _spread(len(data.samples), VAE_SAMPLES):
        latents = _middle(data.batch([number], 0, 0).mean).to(device).float()
        with torch.no_grad():
            encoded = vae.encode(vae.decode(latents, return_dict=False)[0])
        again = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
        lost += float(((again - latents).double() ** 2).sum())
        whole += float(((latents - latents.mean(dim=(2, 3), keepdim=True)).double() ** 2).sum())
    return 1 - lost / whole


def _middle(latents: Tensor) -> Tensor:
    """The middle of latents [B, C, H, W], at most VAE_SIDE a side."""
    height, width = (min(side, VAE_SIDE) for side in latents.shape[2:])
    top, left = (latents.shape[2] - height) // 2, (latents.shape[3] - width) // 2
    return latents[:, :, top : top + height, left : left + width]


def _spread(total: int, wanted: int) -> list[int]:
    """Places evenly spread over a list."""
    count = min(total, wanted)
    return [place * total // count for place in range(count)]


def check_denoiser(run: Run, data: TrainingSet) -> str:
    """Measure the denoiser; the line that says so.

    Raises: BaseError where it does not beat the trivial predictor at every level.
    """
    levels = measure_denoiser(run, data)
    if not all(math.isfinite(level.loss) for level in levels):
        models, precision = {run.family.DENOISER: run.denoiser}, run.params.precision
        why = blame(models, "train.precision", precision, lambda: measure_denoiser(run, data))
        raise BaseError(f"{describe_levels(levels)}: the denoiser gives numbers that are not finite. {why}")
    if not all(level.is_beaten for level in levels):
        raise BaseError(f"{describe_levels(levels)}: the denoiser knows no more than how to scale noise. {WAY_OUT}")
    return describe_levels(levels)


def describe_levels(levels: Sequence[Level]) -> str:
    """Losses by level."""
    parts = [f"{level.loss:.3f} (trivial {level.trivial:.3f}) at {level.share:.0%}" for level in levels]
    return f"base check: loss of the plain base {', '.join(parts)} noise"


def check_vae(source: ModelSource, family: Family, data: TrainingSet, device: torch.device) -> str:
    """Send cached latents through the VAE round trip; the line that says so.

    Raises: BaseError where too little of them survives.
    """
    vae = load_vae(family, source, torch.float32).to(device)
    share = measure_vae(vae, data, device)
    if not math.isfinite(share):
        why = blame({"vae": vae}, "its number format", "fp32", lambda: measure_vae(vae, data, device))
        raise BaseError(f"base check: the VAE gives numbers that are not finite. {why}")
    line = f"base check: {share:.0%} of latent variance survives the VAE round trip"
    if not share >= VAE_SHARE:
        raise BaseError(f"{line}, and {VAE_SHARE:.0%} must. {WAY_OUT}")
    return line


def find_vae(model: ModelParams) -> ModelSource | None:
    """The VAE's files; None where this machine is missing them, since training itself does without."""
    pointer = pointers_of(model.base, ["vae"], model.family)["vae"]
    is_here = all(next(candidates(pointer, component), None) for component in pointer.components.values())
    return find_source([pointer]) if is_here else None
