"""What the encoders' benchmarks feed and run: JPEG files, captions, and full-size encoders with random weights.

Models have their published configs and are made on the device, without any file; tokenizers are those of the small
bases in git.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.benchtable import Bench, fresh
from eridiff.families import TextEncoders, load_family
from eridiff.files import digest_file
from eridiff.load import frozen

BASES = Path(__file__).parent.parent / "data" / "bases"
VAE = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32,
    "block_out_channels": (128, 256, 512, 512), "sample_size": 1024,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
VAES: dict[int, dict[str, Any]] = {
    4: VAE,
    16: {**VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
}
SMALL_VAE = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
T5_XXL = {
    "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24, "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 32,
}  # fmt: skip
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_L |= {"projection_dim": 768, "vocab_size": 49408}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
CLIP_G |= {"projection_dim": 1280, "vocab_size": 49408, "hidden_act": "gelu"}
SMALL_T5 = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2}
SMALL_CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_pictures(bench: Bench) -> list[dict[str, Any]]:
    """JPEG files of two megapixels (shapes, gradients, grain), all different; rows of buckets.parquet for them."""
    width, height = (96, 80) if bench.tiny else (1760, 1200)
    side = bench.side
    resize = (round(width * side / height), side)
    folder = fresh(bench, "raw")
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    shapes = np.stack([np.sin(x / 97) + np.cos(y / 61), np.sin((x + y) / 143), np.cos(x / 40) * np.sin(y / 200)], -1)
    grain = np.random.default_rng(0).normal(0, 9, (height, width, 3)).astype(np.float32)

    def write(number: int) -> dict[str, Any]:
        pixels = 128 + 60 * np.roll(shapes, 37 * number, axis=1) + np.roll(grain, number, axis=0)
        path = folder / f"{number:05d}.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=92)
        row: dict[str, Any] = {"path": path.name, "file_digest": digest_file(path), "repeats": 1}
        row |= {"bucket_w": side, "bucket_h": side, "resize_w": resize[0], "resize_h": resize[1]}
        row |= {"crop_left": (resize[0] - side) // 2, "crop_top": 0}
        return row | {"original_w": width, "original_h": height}

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(write, range(bench.pictures)))


def make_prompts(count: int) -> list[str]:
    """Different captions of 20 to 80 words."""
    text = "red fox jumps over lazy dog near old river under bright morning sky with soft light and long"
    words = text.split()
    return [
        f"{number} " + " ".join(words[(number * 7 + place * place) % len(words)] for place in range(20 + number % 60))
        for number in range(count)
    ]


def make_vae(bench: Bench, channels: int, dtype: torch.dtype) -> Any:
    """An AutoencoderKL with random weights on the device."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    config = {**VAES[channels], **(SMALL_VAE if bench.tiny else {})}
    with torch.device(bench.device):
        return AutoencoderKL(**config).to(dtype).eval().requires_grad_(False)


def make_encoders(bench: Bench, kind: str) -> tuple[Any, TextEncoders]:
    """A family and its text encoders with random bf16 weights on the device: 't5' (CLIP-L and T5-XXL), or 'clip'."""
    from transformers import CLIPTextConfig as ClipConfig
    from transformers import (
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        T5Config,
        T5EncoderModel,
        T5TokenizerFast,
    )

    small_t5, small_clip = (SMALL_T5, SMALL_CLIP) if bench.tiny else ({}, {})
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(bench.device):
            if kind == "t5":
                family, base = load_family("flux"), BASES / "tiny-flux"
                second: Any = T5EncoderModel(T5Config(**{**T5_XXL, **small_t5}))
                tokenizer: Any = T5TokenizerFast
            else:
                family, base = load_family("sdxl"), BASES / "tiny-sdxl"
                second = CLIPTextModelWithProjection(ClipConfig(**{**CLIP_G, **small_clip}))
                tokenizer = CLIPTokenizer
            first = CLIPTextModel(ClipConfig(**{**CLIP_L, **small_clip}))
    finally:
        torch.set_default_dtype(torch.float32)
    models = {"text_encoder": first, "text_encoder_2": second}
    kinds = {"tokenizer": CLIPTokenizer, "tokenizer_2": tokenizer}
    return family, TextEncoders(
        tokenizers={name: one.from_pretrained(base / name, local_files_only=True) for name, one in kinds.items()},
        encoders={name: frozen(model) for name, model in models.items()},
    )
