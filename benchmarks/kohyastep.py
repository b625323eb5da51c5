"""The step of kohya's sd-scripts (train_network.py and its families'), from a checkout of theirs, on cached tensors.

Their denoiser and network classes run as they are; the loop around them was written from reading theirs: accelerate
in bf16, fp32 adapters on every linear of the blocks (their default network; attention alone is no choice of theirs for
all families), SDPA, eight-bit AdamW, checkpointing only where activations would not fit. They store fp8, not nf4.

Legend: B batch, C H W channels and sides of latents.
"""

from collections.abc import Callable
from importlib import import_module
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from benchmarks.checkout import importing
from benchmarks.randombase import RandomBase, filled
from benchmarks.scriptloss import Cached, is_packed
from benchmarks.scriptstep import MAX_GRAD_NORM, MIXED, cached_batches, make_optimizer, settle_in
from benchmarks.steprow import Row
from eridiff.models.load import find_class

Predict = Callable[[Any, Tensor, Tensor, Cached], Tensor]
UNNEEDED = ("cv2", "torchvision")  # what it reads pictures with


def kohya_step(checkout: Path, base: RandomBase, row: Row, device: torch.device) -> Callable[[], Tensor]:
    """A function that trains one step and returns its loss."""
    from accelerate import Accelerator

    if row.script_quantise == "nf4":
        raise ValueError("sd-scripts trains on no base in four bits")
    accelerator = Accelerator(mixed_precision=MIXED[base.precision], cpu=device.type == "cpu")
    with importing(checkout, UNNEEDED):
        model, network, predict = make_models(base)
    model = filled(model, torch.Generator(device).manual_seed(0), settle_in(row.script_quantise, device))
    model.requires_grad_(False)
    if row.is_checkpointed:
        model.enable_gradient_checkpointing()
    network = make_network(network, model).to(device, torch.float32)
    optimizer = make_optimizer(network.get_trainable_params(), device)
    model, network, optimizer = accelerator.prepare(model, network, optimizer)
    accelerator.unwrap_model(network).prepare_grad_etc(None, model)
    model.train()
    batches, loss_of = cycle(cached_batches(base, row.batch, device)), make_loss(base, predict)

    def step() -> Tensor:
        with accelerator.accumulate(network):
            loss = loss_of(model, next(batches))
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(accelerator.unwrap_model(network).get_trainable_params(), MAX_GRAD_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return torch.tensor(loss.detach().item())

    return step


def make_models(base: RandomBase) -> tuple[nn.Module, Any, Predict]:
    """Their denoiser without weights, the module of its network, and how it is asked."""
    with torch.device("meta"):
        if base.family.OBJECTIVE == "ddpm":
            model, network, predict = _sdxl(base), "networks.lora", predict_sdxl
        elif is_packed(base):
            model, network, predict = _flux(base), "networks.lora_flux", predict_flux
        else:
            model, network, predict = _sd3(base), "networks.lora_sd3", predict_sd3
    return model.to(base.dtype), import_module(network), predict


def make_network(network: Any, model: nn.Module) -> Any:
    """Their LoRA of rank 16 on the denoiser."""
    made = network.create_network(1.0, 16, 16.0, None, [], model)
    made.apply_to([], model, False, True)
    return made


def _sdxl(base: RandomBase) -> nn.Module:
    """Their UNet has the published sizes alone."""
    if base.denoiser_config["block_out_channels"] != [320, 640, 1280]:
        raise ValueError("sd-scripts' UNet of SDXL has the published sizes alone")
    model: nn.Module = find_class("library.sdxl_original_unet.SdxlUNet2DConditionModel")()
    model.set_use_sdpa(True)  # type: ignore[operator]
    return model


def _flux(base: RandomBase) -> nn.Module:
    """Their Flux of the config's sizes."""
    config = base.denoiser_config
    params = find_class("library.flux_models.FluxParams")(
        in_channels=config["in_channels"],
        vec_in_dim=config["pooled_projection_dim"],
        context_in_dim=config["joint_attention_dim"],
        hidden_size=config["num_attention_heads"] * config["attention_head_dim"],
        mlp_ratio=4.0,
        num_heads=config["num_attention_heads"],
        depth=config["num_layers"],
        depth_single_blocks=config["num_single_layers"],
        axes_dim=list(config.get("axes_dims_rope", (16, 56, 56))),
        theta=10_000,
        qkv_bias=True,
        guidance_embed=config["guidance_embeds"],
    )
    model: nn.Module = find_class("library.flux_models.Flux")(params)
    return model


def _sd3(base: RandomBase) -> nn.Module:
    """Their MMDiT, as wide as it is deep."""
    config = base.denoiser_config
    if (config["num_layers"], config["attention_head_dim"]) != (config["num_attention_heads"], 64):
        raise ValueError("sd-scripts' MMDiT has a head of 64 a layer")
    params = find_class("library.sd3_models.SD3Params")(
        patch_size=2,
        depth=config["num_layers"],
        num_patches=config["pos_embed_max_size"] ** 2,
        pos_embed_max_size=config["pos_embed_max_size"],
        adm_in_channels=config["pooled_projection_dim"],
        qk_norm="rms",
        x_block_self_attn_layers=list(config["dual_attention_layers"]),
        context_embedder_in_features=config["joint_attention_dim"],
        context_embedder_out_features=config["caption_projection_dim"],
        model_type="3-5-large",
    )
    model: nn.Module = find_class("library.sd3_models.create_sd3_mmdit")(params, "torch")
    return model


def make_loss(base: RandomBase, predict: Predict) -> Callable[[Any, Cached], Tensor]:
    """The squared error to the noise (SDXL), or to the velocity at sigmoid-normal noise levels."""
    vae, is_flow = base.configs["vae"], base.family.OBJECTIVE == "flow"
    shift, scale = vae.get("shift_factor") or 0.0, vae["scaling_factor"]
    from diffusers import DDPMScheduler

    scheduler = None if is_flow else DDPMScheduler.from_config(dict(base.configs["scheduler"]))

    def loss(model: Any, cached: Cached) -> Tensor:
        latents = (cached.mean - shift) * scale  # one sample is cached for ever
        noise = torch.randn_like(latents)
        if scheduler is None:
            timesteps = torch.sigmoid(torch.randn(len(latents), device=latents.device)) * 1000
            sigma = (timesteps / 1000).view(-1, 1, 1, 1)
            noisy, target = (1 - sigma) * latents + sigma * noise, noise - latents
        else:
            timesteps = torch.randint(0, 1000, (len(latents),), device=latents.device)
            noisy, target = scheduler.add_noise(latents, noise, timesteps), noise
        pred = predict(model, noisy.to(base.dtype), timesteps, cached)
        return ((pred.float() - target.float()) ** 2).mean(dim=(1, 2, 3)).mean()

    return loss


def predict_sdxl(model: Any, noisy: Tensor, timesteps: Tensor, cached: Cached) -> Tensor:
    """Sizes are embedded beside the pooled text."""
    embed = find_class("diffusers.models.embeddings.get_timestep_embedding")
    sizes = embed(cached.time_ids.flatten().float(), 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    vector = torch.cat([cached.pooled, sizes.reshape(len(noisy), -1).to(cached.pooled)], dim=1)
    pred: Tensor = model(noisy, timesteps, cached.prompt_embeds, vector)
    return pred


def predict_sd3(model: Any, noisy: Tensor, timesteps: Tensor, cached: Cached) -> Tensor:
    """The MMDiT's answer."""
    pred: Tensor = model(noisy, timesteps, context=cached.prompt_embeds, y=cached.pooled)
    return pred


def predict_flux(model: Any, noisy: Tensor, timesteps: Tensor, cached: Cached) -> Tensor:
    """Flux's answer, at guidance 1.0, which they advise."""
    count, _, height, width = noisy.shape
    rows, columns = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
    ids = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).to(noisy.device).float()
    embeds = cached.prompt_embeds
    pred: Tensor = model(
        img=rearrange(noisy, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2),
        img_ids=repeat(ids, "h w c -> b (h w) c", b=count),
        txt=embeds,
        txt_ids=torch.zeros(count, embeds.shape[1], 3, device=noisy.device),
        timesteps=timesteps / 1000,
        y=cached.pooled,
        guidance=torch.ones(count, device=noisy.device),
    )
    return rearrange(pred, "b (h w) (c p q) -> b c (h p) (w q)", h=height // 2, w=width // 2, p=2, q=2)
