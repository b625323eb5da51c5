"""Weight files as other programs write them: headers of the real models without weights, and small models whole."""

import json
import math
import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eridiff.families import load_keys, published
from eridiff.keytables import Row
from eridiff.tensorfile import ITEM_SIZE
from eridiff.weighttables import conv_or_linear, transposed

Header = dict[str, tuple[str, tuple[int, ...]]]  # name -> (dtype, shape)
# What stands where in all-in-one files: component -> prefix.
CHECKPOINT = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "conditioner.embedders.0.transformer.",
    "text_encoder_2": "conditioner.embedders.1.model.",
}
WITH_CLIPS = {
    "transformer": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
    "text_encoder_3": "text_encoders.t5xxl.transformer.",
}
# family, component -> class, of the models that a published.json describes
CLASSES = {
    ("sdxl", "unet"): "diffusers.UNet2DConditionModel",
    ("sdxl", "text_encoder"): "transformers.CLIPTextModel",
    ("sdxl", "text_encoder_2"): "transformers.CLIPTextModelWithProjection",
    ("sd35", "transformer"): "diffusers.SD3Transformer2DModel",
    ("sd35", "text_encoder"): "transformers.CLIPTextModelWithProjection",
    ("sd35", "text_encoder_2"): "transformers.CLIPTextModelWithProjection",
    ("sd35", "text_encoder_3"): "transformers.T5EncoderModel",
    ("flux", "transformer"): "diffusers.FluxTransformer2DModel",
    ("flux", "text_encoder"): "transformers.CLIPTextModel",
    ("flux", "text_encoder_2"): "transformers.T5EncoderModel",
}
COMPONENTS = [
    (family, variant, component)
    for family in ("sdxl", "sd35", "flux")
    for variant in published(family)
    for component in load_keys(family).COMPONENTS
]


@cache
def meta_model(family: str, variant: str, component: str) -> nn.Module:
    """A published model at full size, on the meta device."""
    import diffusers
    import transformers

    config = published(family)[variant][component]
    library, name = CLASSES.get((family, component), "diffusers.AutoencoderKL").split(".")
    kind = getattr({"diffusers": diffusers, "transformers": transformers}[library], name)
    with torch.device("meta"):
        model: nn.Module = kind.from_config(config) if library == "diffusers" else kind(kind.config_class(**config))
    return model


@cache
def canonical_shapes(family: str, variant: str, component: str) -> dict[str, tuple[int, ...]]:
    """Canonical tensor name -> shape of a published model."""
    tensors = meta_model(family, variant, component).state_dict()
    return {load_keys(family).canonical(component, name): tuple(t.shape) for name, t in tensors.items()}


def rows_of(family: str, variant: str, component: str, layout: str) -> tuple[Row, ...]:
    part = load_keys(family).COMPONENTS[component]
    rows: tuple[Row, ...] = part.rows(layout, published(family)[variant][component])
    return rows


def header(
    family: str, variant: str, component: str, layout: str = "original", dtype: str = "F16", prefix: str = ""
) -> Header:
    """Names, formats and shapes of a published model's file."""
    shapes = canonical_shapes(family, variant, component)
    found: Header = {}
    for row in rows_of(family, variant, component, layout):
        parts = [shapes[part] for part in row.parts]
        shape = (sum(part[0] for part in parts), *parts[0][1:]) if row.heights else parts[0]
        if row.reorder is conv_or_linear:
            shape = (*shape, 1, 1)
        if row.reorder is transposed:
            shape = shape[::-1]
        found[prefix + row.target] = (dtype, shape)
    return found


def write_header(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> Path:
    """A file with this header whose data is a hole: it takes no disk, whatever its size."""
    lines: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * ITEM_SIZE[dtype]
        lines[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path
