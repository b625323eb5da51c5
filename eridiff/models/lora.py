"""LoRA adapters: peft makes, names and saves them; a checkpoint is a safetensors file that diffusers loads."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eridiff.core.errors import ConfigError, TrainError, did_you_mean
from eridiff.core.files import canonical_json, map_file
from eridiff.core.json_files import parse_json
from eridiff.formats.safetensors import RawTensor, TensorFile, raw_tensors, write_sealed_tensors
from eridiff.formats.seals import check_out
from eridiff.params.train import LoraParams

if TYPE_CHECKING:
    from torch import Tensor, nn


def target_modules(
    denoiser: "nn.Module", target_sets: Mapping[str, str], name: str, unused: Collection[str]
) -> list[str]:
    """Full names of the linear modules that a target set (a regular expression) adapts, less unused modules.

    Named in full, since a suffix such as `proj_out` would also hit the final layer.
    Raises: ConfigError for an unknown target set.
    """
    from torch import nn

    if name not in target_sets:
        raise ConfigError(f"params.yaml: train.lora.targets is '{name}'.{did_you_mean(name, target_sets)}")
    pattern = re.compile(target_sets[name])
    return [
        path
        for path, module in denoiser.named_modules()
        if isinstance(module, nn.Linear) and pattern.fullmatch(path) and path not in unused
    ]


def add_adapter(denoiser: "nn.Module", params: LoraParams, modules: list[str], seed: int) -> dict[str, "Tensor"]:
    """Freeze the denoiser, inject peft's LoRA into each module; returns module.lora_A|B -> trainable fp32 tensor.

    lora_A is peft's default (kaiming uniform, a = sqrt 5), drawn on the CPU from (seed, name), so that neither
    the device nor the order of modules changes it; lora_B is zero.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if not modules:
        raise TrainError(f"the targets '{params.targets}' match no module of this base.")
    denoiser.requires_grad_(False)
    config = LoraConfig(r=params.rank, lora_alpha=params.alpha, target_modules=modules)
    inject_adapter_in_model(config, denoiser)
    trainable: dict[str, Tensor] = {}
    for path, parameter in denoiser.named_parameters():
        if ".lora_" in path:
            name = path.replace(".default.weight", ".weight")
            parameter.data = _initial(name, parameter, seed).to(parameter.device)
            trainable[name] = parameter.requires_grad_(True)
    return dict(sorted(trainable.items()))


def _initial(name: str, parameter: "Tensor", seed: int) -> "Tensor":
    """The value of one adapter tensor before the first step, fp32 on the CPU."""
    import torch

    from eridiff.core.noise import generator  # here, so that the export stage starts without torch

    value = torch.zeros(parameter.shape, dtype=torch.float32)
    if ".lora_A." in name:
        torch.nn.init.kaiming_uniform_(value, a=5**0.5, generator=generator(seed, 0, 0, f"init {name}"))
    return value


def save_checkpoint(
    path: Path,
    tensors: Mapping[str, "Tensor"],
    *,
    prefix: str,
    params: LoraParams,
    lineage: Mapping[str, Any],
) -> None:
    """Write an adapter as PEFT names under the component's prefix, with the facts that make it whole.

    `lora_adapter_metadata` is what diffusers reads (rank, alpha, targets); `eridiff` is the lineage: the base's
    configs and the digests of what train declares, handed on to the exported file. Sealed (eridiff/formats/seals.py).
    """
    modules = sorted({name.rsplit(".lora_", 1)[0] for name in tensors})
    adapter = {"r": params.rank, "lora_alpha": params.alpha, "target_modules": modules}
    packed = {f"{prefix}.{key}": value for key, value in adapter.items()}
    named = raw_tensors({f"{prefix}.{name}": tensor for name, tensor in tensors.items()})
    metadata = {"lora_adapter_metadata": canonical_json(packed), "eridiff": canonical_json(dict(lineage))}
    write_sealed_tensors(path, named, {"format": "pt", **metadata})


def read_checkpoint(path: Path) -> tuple[dict[str, RawTensor], dict[str, Any], dict[str, Any]]:
    """Tensors (with their prefix), lineage and adapter facts (rank, alpha) of a checkpoint, checked as a whole.

    Raises: TrainError where the file is none of eridiff's checkpoints, DataError where it is damaged.
    """
    check_out(map_file(path), path)
    file = TensorFile(path)
    try:
        lineage = parse_json(file.metadata["eridiff"])
        packed = parse_json(file.metadata["lora_adapter_metadata"])
    except (KeyError, ValueError):
        raise TrainError(f"{path} is no checkpoint of eridiff's train stage.") from None
    adapter = {key.split(".", 1)[1]: value for key, value in packed.items()}
    return {name: file.raw(name) for name in file.names}, lineage, adapter
