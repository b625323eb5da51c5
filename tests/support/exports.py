"""Small models of the real classes, checkpoints of random adapters for them, and their exports."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eridiff.export.export import export_checkpoint
from eridiff.family import load_family, load_keys
from eridiff.params.export import ExportParams
from tests.support.adapters import random_adapter, write_checkpoint
from tests.support.full_size import FLUX_DEV, SD35_MEDIUM, SDXL

SMALL: dict[str, dict[str, Any]] = {
    "sdxl": {
        **SDXL,
        "block_out_channels": (8, 16, 32),
        "attention_head_dim": [1, 2, 2],
        "transformer_layers_per_block": [1, 1, 2],
        "cross_attention_dim": 12,
        "norm_num_groups": 4,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 60,
    },
    "sd35": {
        **SD35_MEDIUM,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "caption_projection_dim": 32,
        "joint_attention_dim": 24,
        "pooled_projection_dim": 20,
        "pos_embed_max_size": 8,
        "dual_attention_layers": (0,),
    },
    "flux": {**FLUX_DEV, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2},
}
# diffusers' loader for kohya's Flux files knows the full width only: one block of each kind, on the meta device.
WIDE_FLUX = {**FLUX_DEV, "num_layers": 1, "num_single_layers": 1}
CLASSES = {"sdxl": "UNet2DConditionModel", "sd35": "SD3Transformer2DModel", "flux": "FluxTransformer2DModel"}
KOHYA = (".lora_down.weight", ".lora_up.weight", ".alpha")
# Rounding of both factors, as a share of a module's change (Frobenius).
ROUNDING = {"fp32": 1e-6, "fp16": 1e-3, "bf16": 8e-3}


def denoiser(family: str, config: dict[str, Any], device: str = "cpu") -> nn.Module:
    import diffusers

    with torch.device(device):
        model: nn.Module = getattr(diffusers, CLASSES[family])(**config)
    return model


@cache
def shapes(family: str, wide: bool = False) -> dict[str, tuple[int, int]]:
    """Trained modules of the small (or the wide) model: all but the unused ones."""
    config = WIDE_FLUX if wide else SMALL[family]
    known = {part for row in load_keys(family).DIALECTS[0].table(config) for part in row.slices}
    known -= set(load_family(family).unused_modules(config))
    modules = denoiser(family, config, "meta").named_modules()
    return {n: (m.out_features, m.in_features) for n, m in modules if isinstance(m, nn.Linear) and n in known}


@cache
def adapter(family: str) -> dict[str, Tensor]:
    return random_adapter(shapes(family), rank=4)


def checkpoint(folder: Path, family: str, **changes: Any) -> Path:
    config = json.loads(json.dumps(SMALL[family]))
    tensors = changes.pop("tensors", None) or adapter(family)
    return write_checkpoint(folder / "step-000120.safetensors", family, config, tensors, **changes)


def exported(tmp_path: Path, family: str, alpha: float = 4.0, **params: Any) -> Path:
    checkpoint(tmp_path / "lora", family, alpha=alpha)
    out = tmp_path / "export"
    export_checkpoint(tmp_path / "lora", ExportParams(**params), out)
    return out
