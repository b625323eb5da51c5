"""The step of diffusers' LoRA scripts (examples/dreambooth/train_dreambooth_lora_{sdxl,sd3,flux}.py), tensors cached.

Written from reading them at diffusers 0.42: accelerate in bf16 around a bf16 model, peft's adapters in fp32, gradient
checkpointing, eight-bit AdamW where bitsandbytes runs, sigmas looked up in the scheduler, the loss read at every step.
The adapted modules are the row's, the same as eridiff's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.randombase import RandomBase, Settle
from eridiff.models.lora import target_modules
from eridiff.models.quantise import Storage, is_quantised

RATE, GUIDANCE, MAX_GRAD_NORM = 1e-4, 3.5, 1.0  # the scripts' defaults
MIXED = {"bf16": "bf16", "fp32": "no"}  # train.precision -> --mixed_precision


@dataclass(frozen=True, kw_only=True)
class Cached:
    """A batch of what the script has cached, on the device."""

    mean: Tensor  # [B, C, H, W]
    std: Tensor
    prompt_embeds: Tensor
    pooled: Tensor
    time_ids: Tensor  # [B, 6], in the weights' format, as the SDXL script has them


def adapt(base: RandomBase, model: Any, targets: str, rank: int) -> list[nn.Parameter]:
    """Add the script's adapter: peft's, gaussian, in fp32."""
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    unused = base.family.unused_modules(base.denoiser_config)
    modules = target_modules(model, base.family.TARGET_SETS, targets, unused)
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=modules))
    cast_training_params(model, dtype=torch.float32)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def settle_in(quantise: str | None, device: torch.device) -> Settle | None:
    """How the frozen weights of the blocks are stored: bitsandbytes' four bits; or fp8, expanded for each product."""
    if quantise == "nf4":
        return Storage(kind="nf4", device=device).settle

    def settle(model: nn.Module, name: str) -> None:
        path, _, last = name.rpartition(".")
        if last == "weight" and is_quantised(model, path):
            layer: Any = model.get_submodule(path)
            dtype = layer.weight.dtype
            layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn)
            layer.forward = lambda x: functional.linear(x, layer.weight.to(dtype), layer.bias)

    return settle if quantise == "fp8" else None


def script_step(
    base: RandomBase, batch: int, targets: str, quantise: str | None, device: torch.device
) -> Callable[[], Tensor]:
    """A function that trains one step and returns its loss."""
    from accelerate import Accelerator
    from diffusers.optimization import get_scheduler

    accelerator = Accelerator(mixed_precision=MIXED[base.precision], cpu=device.type == "cpu")
    model: Any = base.denoiser(device, settle_in(quantise, device))
    parameters = adapt(base, model, targets, 16)
    model.enable_gradient_checkpointing()
    model.train()
    optimizer = make_optimizer(parameters, device)
    schedule = get_scheduler("constant", optimizer=optimizer)
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    batches, place = cached_batches(base, batch, device), 0
    loss_of = make_loss(base, device)

    def step() -> Tensor:
        nonlocal place
        cached, place = batches[place % len(batches)], place + 1
        with accelerator.accumulate(model):
            loss = loss_of(model, cached)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        return torch.tensor(loss.detach().item())  # read for the progress bar, at every step

    return step


def make_optimizer(parameters: Sequence[nn.Parameter], device: torch.device) -> Any:
    """`--use_8bit_adam` where it runs."""
    options = {"lr": RATE, "betas": (0.9, 0.999), "weight_decay": 1e-4, "eps": 1e-8}
    if device.type != "cuda":
        return torch.optim.AdamW(parameters, **options)
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(parameters, **options)


def cached_batches(base: RandomBase, batch: int, device: torch.device) -> list[Cached]:
    """The training set's pictures in batches, as `--cache_latents` leaves them."""
    data, found = base.training_set(0), []
    for first in range(0, len(data.samples), batch):
        numbers = [number % len(data.samples) for number in range(first, first + batch)]
        one = data.batch(numbers, 0, 0).to(device)
        width, height = one.sizes.target
        ids = [
            (original[1], original[0], crop[1], crop[0], height, width)
            for original, crop in zip(one.sizes.original, one.sizes.crop, strict=True)
        ]
        found.append(
            Cached(
                mean=one.mean.float(),
                std=one.std.float(),
                prompt_embeds=one.text["prompt_embeds"].to(base.dtype),
                pooled=one.text["pooled_prompt_embeds"].to(base.dtype),
                time_ids=torch.tensor(ids, device=device).to(base.dtype),
            )
        )
    return found


