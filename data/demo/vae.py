"""Train a small AutoencoderKL on drawings of everything, on one GPU.

    python -m data.demo.vae FAMILY FOLDER --drawings drawings.zip --minutes 4

It learns from icons of every kind on every ground, neon outlines among them (of drawings that have no caption in
the demo). Writes FOLDER/vae with scaling_factor and shift_factor such that latents have about unit size.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.demo.drawings import read_pack
from data.demo.layouts import make_vae, save_model, write
from data.demo.scenes import lay_over, load_sprites, place

SEED, BATCH, LEARNING_RATE, DECAY = 1, 128, 1e-3, 0.998
KL_WEIGHT = {4: 2e-6, 16: 8e-6}  # by channels: sixteen carry more noise than a small transformer can model
SIZES = ((64, 64), (64, 64), (64, 64), (128, 128))  # mostly close-ups, at a quarter of the cost
NEON_SHARE = 0.25


def random_grounds(count: int, size: tuple[int, int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Grounds of one colour, or running from one to another => [B, 3, H, W], 0..1."""
    ends = torch.rand(2, count, 3, 1, 1, generator=generator, device=device)
    ends[:, : count // 3] = ends[:, : count // 3] * 0.3 + 0.7  # a third light, a quarter dark
    ends[:, -count // 4 :] *= 0.25
    if torch.rand(1, generator=generator, device=device) < 0.7:
        ends[1] = ends[0]
    ramp = torch.linspace(0, 1, size[1], device=device).view(1, 1, -1, 1)
    return (ends[0] * (1 - ramp) + ends[1] * ramp).expand(count, 3, size[1], size[0])


def draw_pictures(sprites: Tensor, lights: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A batch of pictures [BATCH, 3, H, W] in [-1, 1]; the last ones neon on dark."""
    device = sprites.device
    neon = int(BATCH * NEON_SHARE)
    some = sprites[torch.randint(len(sprites), (BATCH - neon,), generator=generator, device=device)]
    lit = lights[torch.randint(len(lights), (neon,), generator=generator, device=device)]
    flipped = torch.cat([some, lit])
    if torch.rand(1, generator=generator, device=device) < 0.5:
        flipped = flipped.flip(-1)
    close = 128 / size[0]
    placed = place(flipped, size, generator, scale=(0.6 * close, 1.1 * close), turn=0.3)
    return lay_over(placed, random_grounds(BATCH, size, generator, device))


def edges(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbours, across and down."""
    return pictures[..., 1:] - pictures[..., :-1], pictures[..., 1:, :] - pictures[..., :-1, :]


def reconstruction_loss(decoded: Tensor, pictures: Tensor) -> Tensor:
    """Mean absolute error of pixels and, at two scales, of edges: what the eye sees of a drawing."""
    loss = (decoded - pictures).abs().mean()
    for _ in range(2):
        loss = loss + sum((a - b).abs().mean() for a, b in zip(edges(decoded), edges(pictures), strict=True))
        decoded, pictures = (torch.nn.functional.avg_pool2d(x, 2) for x in (decoded, pictures))
    return loss


def kl_of_128(posterior: Any) -> Tensor:
    """Mean divergence from N(0, 1) in nats, as of a picture of 128 x 128, whatever the size."""
    height, width = posterior.mean.shape[-2:]
    kl: Tensor = posterior.kl().float().mean() * (16 * 16 / (height * width))
    return kl


def train(family: str, drawings: Path, minutes: float, device: torch.device) -> tuple[Any, dict[str, Any]]:
    """The trained VAE (a moving average of its weights) and what it reached."""
    torch.manual_seed(SEED)
    pack = read_pack(drawings)
    coloured = {
        f"{kind}/{name}": rgba for kind, icons in pack.items() if "neon" not in kind for name, rgba in icons.items()
    }
    sprites, lights = load_sprites(coloured, device), load_sprites(pack["other-neon"], device)
    generator = torch.Generator(device).manual_seed(SEED)
    vae = make_vae(family).to(device, memory_format=torch.channels_last)
    kl_weight = KL_WEIGHT[vae.config.latent_channels]
    average = copy.deepcopy(vae)
    if device.type == "cuda":
        vae.encoder.compile(dynamic=False)
        vae.decoder.compile(dynamic=False)
    parameters, averaged = list(vae.parameters()), list(average.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4, fused=device.type == "cuda"
    )
    start, step, share = time.monotonic(), 0, 0.0
    while share < 1:
        share = min(1.0, (time.monotonic() - start) / (60 * minutes))
        rate = LEARNING_RATE * min(1, step / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        pictures = draw_pictures(sprites, lights, SIZES[step % len(SIZES)], generator)
        with torch.autocast(device.type, torch.bfloat16):
            posterior = vae.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist
            decoded = vae.decode(posterior.sample()).sample.float()
        loss = reconstruction_loss(decoded, pictures) + kl_weight * kl_of_128(posterior)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averaged, parameters, 1 - min(DECAY, (1 + step) / (10 + step)))
        step += 1
        if step % 500 == 0:
            print(f"vae {family}: step {step}, {100 * share:.0f} %, loss {loss.item():.4f}", flush=True)
    trained = average.eval()
    print(f"vae {family}: {step} steps", flush=True)
    report = {"steps": step, "minutes": minutes} | measure(trained, sprites, lights, generator)
    print(f"vae {family}: {json.dumps(report)}", flush=True)
    return trained, report


@torch.no_grad()
def measure(vae: Any, sprites: Tensor, lights: Tensor, generator: torch.Generator) -> dict[str, Any]:
    """PSNR in dB of coloured and of neon pictures; means and standard deviations of latents and posteriors."""
    errors: list[Tensor] = []
    latents, spreads = [], []
    for _ in range(8):
        pictures = draw_pictures(sprites, lights, (128, 128), generator)
        posterior = vae.encode(pictures).latent_dist
        mean = posterior.mean
        spreads.append(posterior.std)
        decoded = vae.decode(mean).sample.clamp(-1, 1)
        errors.append(((decoded - pictures) / 2).square().mean(dim=(1, 2, 3)))
        latents.append(mean)
    psnr = -10 * torch.stack(errors).log10()
    neon = int(BATCH * NEON_SHARE)
    together = torch.cat(latents)
    return {
        "psnr": psnr[:, :-neon].mean().item(),
        "psnr_neon": psnr[:, -neon:].mean().item(),
        "latent_mean": together.mean().item(),
        "latent_std": together.std().item(),
        "channel_std": [round(x, 3) for x in together.std(dim=(0, 2, 3)).tolist()],
        "posterior_std": [round(x, 3) for x in torch.cat(spreads).mean(dim=(0, 2, 3)).tolist()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small VAE on drawings.")
    parser.add_argument("family", choices=("sdxl", "sd35", "flux"))
    parser.add_argument("folder", type=Path, help="where vae/ goes")
    parser.add_argument("--drawings", type=Path, required=True, help="zip of data/demo/drawings.py")
    parser.add_argument("--minutes", type=float, default=4.0)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    vae, report = train(arguments.family, arguments.drawings, arguments.minutes, device)
    shifted = arguments.family != "sdxl"  # SDXL's pipeline knows no shift
    scale = {
        "scaling_factor": round(1 / report["latent_std"], 4),
        "shift_factor": round(report["latent_mean"], 4) if shifted else None,
    }
    vae.register_to_config(**scale)
    save_model(vae, arguments.folder / "vae")
    write(arguments.folder / "vae.report.json", dict(report))


if __name__ == "__main__":
    main()
