"""A model out of single files: built empty, then filled tensor by tensor from the mapped file, cast on the way.

At no time is more than one tensor in memory besides the model itself.
"""

from typing import TYPE_CHECKING, Any

from eridiff.errors import BaseError
from eridiff.partfiles import PartTensors

if TYPE_CHECKING:
    import torch
    from torch import nn


def assemble(kind: Any, config: dict[str, Any], tensors: PartTensors, dtype: "torch.dtype") -> "nn.Module":
    """A model of class `kind` (diffusers or transformers), as `from_pretrained` loads it from a folder.

    Raises: BaseError where the file lacks a tensor, or has one of another shape than the config asks for.
    """
    from accelerate import init_empty_weights
    from accelerate.utils import set_module_tensor_to_device

    with init_empty_weights(include_buffers=False):
        model = kind(kind.config_class(**config)) if _is_of_transformers(kind) else kind.from_config(config)
    for name, empty in model.state_dict().items():
        value = read_tensor(tensors, tensors.canonical(tensors.component, name), _dtype_of(model, name, dtype))
        if value.shape != empty.shape:
            raise BaseError(
                f"{tensors.found.weights.paths[0]}: {name} of {tensors.component} is {list(value.shape)}; by its "
                f"config it must be {list(empty.shape)}."
            )
        set_module_tensor_to_device(model, name, "cpu", value=value, dtype=value.dtype)
    if _is_of_transformers(kind):
        model.tie_weights()
    assembled: nn.Module = model
    return assembled


def read_tensor(tensors: PartTensors, name: str, dtype: "torch.dtype") -> "torch.Tensor":
    """One tensor in the format that is asked for (whole numbers stay); a matrix of scaled fp8 times its scale."""
    value, scale = tensors.raw(name).torch(), tensors.scale(name)
    if scale is not None:
        return (value.float() * scale.torch().float()).to(dtype)
    return value.to(dtype) if value.is_floating_point() else value


def _is_of_transformers(kind: Any) -> bool:
    return str(kind.__module__).startswith("transformers.")


def _dtype_of(model: Any, name: str, dtype: "torch.dtype") -> "torch.dtype":
    """The format of one tensor: some classes of transformers keep modules in fp32, which fp16 would overflow."""
    import torch

    kept = set(model._keep_in_fp32_modules or ()) if dtype == torch.float16 else set()
    return torch.float32 if kept.intersection(name.split(".")) else dtype
