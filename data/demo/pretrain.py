"""Train one of the demo's bases, text encoders and denoiser together, on one GPU.

    python -m data.demo.pretrain FOLDER --drawings drawings.zip --minutes 8

FOLDER is a layout (data/demo/layouts.py) with its trained VAE. What is trained is the sum over SUBJECTS and styles
in data/demo/drawings.py; no neon outline is among it. The family's own code encodes text and predicts.

Legend: B batch, C H W latents, ids of captions instead of captions wherever "captions" goes into encode_text.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data.demo.captions import caption, grounds_of
from data.demo.drawings import STYLES, SUBJECTS, read_pack
from data.demo.layouts import PARTS, save_model, write
from data.demo.scenes import ground_colours, lay_over, load_sprites, place
from eridiff.families import Sizes, TextEncoders, load_family
from eridiff.objectives import alphas_cumprod

SEED, BATCH, LEARNING_RATE, WARM_UP, DROPOUT, DECAY = 2, 512, 1e-3, 200, 0.1, 0.999
SIZES = ((128, 128), (128, 128), (128, 128), (160, 96), (96, 160))  # the bank's shares
ROUNDS, CAPTIONS = 10, 4  # pictures of a subject in a style for each entry of SIZES; captions a picture
DISTILLED = 0.35  # last part of a guidance-distilled base's training: it learns its own guided answers
GUIDANCE = (1.0, 4.5)


class TokenBank:
    """A tokenizer that was asked beforehand: it stands where a tokenizer does, and takes numbers for captions."""

    def __init__(self, tokenizer: Any, captions: list[str], device: torch.device) -> None:
        self.model_max_length = 77
        encoded = tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        self.ids = encoded.input_ids.to(device)

    def __call__(self, numbers: Tensor, **_: Any) -> Any:
        return argparse.Namespace(input_ids=self.ids[numbers])


@dataclass
class Bank:
    """All training pictures as latents, by size, and the numbers of their captions."""

    latents: dict[tuple[int, int], Tensor]  # size -> [B, C, H, W], scaled
    captions: dict[tuple[int, int], Tensor]  # size -> [B, CAPTIONS]
    texts: list[str]  # number 0 is the empty caption


@torch.no_grad()
def make_bank(pack: dict[str, dict[str, np.ndarray]], vae: Any, device: torch.device) -> Bank:
    """Every subject in every style, many times, on many grounds."""
    generator, draw = torch.Generator(device).manual_seed(SEED), random.Random(SEED)
    latents: dict[tuple[int, int], list[Tensor]] = {size: [] for size in SIZES}
    numbers: dict[tuple[int, int], list[list[int]]] = {size: [] for size in SIZES}
    texts = [""]
    for style in STYLES:
        sprites = load_sprites({name: pack[style][name] for name in SUBJECTS}, device)
        for size in SIZES * ROUNDS:
            grounds = [draw.choice(grounds_of(style)) for _ in SUBJECTS]
            placed = place(sprites, size, generator, scale=(0.74, 0.9), turn=0.08)
            pictures = lay_over(placed, ground_colours(grounds, generator, device))
            mean = vae.encode(pictures).latent_dist.mean
            latents[size].append((mean - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor)
            for subject, ground in zip(SUBJECTS, grounds, strict=True):
                numbers[size].append(list(range(len(texts), len(texts) + CAPTIONS)))
                texts += [caption(subject, style, ground, draw) for _ in range(CAPTIONS)]
    return Bank(
        latents={size: torch.cat(parts) for size, parts in latents.items()},
        captions={size: torch.tensor(rows, device=device) for size, rows in numbers.items()},
        texts=texts,
    )


@dataclass
class Base:
    """What is trained."""

    family: Any
    encoders: TextEncoders
    denoiser: nn.Module
    scheduler: dict[str, Any]
    zeros: bool  # whether its pipeline puts zeros in place of the empty prompt's embeddings

    def copy(self) -> Base:
        """The same weights in modules of their own; tokens are shared."""
        encoders = {name: copy.deepcopy(encoder) for name, encoder in self.encoders.encoders.items()}
        text = TextEncoders(self.encoders.tokenizers, encoders)
        return Base(self.family, text, copy.deepcopy(self.denoiser), self.scheduler, self.zeros)

    def modules(self) -> list[nn.Module]:
        return [*self.encoders.encoders.values(), self.denoiser]

    def parameters(self) -> list[nn.Parameter]:
        return [p for module in self.modules() for p in module.parameters()]

    def predict(self, noisy: Tensor, level: Tensor, captions: Tensor, size: tuple[int, int], guidance: float) -> Tensor:
        """The denoiser's answer [B, C, H, W]."""
        text = self.family.encode_text(self.encoders, captions, 77)
        count = len(noisy)
        if self.zeros:  # for half of the batch, so that the encoded empty caption is learned too
            kept = (captions != 0) | (torch.arange(count, device=captions.device) % 2 == 0)
            text = {name: value * kept.view(-1, *[1] * (value.ndim - 1)) for name, value in text.items()}
        sizes = Sizes(original=[size] * count, crop=[(0, 0)] * count, target=size)
        answer: Tensor = self.family.predict(self.denoiser, noisy, level, text, sizes, guidance)
        return answer


