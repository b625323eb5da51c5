"""What the denoiser learns: noise levels, noisy latents, targets and loss weights, in fp32.

Legend: B batch, C H W channels and sides of latents. x0 = latents in training space, e = noise.
Sources: docs/objectives.md; checked against diffusers' schedulers to 1e-6.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from eridiff.core.errors import BaseError
from eridiff.params.train import DdpmParams, FlowParams
from eridiff.weights.schedules import refuse_schedule


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """One batch made noisy: the denoiser's input, what it should answer, and the weight."""

    noisy_latents: Tensor  # [B, C, H, W]
    target: Tensor  # [B, C, H, W]
    loss_weight: Tensor  # [B]


class Ddpm:
    """Denoising diffusion over the base's own noise schedule (Ho et al. 2020; Salimans and Ho 2022)."""

    def __init__(self, scheduler: Mapping[str, Any], params: DdpmParams) -> None:
        refuse_schedule(scheduler, "ddpm", "the pointer denoiser.json of this base")
        self.params = params
        self.prediction_type = str(scheduler.get("prediction_type", "epsilon"))
        self.alphas_cumprod = alphas_cumprod(scheduler)  # [1000] fp32
        self.takes_offset = params.noise_offset != 0
        self.takes_perturbation = params.input_perturbation != 0

    def to(self, device: torch.device) -> "Ddpm":
        """The same objective, its schedule on a device."""
        self.alphas_cumprod = self.alphas_cumprod.to(device)
        return self

    def draw_level(self, uniform: Tensor, num_tokens: int) -> Tensor:
        """Timesteps [B], uniform over timestep_min..timestep_max."""
        low, high = self.params.timestep_min, self.params.timestep_max
        return low + (uniform * (high - low + 1)).long()

    def mix(
        self, latents: Tensor, noise: Tensor, level: Tensor, offset: Tensor | None, perturbation: Tensor | None
    ) -> Mixed:
        """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) e; target e, or sqrt(abar) e - sqrt(1 - abar) x0.

        offset [B, C, 1, 1] and perturbation [B, C, H, W] are normal draws for the options of those names; None: off.
        """
        abar = self.alphas_cumprod[level].view(-1, 1, 1, 1)
        noise = noise if offset is None else noise + self.params.noise_offset * offset
        seen = noise if perturbation is None else noise + self.params.input_perturbation * perturbation
        noisy = abar.sqrt() * latents + (1 - abar).sqrt() * seen
        v = self.prediction_type == "v_prediction"
        target = abar.sqrt() * noise - (1 - abar).sqrt() * latents if v else noise
        return Mixed(noisy_latents=noisy, target=target, loss_weight=self._weight(abar.flatten()))

    def _weight(self, abar: Tensor) -> Tensor:
        """Loss weight [B]. SNR = abar / (1 - abar) is 0 at a zero terminal SNR: clamped, not divided by."""
        snr = (abar / (1 - abar)).clamp(min=1e-8)
        v = self.prediction_type == "v_prediction"
        if self.params.loss_weight == "min_snr":
            return snr.clamp(max=self.params.min_snr_gamma) / (snr + 1 if v else snr)
        if self.params.loss_weight == "debiased":
            return 1 / (snr + 1 if v else snr.clamp(max=1000).sqrt())
        return torch.ones_like(snr)


