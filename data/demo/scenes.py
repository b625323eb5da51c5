"""Drawings set on grounds, a batch at a time on the GPU.

Legend: B batch, H W sides in pixels; sprites are RGBA with alpha multiplied in, 0..1; pictures are in [-1, 1].
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from data.demo.captions import GROUNDS


def load_sprites(drawings: dict[str, np.ndarray], device: torch.device) -> Tensor:
    """Name -> RGBA or RGB arrays => sprites [B, 4, H, W] in the names' order; RGB is light without alpha."""
    sprites = []
    for pixels in drawings.values():
        sprite = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
        if len(sprite) == 3:
            sprite = torch.cat([sprite, torch.zeros_like(sprite[:1])])
        else:
            sprite[:3] *= sprite[3:]
        sprites.append(sprite)
    return torch.stack(sprites).to(device)


def place(
    sprites: Tensor, size: tuple[int, int], generator: torch.Generator, *, scale: tuple[float, float], turn: float
) -> Tensor:
    """Sprites somewhere near the middle of canvases, each sized and turned at random => [B, 4, H, W].

    size: (width, height). scale: smallest and largest part of the shorter side. turn: largest angle in radians.
    """
    count, device = len(sprites), sprites.device
    width, height = size

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, device=device)

    shorter = min(size)
    factor, angle = draw(*scale), draw(-turn, turn)
    free_x, free_y = 1 - factor * shorter / width, 1 - factor * shorter / height
    x, y = draw(-0.35, 0.35) * free_x, draw(-0.35, 0.35) * free_y
    # affine_grid maps places of the canvas (-1..1) to places of the sprite: the inverse of how it is set.
    across, down = width / (factor * shorter), height / (factor * shorter)
    cos, sin = angle.cos(), angle.sin()
    rows = [across * cos, down * sin, -(across * cos * x + down * sin * y)]
    columns = [-across * sin, down * cos, across * sin * x - down * cos * y]
    theta = torch.stack([torch.stack(rows, dim=-1), torch.stack(columns, dim=-1)], dim=1)
    grid = torch.nn.functional.affine_grid(theta, [count, 4, height, width], align_corners=False)
    return torch.nn.functional.grid_sample(sprites, grid, mode="bilinear", align_corners=False)


def lay_over(sprites: Tensor, grounds: Tensor) -> Tensor:
    """Placed sprites over colours [B, 3] or pictures [B, 3, H, W] in 0..1 => pictures in [-1, 1].

    Opaque parts cover the ground; light without alpha (neon) is screened over it.
    """
    under = grounds.view(*grounds.shape, 1, 1) if grounds.ndim == 2 else grounds
    colour, alpha = sprites[:, :3], sprites[:, 3:]
    light = (alpha.amax(dim=(1, 2, 3), keepdim=True) == 0).float()
    covered = colour + under * (1 - alpha)
    screened = 1 - (1 - under) * (1 - colour)
    return (light * screened + (1 - light) * covered) * 2 - 1


def ground_colours(names: list[str], generator: torch.Generator, device: torch.device) -> Tensor:
    """Colours [B, 3] in 0..1 of named grounds, each a little off."""
    colours = torch.tensor([GROUNDS[name] for name in names], device=device) / 255
    noise = torch.randn(colours.shape, generator=generator, device=device)
    return (colours + 0.02 * noise).clamp(0, 1)
