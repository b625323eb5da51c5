"""Encoding in overlapping tiles: less memory for large pictures, at the cost of exactness.

A VAE normalises over, and attends to, all that it sees, so a tile's latents are not those of the whole picture. Tiles
are all of one size and spread evenly, so that none is a sliver at an edge and one compiled graph serves all; where
they overlap, by a quarter or more, they are blended with weights that fall to the tile's edge.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TILING = 2  # in the keys of what is encoded in tiles: raised when tiles are laid or blended in another way
FACTOR = 8  # tiles begin at multiples of this many pixels, of which a latent is made
Encode = Callable[["Tensor"], "dict[str, Tensor]"]


def tile_starts(length: int, tile: int) -> list[int]:
    """Where tiles begin along a side, in pixels; evenly spread, neighbours overlap by about a quarter or more."""
    if length <= tile:
        return [0]
    count = -(-4 * (length - tile) // (3 * tile)) + 1
    return [(length - tile) * place // (count - 1) // FACTOR * FACTOR for place in range(count)]


def encode_tiled(encode: Encode, pixels_BCHW: "Tensor", tile: int) -> "dict[str, Tensor]":
    """encode(pixels) for pictures larger than `tile` pixels a side: by tiles, blended in fp32.

    encode gives tensors [B, C, H / F, W / F], F the VAE's factor.
    """
    import torch

    height, width = pixels_BCHW.shape[2:]
    sums: dict[str, Tensor] = {}
    weights = torch.zeros(())
    for top in tile_starts(height, tile):
        for left in tile_starts(width, tile):
            part = encode(pixels_BCHW[:, :, top : top + tile, left : left + tile].contiguous())
            for name, tensor in part.items():
                factor = min(tile, width) // tensor.shape[3]
                if name not in sums:
                    sums[name] = tensor.new_zeros((*tensor.shape[:2], height // factor, width // factor)).float()
                y, x, (h, w) = top // factor, left // factor, tensor.shape[2:]
                weight_HW = _window(h, tile // factor, tensor)[:, None] * _window(w, tile // factor, tensor)[None]
                sums[name][:, :, y : y + h, x : x + w] += tensor.float() * weight_HW
            if not weights.dim():
                weights = torch.zeros_like(sums[name][0, 0])
            weights[y : y + h, x : x + w] += weight_HW
    return {name: (total / weights).to(part[name].dtype) for name, total in sums.items()}


def _window(length: int, tile: int, like: "Tensor") -> "Tensor":
    """Weights along a tile's side: 1, falling over a quarter to each edge. At the picture's border it cancels out."""
    import torch

    places = torch.arange(length, device=like.device, dtype=torch.float32) + 0.5
    return torch.minimum(places, length - places).div(tile / 4).clamp(max=1)