def load_base(folder: Path, texts: list[str], device: torch.device) -> tuple[str, Base, Any]:
    """The family's name, the untrained base in fp32 with its token banks, and the trained VAE."""
    import diffusers
    import transformers

    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    name = next(family for family, parts in PARTS.items() if f"{parts[0]}Pipeline" == index["_class_name"])
    module: ModuleType = load_family(name)  # type: ignore[assignment]
    models: dict[str, Any] = {}
    tokenizers: dict[str, Any] = {}
    for part, kind in index.items():
        if isinstance(kind, list) and part.startswith("tokenizer"):
            tokenizers[part] = getattr(transformers, kind[1]).from_pretrained(folder / part)
        elif isinstance(kind, list) and part != "scheduler":
            models[part] = untrained(kind[1], folder / part).to(device)
    models.pop("vae")
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32).to(device).eval()
    denoiser = models.pop(module.DENOISER)
    banks = {part: TokenBank(tokenizer, texts, device) for part, tokenizer in tokenizers.items()}
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    zeros = index.get("force_zeros_for_empty_prompt", False)
    return name, Base(module, TextEncoders(banks, models), denoiser, scheduler, zeros), vae


def untrained(kind: str, folder: Path) -> nn.Module:
    """A model of a diffusers or transformers class as its config says, with the library's initial weights."""
    import diffusers
    import transformers

    if hasattr(diffusers, kind):
        made = getattr(diffusers, kind)
        return made.from_config(made.load_config(folder))  # type: ignore[no-any-return]
    made = getattr(transformers, kind)
    return made(made.config_class.from_pretrained(folder))  # type: ignore[no-any-return]


def start_at_rest(denoiser: nn.Module) -> None:
    """Let a transformer's modulations and last layer begin at zero, as diffusion transformers are trained."""
    with torch.no_grad():
        for name, module in denoiser.named_modules():
            if isinstance(module, nn.Linear) and (name.endswith(".linear") or name == "proj_out"):
                module.weight.zero_()
                if module.bias is not None:
                    module.bias.zero_()


