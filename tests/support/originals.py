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

from eridiff.family import load_keys, published
from eridiff.formats.safetensors import ITEM_SIZE, RawTensor, TensorFile, write_tensors
from eridiff.weights.lora_keys import Row
from eridiff.weights.tensor_keys import conv_or_linear, transposed, write_original
from tests.support.checkouts import SMALL

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
    for variant in published(family).models
    for component in load_keys(family).COMPONENTS
]


@cache
def meta_model(family: str, variant: str, component: str) -> nn.Module:
    """A published model at full size, on the meta device."""
    import diffusers
    import transformers

    config = published(family).models[variant][component]
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
    rows: tuple[Row, ...] = part.rows(layout, published(family).models[variant][component])
    return rows


def header(
    family: str, variant: str, component: str, layout: str = "original", dtype: str = "F16", prefix: str = ""
) -> Header:
    """Names, formats and shapes of a published model's file."""
    shapes = canonical_shapes(family, variant, component)
    found: Header = {}
    for row in rows_of(family, variant, component, layout):
        parts = [shapes[part] for part in row.slices]
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


def small_original(family: str, component: str, layout: str = "original", prefix: str = "") -> dict[str, RawTensor]:
    """A component of a small base under the names of another program's file."""
    keys, folder = load_keys(family), SMALL / "bases" / f"tiny-{family}" / component
    (path,) = folder.glob("*.safetensors")
    file, config = TensorFile(path), json.loads((folder / "config.json").read_text())
    tensors = {keys.canonical(component, name): file.raw(name) for name in file.names}
    return write_original(keys.COMPONENTS[component].rows(layout, config), tensors, prefix)


def layout_in_checkpoint(prefix: str) -> str:
    """Which names a part has in all-in-one files: transformers' for text encoders, but for OpenCLIP's own in SDXL."""
    return "diffusers" if "text_encoders" in prefix or "embedders.0" in prefix else "original"


def write_checkpoint(path: Path, family: str, places: Mapping[str, str]) -> Path:
    """An all-in-one file of a small base."""
    tensors: dict[str, RawTensor] = {}
    for component, prefix in places.items():
        tensors |= small_original(family, component, layout_in_checkpoint(prefix), prefix)
    write_tensors(path, tensors, {})
    return path


SPLIT = {  # as ComfyUI's folders hold Flux: component -> file
    "transformer": "diffusion_models/flux1-dev.safetensors",
    "vae": "vae/ae.safetensors",
    "text_encoder": "text_encoders/clip_l.safetensors",
    "text_encoder_2": "text_encoders/t5xxl_fp16.safetensors",
}


def write_split(folder: Path) -> list[Path]:
    """The small Flux as split files in ComfyUI's folders of models; the denoiser's first."""
    for component, name in SPLIT.items():
        layout = "diffusers" if component.startswith("text") else "original"
        write_tensors(folder / name, small_original("flux", component, layout), {})
    return [folder / name for name in SPLIT.values()]


def write_arrangement(family: str, folder: Path) -> list[Path]:
    """A small base in single files, as people have the real one."""
    if family == "flux":
        return write_split(folder)
    places = CHECKPOINT if family == "sdxl" else WITH_CLIPS
    return [write_checkpoint(folder / "checkpoints" / f"{family}.safetensors", family, places)]
