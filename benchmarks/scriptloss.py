"""The loss of diffusers' LoRA scripts of each family, apart from its draws, so that others' draws can go through it.

Legend: B batch, C H W channels and sides of latents, L text tokens, D text width, P pooled width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.randombase import RandomBase
from eridiff.training.data import Batch


@dataclass(frozen=True, kw_only=True)
class Cached:
    """A batch of what the script has cached, on the device."""

    mean: Tensor  # [B, C, H, W] raw
    std: Tensor  # [B, C, H, W]
    prompt_embeds: Tensor  # [B, L, D]
    pooled: Tensor  # [B, P]
    time_ids: Tensor  # [B, 6], in the weights' format, as the SDXL script has them


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What the script draws, and what follows from it."""

    latents: Tensor  # [B, C, H, W] in training space; the script's are in the weights' format
    noise: Tensor  # [B, C, H, W]
    timesteps: Tensor  # [B], 0..1000
    sigmas: Tensor  # [B, 1, 1, 1]; of flows


@dataclass(frozen=True, kw_only=True)
class Options:
    """The scripts' options that change the loss, at their defaults."""

    guidance: float = 3.5  # train_dreambooth_lora_flux.py --guidance_scale
    precondition: bool = True  # train_dreambooth_lora_sd3.py --precondition_outputs
    weighting: str = "none"  # --weighting_scheme, as far as it weighs the loss


Draw = Callable[[Cached], Drawn]
Loss = Callable[[Any, Cached, Drawn], Tensor]


def as_cached(batch: Batch, dtype: torch.dtype) -> Cached:
    """A batch of eridiff's as the script would have cached it."""
    width, height = batch.sizes.target
    ids = [
        (original[1], original[0], crop[1], crop[0], height, width)
        for original, crop in zip(batch.sizes.original, batch.sizes.crop, strict=True)
    ]
    return Cached(
        mean=batch.mean.float(),
        std=batch.std.float(),
        prompt_embeds=batch.text["prompt_embeds"].to(dtype),
        pooled=batch.text["pooled_prompt_embeds"].to(dtype),
        time_ids=torch.tensor(ids, device=batch.mean.device).to(dtype),
    )


def make_draw(base: RandomBase, device: torch.device) -> Draw:
    """The draws of the family's script, sigmas and latents in the weights' format."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.training_utils import compute_density_for_timestep_sampling

    vae = base.configs["vae"]
    shift, scale = vae.get("shift_factor") or 0.0, vae["scaling_factor"]
    is_flow = base.family.OBJECTIVE == "flow"
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(base.configs["scheduler"])) if is_flow else None
    density = "none" if is_packed(base) else "logit_normal"

    def levels(count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if scheduler is None:
            total = base.configs["scheduler"]["num_train_timesteps"]
            timesteps = torch.randint(0, total, (count,), device=device).long()
            return timesteps, torch.zeros(count, 1, 1, 1, device=device)
        draws = compute_density_for_timestep_sampling(density, count, 0.0, 1.0, 1.29)
        timesteps = scheduler.timesteps[(draws * scheduler.config.num_train_timesteps).long()].to(device)
        sigmas, schedule = scheduler.sigmas.to(device=device, dtype=dtype), scheduler.timesteps.to(device)
        places = [(schedule == timestep).nonzero().item() for timestep in timesteps]
        return timesteps, sigmas[places].view(-1, 1, 1, 1)

    def draw(cached: Cached) -> Drawn:
        raw = cached.mean + cached.std * torch.randn_like(cached.mean)
        latents = ((raw - shift) * scale).to(base.dtype)
        timesteps, sigmas = levels(len(latents), latents.dtype)
        return Drawn(latents=latents, noise=torch.randn_like(latents), timesteps=timesteps, sigmas=sigmas)

    return draw


def is_packed(base: RandomBase) -> bool:
    """Whether the denoiser takes packed latents (Flux)."""
    return "Flux" in base.family.PIPELINE


def make_loss(base: RandomBase, options: Options) -> Loss:
    """The loss of the family's script."""
    return _ddpm_loss(base) if base.family.OBJECTIVE == "ddpm" else _flow_loss(base, options)


def _ddpm_loss(base: RandomBase) -> Loss:
    """The SDXL script's, for a base that predicts the noise."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_config(dict(base.configs["scheduler"]))

    def loss(model: Any, cached: Cached, drawn: Drawn) -> Tensor:
        noisy = scheduler.add_noise(drawn.latents, drawn.noise, drawn.timesteps).to(base.dtype)
        conditions = {"time_ids": cached.time_ids, "text_embeds": cached.pooled}
        pred = model(noisy, drawn.timesteps, cached.prompt_embeds, added_cond_kwargs=conditions, return_dict=False)[0]
        return functional.mse_loss(pred.float(), drawn.noise.float(), reduction="mean")

    return loss


def _flow_loss(base: RandomBase, options: Options) -> Loss:
    """The scripts' of SD 3 and Flux, which differ in packing, guidance, and what the loss compares."""
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    packed = is_packed(base)

    def loss(model: Any, cached: Cached, drawn: Drawn) -> Tensor:
        noisy = (1.0 - drawn.sigmas) * drawn.latents + drawn.sigmas * drawn.noise
        if packed:
            pred = _predict_packed(base, options, model, noisy.to(base.dtype), drawn, cached)
        else:
            pred = _predict(model, noisy.to(base.dtype), drawn, cached)
        target = drawn.noise - drawn.latents
        if not packed and options.precondition:
            pred, target = pred * -drawn.sigmas + noisy, drawn.latents
        weight = compute_loss_weighting_for_sd3(options.weighting, sigmas=drawn.sigmas)
        return (weight.float() * (pred.float() - target.float()) ** 2).reshape(len(target), -1).mean(1).mean()

    return loss


def _predict(model: Any, noisy: Tensor, drawn: Drawn, cached: Cached) -> Tensor:
    """The MMDiT's answer."""
    pred: Tensor = model(
        hidden_states=noisy,
        timestep=drawn.timesteps,
        encoder_hidden_states=cached.prompt_embeds,
        pooled_projections=cached.pooled,
        return_dict=False,
    )[0]
    return pred


def _predict_packed(
    base: RandomBase, options: Options, model: Any, noisy: Tensor, drawn: Drawn, cached: Cached
) -> Tensor:
    """Flux's answer."""
    from diffusers import FluxPipeline

    (count, channels, height, width), device = noisy.shape, noisy.device
    guidance = None
    if base.denoiser_config.get("guidance_embeds"):
        guidance = torch.tensor([options.guidance], device=device).expand(count)
    pred = model(
        hidden_states=FluxPipeline._pack_latents(noisy, count, channels, height, width),
        timestep=drawn.timesteps / 1000,
        guidance=guidance,
        pooled_projections=cached.pooled,
        encoder_hidden_states=cached.prompt_embeds,
        txt_ids=torch.zeros(cached.prompt_embeds.shape[1], 3, device=device, dtype=base.dtype),
        img_ids=FluxPipeline._prepare_latent_image_ids(count, height // 2, width // 2, device, base.dtype),
        return_dict=False,
    )[0]
    factor = base.side // width
    unpacked: Tensor = FluxPipeline._unpack_latents(pred, height * factor, width * factor, factor)
    return unpacked