class Flow:
    """Rectified flow (Liu et al. 2022; Esser et al. 2024): x_t = (1 - sigma) x0 + sigma e, target e - x0."""

    def __init__(self, scheduler: Mapping[str, Any], params: FlowParams) -> None:
        self.params = params
        self.scheduler = dict(scheduler)
        self.takes_offset = self.takes_perturbation = False

    def to(self, device: torch.device) -> "Flow":
        """The same objective: it has no tensors."""
        return self

    def draw_level(self, uniform: Tensor, num_tokens: int) -> Tensor:
        """Sigmas [B] in fp32; num_tokens is the number of image tokens, for the resolution's shift."""
        sigma = _density(uniform, self.params)
        shift = self.params.shift
        s = math.exp(self._mu(num_tokens)) if shift == "resolution" else float(shift)
        sigma = s * sigma / (1 + (s - 1) * sigma)
        low, high = self.params.sigma_min, self.params.sigma_max
        return (low + (high - low) * sigma).float()

    def _mu(self, num_tokens: int) -> float:
        """mu linear from base_shift at base_image_seq_len tokens to max_shift at max_image_seq_len."""
        get = self.scheduler.get
        x1, x2 = get("base_image_seq_len", 256), get("max_image_seq_len", 4096)
        y1, y2 = get("base_shift", 0.5), get("max_shift", 1.15)
        return float(y1 + (y2 - y1) * (num_tokens - x1) / (x2 - x1))

    def mix(
        self, latents: Tensor, noise: Tensor, level: Tensor, offset: Tensor | None, perturbation: Tensor | None
    ) -> Mixed:
        """x_t and the velocity e - x0; offset and perturbation are not used by flows."""
        sigma = level.view(-1, 1, 1, 1)
        noisy = (1 - sigma) * latents + sigma * noise
        return Mixed(noisy_latents=noisy, target=noise - latents, loss_weight=self._weight(level))

    def _weight(self, sigma: Tensor) -> Tensor:
        if self.params.loss_weight == "sigma_sqrt":
            return sigma.clamp(min=1e-3) ** -2
        if self.params.loss_weight == "cosmap":
            return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))
        return torch.ones_like(sigma)


Objective = Ddpm | Flow


def _density(uniform: Tensor, params: FlowParams) -> Tensor:
    """Uniform draws to noise levels: fp64, inside (0, 1)."""
    u = uniform.clamp(1e-9, 1 - 1e-9)
    if params.density == "logit_normal":
        normal = math.sqrt(2) * torch.erfinv(2 * u - 1)
        return torch.sigmoid(params.logit_mean + params.logit_std * normal)
    if params.density == "mode":
        return 1 - u - params.mode_scale * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)
    if params.density == "cosmap":
        return 1 - 1 / (torch.tan(math.pi / 2 * u) + 1)
    return u


def alphas_cumprod(scheduler: Mapping[str, Any]) -> Tensor:
    """abar_t [num_train_timesteps], fp32, from a diffusers scheduler's config."""
    count = int(scheduler.get("num_train_timesteps", 1000))
    start, end = float(scheduler.get("beta_start", 0.0001)), float(scheduler.get("beta_end", 0.02))
    kind = scheduler.get("beta_schedule", "linear")
    if scheduler.get("trained_betas") is not None:
        betas = torch.tensor(scheduler["trained_betas"], dtype=torch.float32)
    elif kind == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2
    elif kind == "linear":
        betas = torch.linspace(start, end, count, dtype=torch.float32)
    else:
        raise BaseError(f"the base's scheduler has beta_schedule '{kind}'. Known: linear, scaled_linear.")
    abar = torch.cumprod(1 - betas, dim=0)
    if scheduler.get("rescale_betas_zero_snr"):
        root = abar.sqrt()  # Lin et al. 2023: shift so that the last is 0, scale so that the first stays
        abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return abar


def elementwise_loss(kind: Literal["mse", "huber", "smooth_l1"], delta: float, pred: Tensor, target: Tensor) -> Tensor:
    """Loss of each element, fp32: squared error, or 2 delta (sqrt(d^2 + delta^2) - delta) (huber),
    or 2 (sqrt(d^2 + delta^2) - delta) (smooth_l1), as in Song and Dhariwal 2023."""
    difference = pred.float() - target.float()
    if kind == "mse":
        return difference**2
    square = difference**2
    pseudo_huber = 2 * square / ((square + delta**2).sqrt() + delta)  # = 2 (root - delta), without the cancellation
    return delta * pseudo_huber if kind == "huber" else pseudo_huber
