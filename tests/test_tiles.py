"""Tiles: they cover, they are of one size, and what they change is stated.

How to read the figures: an error is given in standard deviations of the whole picture's latents. Two causes add up.
At a tile's edge the VAE sees a border where the picture goes on; the blend hides most of it, and `local` measures what
is left, with a VAE that looks at its neighbourhood alone. And a VAE normalises over all that it sees, so each tile has
other statistics than the picture: that part grows with how much the parts of a picture differ, and with random weights
it is at its largest. Trained weights keep it small; run `python -m tests.test_tiles FOLDER` on a VAE of your own.
"""

import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from eridiff.params_latents import LatentParams
from eridiff.tiles import FACTOR, encode_tiled, tile_starts
from eridiff.vae import encode


@given(st.integers(8, 600).map(lambda n: 8 * n), st.integers(2, 40).map(lambda n: 32 * n))
def test_tiles_cover_a_side_and_overlap(length: int, tile: int) -> None:
    starts = tile_starts(length, tile)
    assert all(start % FACTOR == 0 for start in starts)
    assert starts[0] == 0
    assert starts[-1] == max(length - tile, 0)  # no sliver at the end
    for one, two in pairwise(starts):
        assert tile - (two - one) >= tile // 4 - FACTOR
    assert len(starts) == 1 or len(starts) - 1 < (length - tile) / (0.75 * tile) + 1  # and no more than needed


def test_a_local_function_is_not_changed() -> None:
    """Means over F x F pixels, which no edge touches: tiles give them exactly, in rows and columns, any batch."""
    pixels = torch.rand(2, 3, 200, 136)

    def pool(part: Tensor) -> dict[str, Tensor]:
        assert part.shape == (2, 3, 96, 96)
        return {"mean": nn.functional.avg_pool2d(part, 8), "std": nn.functional.avg_pool2d(part, 8).half()}

    found = encode_tiled(pool, pixels, 96)
    torch.testing.assert_close(found["mean"], nn.functional.avg_pool2d(pixels, 8), rtol=0, atol=1e-6)
    assert found["std"].dtype == torch.float16
    assert found["std"].shape == (2, 3, 25, 17)


def smooth_vae(*, local: bool) -> Any:
    """A small AutoencoderKL whose 3 x 3 kernels blur, as trained ones do; local: without its normalisations."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 8, 16, 16), mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval()  # fmt: skip
    line = torch.tensor([1.0, 2.0, 1.0]) / 4
    for module in list(vae.encoder.modules()):
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.weight.data = module.weight.data.mean((2, 3), keepdim=True) * 9 * line[:, None] * line
        for name, child in module.named_children():
            if local and isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    return vae


def photograph(side: int) -> Tensor:
    """Pixels [1, 3, side, side]: soft shapes, hard edges, grain."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(1, 3, 16, 16, generator=generator)
    soft = nn.functional.interpolate(coarse, (side, side), mode="bicubic") * 0.35
    line = torch.linspace(-1, 1, side)
    edges = ((3 * line).floor()[None, :] + (5 * line).floor()[:, None]) % 2 * 0.3
    return (soft + edges + 0.03 * torch.randn(1, 3, side, side, generator=generator)).clamp(-1, 1)


def errors(vae: Any, side: int, tile: int) -> dict[str, float]:
    """Tiled against whole, in standard deviations: largest, mean, and the seam.

    seam: the mean step from one latent to the next that tiling adds just where tiles begin and end; texture: the same
    step in the whole picture, for comparison.
    """
    pixels = photograph(side)
    whole, tiled = (encode(vae, pixels, LatentParams(tile=size))["mean"] for size in (None, tile))
    spread = whole.std()
    error = (tiled - whole) / spread
    steps = error.diff(dim=-1).abs().mean((0, 1, 2))
    borders = {start // 8 for start in tile_starts(side, tile)} | {(s + tile) // 8 for s in tile_starts(side, tile)}
    seam = torch.stack([steps[place - 1] for place in borders - {0, side // 8}]).mean()
    return {
        "largest": error.abs().max().item(),
        "mean": error.abs().mean().item(),
        "seam": seam.item(),
        "texture": (whole.diff(dim=-1).abs().mean() / spread).item(),
    }


def test_tiles_of_a_small_picture() -> None:
    found = errors(smooth_vae(local=True), 384, 192)
    assert 0 < found["largest"] < 0.01
    assert found["seam"] < 0.002


@pytest.mark.e2e
def test_tiles_at_2048_pixels() -> None:
    """Tiles of 512: their edges cost 0.004 standard deviations at worst and leave a seam of 0.001."""
    local, whole = errors(smooth_vae(local=True), 2048, 512), errors(smooth_vae(local=False), 2048, 512)
    print(f"\nlocal: {local}\nwith normalisation over each tile: {whole}")
    assert 0 < local["largest"] < 0.006
    assert local["mean"] < 1e-4
    assert local["seam"] < 0.0015
    assert whole["mean"] < 0.3
    assert whole["largest"] < 7
    assert whole["seam"] < 1.1 * whole["texture"]


if __name__ == "__main__":
    from diffusers import AutoencoderKL

    print(errors(AutoencoderKL.from_pretrained(sys.argv[1]).eval(), 2048, 512))
