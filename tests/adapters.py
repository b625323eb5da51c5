"""Adapters with random weights in checkpoints as train writes them, for tests of what reads checkpoints."""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eridiff.families import load_family
from eridiff.lora import save_checkpoint
from eridiff.params_train import LoraParams

Shapes = Mapping[str, tuple[int, int]]  # module -> (outputs, inputs)


def random_adapter(shapes: Shapes, rank: int) -> dict[str, Tensor]:
    """Tensors of an adapter by module.lora_A|B.weight, about as large as trained ones."""
    tensors = {}
    for module, (outputs, inputs) in shapes.items():
        generator = torch.Generator().manual_seed(zlib.crc32(module.encode()))
        tensors[f"{module}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) / inputs**0.5
        tensors[f"{module}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * 0.01
    return tensors


def lineage(family: str, config: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """What train writes into a checkpoint."""
    denoiser = load_family(family).DENOISER
    facts = {
        "family": family,
        "base": f"tiny-{family}",
        "denoiser_config": dict(config),
        "scheduler_config": {"prediction_type": "epsilon"} if denoiser == "unet" else {"shift": 3.0},
        "pointer": {denoiser: {"content": "c" * 64, "config": "d" * 64}},
        "params": {
            "steps": 200,
            "batch_size": 2,
            "accumulation": 1,
            "seed": 7,
            "precision": "bf16",
            "caption_dropout": 0.1,
            "guidance": None,
            "loss": "mse",
            "lora": {"rank": 4, "alpha": 4.0, "targets": "attention"},
            "optimizer": {"name": "adamw", "lr": 1e-4, "schedule": "constant", "warmup_steps": 10},
            "ddpm": {"loss_weight": "min_snr", "min_snr_gamma": 5.0, "noise_offset": 0.05},
            "flow": None,
        },
        "inputs": {"images.parquet": "a" * 64, "buckets.parquet": "b" * 64},
        "trigger": "eridraw",
        "buckets": [[832, 1216, 3], [1024, 1024, 5]],
        "num_pictures": 8,
        "tag_frequency": {"red fox": 3, "drawing": 8},
        "step": 120,
        "loss": 0.1,
        "ema": False,
    }
    return {**facts, **changes}


def write_checkpoint(
    path: Path,
    family: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    alpha: float | None = None,
    **changes: Any,
) -> Path:
    """A checkpoint of these tensors; alpha is the rank unless given."""
    rank = next(tensor.shape[0] for name, tensor in tensors.items() if ".lora_A." in name)
    params = LoraParams(rank=rank, alpha=rank if alpha is None else alpha)
    facts = lineage(family, config, **changes)
    save_checkpoint(path, tensors, prefix=load_family(family).DENOISER, params=params, lineage=facts)
    return path


def change(tensors: Mapping[str, Tensor], module: str, scale: float = 1.0) -> Tensor:
    """The change of a module's weight [outputs, inputs]."""
    return scale * (tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"])