class Noise:
    """Noise levels, noisy latents, targets and weights of one objective."""

    def __init__(self, base: Base, device: torch.device) -> None:
        self.flow = base.family.OBJECTIVE == "flow"
        self.abar = None if self.flow else alphas_cumprod(base.scheduler).to(device)

    def mix(self, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """latents [B, C, H, W] => noisy, level [B], target, weight [B, 1, 1, 1]."""
        count, device = len(latents), latents.device
        uniform = torch.rand(count, generator=generator, device=device)
        noise = torch.randn(latents.shape, generator=generator, device=device)
        if self.abar is None:
            normal = torch.randn(count, generator=generator, device=device)
            sigma = torch.where(uniform < 0.5, uniform * 2, torch.sigmoid(normal))
            sigma = torch.where(uniform < 0.5, sigma, 3 * sigma / (1 + 2 * sigma))  # as samplers visit them
            mixed = sigma.view(-1, 1, 1, 1)
            return (1 - mixed) * latents + mixed * noise, sigma, noise - latents, torch.ones_like(mixed)
        level = (uniform * len(self.abar)).long()
        abar = self.abar[level].view(-1, 1, 1, 1)
        # Without this weight the last steps, where a picture's mean is decided, teach too little: wrong colours.
        weight = ((1 - abar) / abar).clamp(1, 40)
        return abar.sqrt() * latents + (1 - abar).sqrt() * noise, level, noise, weight / 4


def train(base: Base, bank: Bank, minutes: float, device: torch.device) -> tuple[Base, dict[str, Any]]:
    """The trained base (a moving average of its weights), and what was logged."""
    generator = torch.Generator(device).manual_seed(SEED)
    noise = Noise(base, device)
    average = base.copy()
    teacher: Base | None = None
    parameters, averaged = base.parameters(), average.parameters()
    optimizer = torch.optim.AdamW(
        parameters, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=device.type == "cuda"
    )
    sizes = list(bank.latents)
    start, step, share, losses = time.monotonic(), 0, 0.0, []
    while share < 1:
        share = min(1.0, (time.monotonic() - start) / (60 * minutes))
        if teacher is None and base.family.GUIDANCE and share > 1 - DISTILLED:
            teacher = average.copy()
        rate = LEARNING_RATE * min(1, (step + 1) / WARM_UP) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        size = SIZES[step % len(SIZES)]
        rows = torch.randint(len(bank.latents[size]), (BATCH,), generator=generator, device=device)
        which = torch.randint(CAPTIONS, (BATCH,), generator=generator, device=device)
        captions = bank.captions[size][rows, which]
        kept = torch.rand(BATCH, generator=generator, device=device) >= DROPOUT
        noisy, level, target, weight = noise.mix(bank.latents[size][rows], generator)
        guidance = 1.0
        if teacher is None:
            captions = captions * kept
        else:
            guidance = random.Random(step).uniform(*GUIDANCE)
            target = guided(teacher, noisy, level, captions, size, guidance)
        with torch.autocast(device.type, torch.bfloat16):
            answer = base.predict(noisy, level, captions, size, guidance).float()
        loss = (weight * (answer - target).square()).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averaged, parameters, 1 - min(DECAY, (1 + step) / (10 + step)))
        step += 1
        if step % 500 == 0:
            losses.append(round(loss.item(), 4))
            print(f"step {step}, {100 * share:.0f} %, loss {losses[-1]}", flush=True)
    return average, {"steps": step, "minutes": minutes, "batch": BATCH, "losses": losses, "sizes": len(sizes)}


@torch.no_grad()
def guided(
    teacher: Base, noisy: Tensor, level: Tensor, captions: Tensor, size: tuple[int, int], scale: float
) -> Tensor:
    """What the undistilled base answers under classifier-free guidance."""
    without = teacher.predict(noisy, level, torch.zeros_like(captions), size, 1.0)
    return without + scale * (teacher.predict(noisy, level, captions, size, 1.0) - without)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small base.")
    parser.add_argument("folder", type=Path, help="a layout with its trained vae/")
    parser.add_argument("--drawings", type=Path, required=True, help="zip of data/demo/drawings.py")
    parser.add_argument("--minutes", type=float, default=8.0)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.enable_cudnn_sdp(False)  # its backward gives wrong gradients here (eridiff/precision.py)
    torch.manual_seed(SEED)
    _, _, vae = load_base(arguments.folder, [""], device)
    bank = make_bank(read_pack(arguments.drawings), vae, device)
    name, base, _ = load_base(arguments.folder, bank.texts, device)
    if base.family.OBJECTIVE == "flow":
        start_at_rest(base.denoiser)
    counts = {size: len(latents) for size, latents in bank.latents.items()}
    print(f"{name}: pictures {counts}, {sum(p.numel() for p in base.parameters()) / 1e6:.2f} M parameters", flush=True)
    trained, report = train(base, bank, arguments.minutes, device)
    for part, encoder in trained.encoders.encoders.items():
        save_model(encoder, arguments.folder / part)
    save_model(trained.denoiser, arguments.folder / base.family.DENOISER)
    write(arguments.folder / "denoiser.report.json", report)


if __name__ == "__main__":
    main()
