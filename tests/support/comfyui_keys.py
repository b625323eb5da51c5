"""Run by test_comfyui.py in a process of its own: ComfyUI's own key maps for the full-size denoisers, as JSON.

`python -m tests.support.comfyui_keys COMFYUI_DIR` prints name -> LoRA key -> [weight, offset, function]. ComfyUI
detects and builds each model by itself from the names and shapes in a diffusers state dict on the meta device.
"""

import importlib.machinery
import json
import logging
import sys
from typing import Any
from unittest import mock

from tests.support.full_size import FULL_SIZE, full_size


def load_comfy(folder: str) -> None:
    """Import ComfyUI from a folder; what it imports for other models (torchvision and such) may be absent."""
    sys.path.insert(0, folder)
    for name in ("torchvision", "torchvision.transforms", "torchsde", "kornia", "spandrel", "torchaudio", "av"):
        if importlib.machinery.PathFinder.find_spec(name.split(".")[0]) is None:
            spec = importlib.machinery.ModuleSpec(name, None)
            sys.modules[name] = mock.MagicMock(__spec__=spec, __path__=[])
    sys.argv = sys.argv[:1]
    import comfy.cli_args

    comfy.cli_args.args.cpu = True


def detect(weights: dict[str, Any]) -> Any:
    """ComfyUI's model for a diffusers state dict, by the calls of its own diffusion model loader."""
    import comfy.model_detection as detection
    import comfy.utils

    native = detection.convert_diffusers_mmdit(weights, "")
    if native is not None:
        config = detection.model_config_from_unet(native, "")
    else:
        config = detection.model_config_from_diffusers_unet(weights)
        names = comfy.utils.unet_to_diffusers(config.unet_config)
        native = {names[name]: tensor for name, tensor in weights.items()}
    config.set_inference_dtype(next(iter(native.values())).dtype, None)
    return config.get_model(native, "", device="meta")


def key_map(weights: dict[str, Any]) -> dict[str, list[Any]]:
    """LoRA key -> [weight, [dimension, start, length] or null, name of the function or null]."""
    import comfy.lora

    found = {}
    for key, value in comfy.lora.model_lora_keys_unet(detect(weights), {}).items():
        weight, offset, function = (*value, None, None)[:3] if isinstance(value, tuple) else (value, None, None)
        found[key] = [weight, offset and list(offset), getattr(function, "__name__", None)]
    return found


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    weights = {name: dict(full_size(name).state_dict()) for name in FULL_SIZE}  # first: diffusers takes no stand-ins
    load_comfy(sys.argv[1])
    print(json.dumps({name: key_map(weights[name]) for name in FULL_SIZE}))
