"""The VAE as the cache runs it: on its device, in its number format, compiled or in tiles, pixels in, posterior out.

Shapes: B pictures of H x W pixels, C channels; F is the VAE's factor.
"""

from typing import TYPE_CHECKING, Any, Protocol

from eridiff.caching.latents.tiles import encode_tiled

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SCORES_TOKENS = 128 * 128  # tokens of a picture of 1 megapixel: 0.5 GiB of scores in bf16


class VaeParams(Protocol):
    """What of the params decides the VAE's numbers."""

    @property
    def dtype(self) -> str:
        """Name of the number format."""

    @property
    def keep(self) -> str:
        """mean_std, or the mean alone."""

    @property
    def tf32(self) -> bool:
        """TF32 for fp32 products on CUDA."""

    @property
    def channels_last(self) -> bool:
        """Memory format."""

    @property
    def compile(self) -> bool:
        """Whether the encoder is compiled."""

    @property
    def tile(self) -> int | None:
        """Side in pixels above which pictures are encoded in tiles."""


def prepare_vae(vae: "nn.Module", params: VaeParams, device: "torch.device") -> "nn.Module":
    """Move the VAE to the device and set what the params ask for."""
    import torch

    from eridiff.models.precision import compile_fixed_shapes, fix_threads, use_tf32

    fix_threads(device)
    use_tf32(params.tf32)
    vae = vae.to(device)
    if device.type != "cpu" and hasattr(vae, "set_attn_processor"):
        vae.set_attn_processor(PictureAttention())  # type: ignore[operator]
    if params.channels_last:
        vae = vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if params.compile:
        compile_fixed_shapes([vae.get_submodule("encoder")])
    return vae


class PictureAttention:
    """The attention in a VAE's middle: one head of 512 channels, which fused kernels serve badly.

    With all scores of a picture in memory it takes a third of their time (docs/benchmarks.md), one picture at a time
    so that memory does not grow with the batch; pictures with more than SCORES_TOKENS tokens take the fused kernel.
    Set by diffusers' set_attn_processor; does what AttnProcessor2_0 does for modules without text, masks or norms of
    queries and keys, as all of an AutoencoderKL's are.
    """

    def __call__(self, attn: Any, hidden_states: "Tensor", temb: None = None, **_: None) -> "Tensor":
        """Features [B, C, H, W] => the same shape, residual added."""
        x_BLC = attn.group_norm(hidden_states.flatten(2)).transpose(1, 2)
        query, key, value = attn.to_q(x_BLC), attn.to_k(x_BLC), attn.to_v(x_BLC)
        y_BLC = attn.to_out[1](attn.to_out[0](attend(query, key, value, heads=attn.heads)))
        y_BCHW = y_BLC.transpose(1, 2).reshape(hidden_states.shape)
        if attn.residual_connection:
            y_BCHW = y_BCHW + hidden_states
        answer: Tensor = y_BCHW / attn.rescale_output_factor
        return answer


def attend(query_BLC: "Tensor", key_BLC: "Tensor", value_BLC: "Tensor", *, heads: int) -> "Tensor":
    """Attention over L tokens [B, L, C]."""
    import torch

    if heads == 1 and query_BLC.shape[1] <= SCORES_TOKENS:
        scale = query_BLC.shape[-1] ** -0.5
        triples = zip(query_BLC * scale, key_BLC, value_BLC, strict=True)
        return torch.stack([(q @ k.T).softmax(-1) @ v for q, k, v in triples])
    batch, tokens, _ = query_BLC.shape
    q, k, v = (x.view(batch, tokens, heads, -1).transpose(1, 2) for x in (query_BLC, key_BLC, value_BLC))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def pixels_from_bytes(bytes_BHWC: "Tensor") -> "Tensor":
    """uint8 [B, H, W, 3] => pixels [B, 3, H, W] in [-1, 1], fp32, contiguous, on the same device with the same bits.

    A device may divide otherwise than a CPU does, by a product with the reciprocal: there the 256 values are looked up.
    """
    import torch

    bytes_BCHW = bytes_BHWC.permute(0, 3, 1, 2).contiguous()  # else strides are channels_last
    if bytes_BCHW.device.type == "cpu":
        return bytes_BCHW.float() / 127.5 - 1
    values = torch.arange(256, dtype=torch.float32) / 127.5 - 1
    return values.to(bytes_BCHW.device)[bytes_BCHW.int()]


def encode(vae: Any, pixels_BCHW: "Tensor", params: VaeParams) -> "dict[str, Tensor]":
    """Raw pixels => raw posterior: mean and std [B, C, H/F, W/F] in the params' number format.

    Pictures larger than `params.tile` a side go through the VAE in tiles.
    An autoencoder without a posterior (AutoencoderTiny) has std 0.
    """
    import torch

    from eridiff.models.precision import DTYPES

    pixels_BCHW = pixels_BCHW.to(DTYPES[params.dtype])
    with torch.inference_mode():
        if params.tile is not None and max(pixels_BCHW.shape[2:]) > params.tile:
            found = encode_tiled(lambda part: _posterior(vae, part, params), pixels_BCHW, params.tile)
        else:
            found = _posterior(vae, pixels_BCHW, params)
    return {"mean": found["mean"]} if params.keep == "mean" else found


def _posterior(vae: Any, pixels_BCHW: "Tensor", params: VaeParams) -> "dict[str, Tensor]":
    """Mean and std of what the VAE sees whole."""
    import torch

    if params.channels_last:
        pixels_BCHW = pixels_BCHW.contiguous(memory_format=torch.channels_last)
    encoded = vae.encode(pixels_BCHW)
    if hasattr(encoded, "latent_dist"):
        return {"mean": encoded.latent_dist.mean, "std": encoded.latent_dist.std}
    return {"mean": encoded.latents, "std": torch.zeros_like(encoded.latents)}
