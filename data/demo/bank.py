"""All training pictures of a base as latents, and their captions as token numbers.

Legend: B batch, C H W latents. Numbers of captions stand wherever captions go into encode_text.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.demo.captions import caption, ground_of
from data.demo.drawings import STYLES, SUBJECTS
from data.demo.scenes import ground_colours, lay_over, load_sprites, place

SEED = 2
SIZES = ((128, 128), (128, 128), (128, 128), (160, 96), (96, 160))  # (width, height); the bank's shares
ROUNDS, CAPTIONS = 10, 4  # pictures of a subject in a style for each entry of SIZES; captions a picture


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
    """The VAE's posteriors, by size, and the numbers of their captions."""

    mean: dict[tuple[int, int], Tensor]  # size -> [B, C, H, W], scaled
    std: dict[tuple[int, int], Tensor]
    captions: dict[tuple[int, int], Tensor]  # size -> [B, CAPTIONS]
    texts: list[str]  # number 0 is the empty caption

    def draw(self, size: tuple[int, int], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents [count, C, H, W], drawn from their posteriors, and a caption's number of each."""
        mean, device = self.mean[size], generator.device
        rows = torch.randint(len(mean), (count,), generator=generator, device=device)
        which = torch.randint(CAPTIONS, (count,), generator=generator, device=device)
        noise = torch.randn((count, *mean.shape[1:]), generator=generator, device=device)
        return mean[rows] + self.std[size][rows] * noise, self.captions[size][rows, which]


@torch.no_grad()
def make_bank(pack: dict[str, dict[str, np.ndarray]], vae: Any, device: torch.device) -> Bank:
    """Every subject in every style, many times, on many grounds."""
    generator, draw = torch.Generator(device).manual_seed(SEED), random.Random(SEED)
    means: dict[tuple[int, int], list[Tensor]] = {size: [] for size in SIZES}
    stds: dict[tuple[int, int], list[Tensor]] = {size: [] for size in SIZES}
    numbers: dict[tuple[int, int], list[list[int]]] = {size: [] for size in SIZES}
    texts = [""]
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
    for style in STYLES:
        sprites = load_sprites({name: pack[style][name] for name in SUBJECTS}, device)
        for size in SIZES * ROUNDS:
            grounds = [ground_of(style, draw) for _ in SUBJECTS]
            placed = place(sprites, size, generator, scale=(0.74, 0.9), turn=0.08)
            posterior = vae.encode(lay_over(placed, ground_colours(grounds, generator, device))).latent_dist
            means[size].append((posterior.mean - shift) * scale)
            stds[size].append(posterior.std * scale)
            for subject, ground in zip(SUBJECTS, grounds, strict=True):
                numbers[size].append(list(range(len(texts), len(texts) + CAPTIONS)))
                texts += [caption(subject, style, ground, draw) for _ in range(CAPTIONS)]
    return Bank(
        mean={size: torch.cat(parts) for size, parts in means.items()},
        std={size: torch.cat(parts) for size, parts in stds.items()},
        captions={size: torch.tensor(rows, device=device) for size, rows in numbers.items()},
        texts=texts,
    )
