"""The drift check's measurement of the VAE: a fixed picture, and some numbers of its posterior."""

from typing import TYPE_CHECKING

from eridiff.caching.drift_records import Encoder, Values, name_precision, some_values
from eridiff.caching.latents.vae import encode, prepare_vae
from eridiff.params.latents import LatentParams
from eridiff.weights.nonfinite import blame
from eridiff.weights.pointers import Pointer

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SIDE = 64  # of the fixed picture, in pixels


def vae_encoder(pointer: Pointer, params: LatentParams, version: int) -> Encoder:
    """The VAE of a base, as the section `latents` runs it. version: the family's vae_encode."""
    precision = {name: getattr(params, name) for name in ("dtype", "tf32", "channels_last", "tile")}
    return Encoder(
        stage="latents",
        name=f"the VAE of {pointer.base}",
        identity={"vae": pointer.components["vae"].identity(), "params": precision, "version": version},
        precision=name_precision(params.dtype, params.tf32),
    )


def vae_drift_values(params: LatentParams, vae: "nn.Module", device: "torch.device") -> Values:
    """Some numbers of the posterior of a fixed picture; not compiled, tiled where the params say so.

    Raises: DataError where they are not finite.
    """
    params = params.model_copy(update={"compile": False, "keep": "mean_std"})
    vae = prepare_vae(vae, params, device)
    width = SIDE if params.tile is None else params.tile + params.tile // 2 // SIDE * SIDE + SIDE

    def work() -> "dict[str, Tensor]":
        return encode(vae, drift_picture(width).to(device), params)

    return some_values(work, "the VAE", lambda: blame({"vae": vae}, "latents.dtype", params.dtype, work))


def drift_picture(width: int) -> "Tensor":
    """Pixels [1, 3, 64, width] in [-1, 1]: ramps, edges and a coarse noise, from whole numbers alone."""
    import torch

    columns, rows = torch.arange(width)[None, :], torch.arange(SIDE)[:, None]
    red = (columns * 255 // (width - 1)).expand(SIDE, width)
    green = ((rows * 37 + columns * 91 + rows * columns * 7) % 251).int()
    blue = ((rows // 8 + columns // 8) % 2 * 200 + rows % 32).int()
    return torch.stack([red.int(), green, blue])[None].float() / 127.5 - 1
