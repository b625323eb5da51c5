"""Under which file names ComfyUI has a base: those that it was added from, else those that its makers publish."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eridiff.bases.pointer_files import pointers_of
from eridiff.core.errors import BaseError
from eridiff.family import load_family, load_keys, published

# Names that diffusers and transformers give every model: they say nothing of the file in ComfyUI.
LIBRARY_NAME = re.compile(r"(diffusion_pytorch_)?model\b.*\.safetensors")


@dataclass(frozen=True, kw_only=True)
class ComfyFiles:
    """Component of a base with weights -> file name in ComfyUI, and where the names come from."""

    files: Mapping[str, str]
    source: str  # a clause: "as the base was added"


def comfy_files(base: str, family: str, denoiser_config: Mapping[str, Any]) -> ComfyFiles:
    """The file of each component.

    A base from a folder in diffusers' layout has the names of its makers' files, found by the denoiser's config; one
    of sizes that nobody published has its own name, since no file of it is known.
    """
    own = _own_files(base, family)
    makers = _makers_files(family, denoiser_config)
    names = {component: own.get(component) or makers.get(component) for component in load_keys(family).COMPONENTS}
    files = {component: name or f"{base}.safetensors" for component, name in names.items()}
    if not all(names.values()):
        source = f"no file of base '{base}' is known to ComfyUI's users, so they are called after it"
    elif own.keys() >= names.keys():
        source = f"as base '{base}' was added"
    else:
        source = "as the makers of the model call them"
    return ComfyFiles(files=files, source=source)


def _own_files(base: str, family: str) -> dict[str, str]:
    """The single files that the base was added from."""
    parts = load_family(family).PARTS
    try:
        pointers = pointers_of(base, parts, family)
    except BaseError:  # trained elsewhere: its pointers are not here
        return {}
    found = {}
    for pointer in pointers.values():
        for name, component in pointer.components.items():
            weights = [file for file in component.files if file.endswith(".safetensors")]
            if len(weights) == 1 and not LIBRARY_NAME.fullmatch(weights[0]):
                found[name] = weights[0]
    return found


def _makers_files(family: str, denoiser_config: Mapping[str, Any]) -> Mapping[str, str]:
    """The published files of the model whose denoiser has this config."""
    known, denoiser = published(family), load_family(family).DENOISER
    for model, files in known.comfyui.items():
        config = known.models[model][denoiser]
        if all(denoiser_config.get(key) == value for key, value in config.items()):
            return files
    return {}
