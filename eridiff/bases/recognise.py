"""Components of models in weight files, recognised by their headers alone; and files that are no base at all.

One model lies in one file (all-in-one), in a file a component (split), or in shards of a component. No weight is read.
"""

import math
import re
from collections.abc import Iterable

from eridiff.core.errors import BaseError
from eridiff.family import family_names, load_keys
from eridiff.formats.safetensors import TORCH_NAMES
from eridiff.weights.files import SCALES, Found, Weights
from eridiff.weights.shared_keys import LOOKS
from eridiff.weights.signatures import Look, Shape, first_look

# Where components stand in all-in-one files, and their kind where the prefix says more than the shapes.
PREFIXES = {
    "model.diffusion_model.": "denoiser",
    "diffusion_model.": "denoiser",
    "first_stage_model.": "vae",
    "vae.": "vae",
    "conditioner.embedders.0.transformer.": "clip-l",
    "conditioner.embedders.1.model.": "clip-g",
    "conditioner.embedders.0.model.": "clip-g",
    "text_encoders.clip_l.transformer.": "clip-l",
    "text_encoders.clip_g.transformer.": "clip-g",
    "text_encoders.t5xxl.transformer.": "t5",
    "cond_stage_model.transformer.": "clip-l",
    "cond_stage_model.model.": "clip-g",
    "": "",
}
# Names that are no weights of a component: averages and tables that trainers leave behind.
LEFTOVERS = re.compile(
    r"(model_ema|loss|lora_te|text_encoders\.[^.]+\.logit_scale|text_encoders\.[^.]+\.transformer\.logit_scale"
    r"|(model\.diffusion_model\.)?(v_pred|ztsnr|edm_vpred|edm_mean|edm_std)|denoiser\.sigmas|betas|alphas_cumprod.*|sqrt_.*|log_one_minus.*|posterior_.*|logvar|global_step)(\..*)?"
)
SCALED_MARKS = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")
# What a file is that is no model: ends or beginnings of its names.
OTHERS = {
    r".+\.(lora_(down|up|A|B)(\.[^.]+)?\.weight|lora\.(down|up)\.weight|(hada|lokr)_w[12](_[ab])?|oft_.+)": (
        "a LoRA: train on its base, and load it in ComfyUI"
    ),
    r"(control_model|controlnet_.+|input_hint_block|control_.*blocks)\..+": "a ControlNet",
    r"(image_proj|ip_adapter)\..+": "an IP-Adapter",
    r".+\.(quant_state\.bitsandbytes__.+|qweight|wscales|absmax)": (
        "a model in 4 bits: its weights cannot be taken back. Take the fp16 or bf16 file"
    ),
    r"(emb_params|string_to_param\..+)": "an embedding (textual inversion)",
}


def denoiser_looks() -> tuple[tuple[str, Look], ...]:
    """(family, look) of every family's denoisers."""
    return tuple((family, look) for family in family_names() for look in load_keys(family).LOOKS)


def components_in(weights: Weights) -> tuple[list[Found], list[str]]:
    """The components that files hold, and the names that belong to none.

    Raises: BaseError where the files are no model at all, with what they are, or have number formats that are not read.
    """
    if other := what_else(weights.where):
        raise BaseError(f"{weights.paths[0]} is {other}.")
    _refuse_unread_formats(weights)
    groups: dict[str, dict[str, Shape]] = {}
    for name in weights.where:
        prefix = next(prefix for prefix in PREFIXES if name.startswith(prefix))
        if not name.endswith((*SCALES, *SCALED_MARKS)) and not LEFTOVERS.fullmatch(name):
            groups.setdefault(prefix, {})[name.removeprefix(prefix)] = weights.shape(name)
    found, rest = [], []
    for prefix, shapes in groups.items():
        one = _recognise(prefix, shapes, weights)
        if one is None:
            rest += [prefix + name for name in shapes]
        else:
            found.append(one)
    order = ["denoiser", "vae", "clip-l", "clip-g", "clip", "t5"]
    return sorted(found, key=lambda one: order.index(one.kind)), sorted(rest)


def _refuse_unread_formats(weights: Weights) -> None:
    """Refuse numbers that would be read as others: fp8 has one scale a matrix, and nothing else has a scale.

    Raises: BaseError that names the tensor.
    """
    for name in weights.where:
        dtype = weights.dtype(name)
        if dtype not in TORCH_NAMES:
            raise BaseError(f"{weights.paths[0]}: {name} is in {dtype}, which is not read. Take the fp16 or bf16 file.")
        if name.endswith(SCALES):
            matrix = name[: name.rindex(".")] + ".weight"
            wrong = matrix not in weights.where or not weights.dtype(matrix).startswith("F8")
            if wrong or math.prod(weights.shape(name)) != 1:
                raise BaseError(
                    f"{weights.paths[0]}: {name} {list(weights.shape(name))} scales something else than a whole matrix "
                    "of fp8, which is not read. Take the fp16 or bf16 file."
                )


def _recognise(prefix: str, shapes: dict[str, Shape], weights: Weights) -> Found | None:
    """What the tensors below one prefix are."""
    kind = PREFIXES[prefix]
    families = [(family, look) for family, look in denoiser_looks() if kind in ("", "denoiser")]
    shared = [look for look in LOOKS if not kind or look.kind == kind or (look.kind == "clip" and "clip" in kind)]
    look = first_look([*(look for _, look in families), *shared], shapes)
    if look is None:
        return None
    family = next((name for name, other in families if other is look), "")
    return Found(
        look=look,
        kind=kind or look.kind,
        family=family,
        prefix=prefix,
        weights=weights,
        shapes=shapes,
    )


def what_else(names: Iterable[str]) -> str:
    """What files are that are no model; empty where nothing says so."""
    names = list(names)
    for pattern, what in OTHERS.items():
        if any(re.fullmatch(pattern, name) for name in names):
            return what
    return ""
