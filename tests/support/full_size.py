"""The real denoisers at full size on the meta device: names and shapes, no weights."""

from functools import cache
from typing import Any

import torch
from torch import nn

# The published config.json of each, as far as it decides names and shapes.
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD35_MEDIUM: dict[str, Any] = {
    "sample_size": 128,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
SD35_LARGE: dict[str, Any] = {
    **SD35_MEDIUM,
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 192,
    "dual_attention_layers": (),
}
FLUX_DEV: dict[str, Any] = {
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}
FULL_SIZE = {
    "sdxl": ("sdxl", "UNet2DConditionModel", SDXL),
    "sd35-medium": ("sd35", "SD3Transformer2DModel", SD35_MEDIUM),
    "sd35-large": ("sd35", "SD3Transformer2DModel", SD35_LARGE),
    "flux-dev": ("flux", "FluxTransformer2DModel", FLUX_DEV),
}


@cache
def full_size(name: str) -> nn.Module:
    """A denoiser of FULL_SIZE, on the meta device."""
    import diffusers

    _, kind, config = FULL_SIZE[name]
    with torch.device("meta"):
        model: nn.Module = getattr(diffusers, kind)(**config)
    return model


@cache
def linear_modules(name: str) -> dict[str, tuple[int, int]]:
    """Linear module -> (outputs, inputs) of a denoiser of FULL_SIZE."""
    modules = full_size(name).named_modules()
    return {path: (m.out_features, m.in_features) for path, m in modules if isinstance(m, nn.Linear)}