Loss = Callable[[Any, Cached], Tensor]


def make_loss(base: RandomBase, device: torch.device) -> Loss:
    """The loss of the family's script, its draws included."""
    if base.family.OBJECTIVE == "ddpm":
        return _ddpm_loss(base)
    return _flow_loss(base, device)


def _sample(base: RandomBase, cached: Cached) -> Tensor:
    """latent_dist.sample(), scaled, in the weights' format."""
    vae = base.configs["vae"]
    raw = cached.mean + cached.std * torch.randn_like(cached.mean)
    return ((raw - (vae.get("shift_factor") or 0.0)) * vae["scaling_factor"]).to(base.dtype)


def _ddpm_loss(base: RandomBase) -> Loss:
    """The SDXL script's."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_config(dict(base.configs["scheduler"]))

    def loss(model: Any, cached: Cached) -> Tensor:
        latents = _sample(base, cached)
        noise = torch.randn_like(latents)
        total = scheduler.config.num_train_timesteps
        timesteps = torch.randint(0, total, (len(latents),), device=latents.device).long()
        noisy = scheduler.add_noise(latents, noise, timesteps)
        conditions = {"time_ids": cached.time_ids, "text_embeds": cached.pooled}
        pred = model(noisy, timesteps, cached.prompt_embeds, added_cond_kwargs=conditions, return_dict=False)[0]
        return functional.mse_loss(pred.float(), noise.float(), reduction="mean")

    return loss


def _flow_loss(base: RandomBase, device: torch.device) -> Loss:
    """The scripts' of SD 3 and Flux, which differ in packing, guidance, and what the loss compares."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
    from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(base.configs["scheduler"]))
    packed = "Flux" in base.family.PIPELINE
    scheme = "none" if packed else "logit_normal"

    def sigmas_of(timesteps: Tensor, like: Tensor) -> Tensor:
        sigmas = scheduler.sigmas.to(device=device, dtype=like.dtype)
        schedule = scheduler.timesteps.to(device)
        places = [(schedule == timestep).nonzero().item() for timestep in timesteps]
        return sigmas[places].flatten().view(-1, 1, 1, 1)

    def predict_packed(model: Any, noisy: Tensor, timesteps: Tensor, cached: Cached) -> Tensor:
        count, channels, height, width = noisy.shape
        ids = FluxPipeline._prepare_latent_image_ids(count, height // 2, width // 2, device, base.dtype)
        guidance = None
        if base.denoiser_config.get("guidance_embeds"):
            guidance = torch.tensor([GUIDANCE], device=device).expand(count)
        pred = model(
            hidden_states=FluxPipeline._pack_latents(noisy, count, channels, height, width),
            timestep=timesteps / 1000,
            guidance=guidance,
            pooled_projections=cached.pooled,
            encoder_hidden_states=cached.prompt_embeds,
            txt_ids=torch.zeros(cached.prompt_embeds.shape[1], 3, device=device, dtype=base.dtype),
            img_ids=ids,
            return_dict=False,
        )[0]
        factor = base.side // width
        unpacked: Tensor = FluxPipeline._unpack_latents(pred, height * factor, width * factor, factor)
        return unpacked

    def predict(model: Any, noisy: Tensor, timesteps: Tensor, cached: Cached) -> Tensor:
        pred: Tensor = model(
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=cached.prompt_embeds,
            pooled_projections=cached.pooled,
            return_dict=False,
        )[0]
        return pred

    def loss(model: Any, cached: Cached) -> Tensor:
        latents = _sample(base, cached)
        noise = torch.randn_like(latents)
        draws = compute_density_for_timestep_sampling(scheme, len(latents), 0.0, 1.0, 1.29)
        timesteps = scheduler.timesteps[(draws * scheduler.config.num_train_timesteps).long()].to(device)
        sigmas = sigmas_of(timesteps, latents)
        noisy = (1.0 - sigmas) * latents + sigmas * noise
        pred = (predict_packed if packed else predict)(model, noisy, timesteps, cached)
        target = noise - latents
        if not packed:  # --precondition_outputs 1
            pred, target = pred * -sigmas + noisy, latents
        weight = compute_loss_weighting_for_sd3(scheme, sigmas=sigmas)
        return (weight.float() * (pred.float() - target.float()) ** 2).reshape(len(target), -1).mean(1).mean()

    return loss
