"""A model out of mapped files: built empty, then filled tensor by tensor, moved to the device and cast on the way.

At no time is more than one tensor in memory besides the model itself; of a model that is quantised, neither on the host
nor on the device.
"""

from typing import TYPE_CHECKING, Any

from eridiff.core.errors import BaseError
from eridiff.core.progress import track
from eridiff.formats.safetensors import RawTensor
from eridiff.weights.component_tensors import ComponentTensors, FolderTensors
from eridiff.weights.nonfinite import find_broken

if TYPE_CHECKING:
    import torch
    from torch import nn

    from eridiff.models.quantise import Storage


def assemble(
    kind: Any,
    config: dict[str, Any],
    tensors: ComponentTensors | FolderTensors,
    dtype: "torch.dtype",
    storage: "Storage | None" = None,
) -> "nn.Module":
    """A model of class `kind` (diffusers or transformers), as `from_pretrained` loads it from a folder.

    storage: where it goes and how it is stored; None: on the CPU, as it is. Raises: BaseError where the file lacks a
    tensor, or has one of another shape than the config asks for, or with numbers beyond the range of fp16.
    """
    import torch

    from eridiff.models.upload import Uploader  # here, since the export stage starts without torch

    model = init_model(kind, config)
    with Uploader(storage.device if storage else torch.device("cpu")) as uploader:
        state = model.state_dict()
        for name, empty in track(state.items(), what=tensors.component, total=len(state), unit="tensors"):
            raw, scale = tensors.read(name)
            factor = uploader.upload(scale) if scale else None
            value = as_dtype(uploader.upload(raw), factor, _dtype_of(model, name, dtype))
            _refuse_other(tensors, name, value, empty, raw)
            _set(model, name, value)
            if storage:
                storage.settle(model, name)
    if is_of_transformers(kind):
        model.tie_weights()
    assembled: nn.Module = model
    return assembled


def make_model(kind: Any, config: dict[str, Any]) -> Any:
    """A new model of class `kind`."""
    return kind(kind.config_class(**config)) if is_of_transformers(kind) else kind.from_config(config)


def init_model(kind: Any, config: dict[str, Any]) -> Any:
    """A model without weights: parameters on torch's meta device, buffers as they are made."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return make_model(kind, config)


def build_empty(kind: Any, config: dict[str, Any], dtype: "torch.dtype") -> "nn.Module":
    """A model of shapes alone, all of it on torch's meta device."""
    import torch

    with torch.device("meta"):
        model: nn.Module = make_model(kind, config)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.to(dtype) if tensor.is_floating_point() else tensor.data
    return model


def as_dtype(value: "torch.Tensor", scale: "torch.Tensor | None", dtype: "torch.dtype") -> "torch.Tensor":
    """One tensor in the format that is asked for (whole numbers stay); a matrix of scaled fp8 times its scale."""
    if scale is not None:
        return (value.float() * scale.float()).to(dtype)
    return value.to(dtype) if value.is_floating_point() else value


def is_of_transformers(kind: Any) -> bool:
    """Whether a class is transformers' rather than diffusers'."""
    return str(kind.__module__).startswith("transformers.")


def _dtype_of(model: Any, name: str, dtype: "torch.dtype") -> "torch.dtype":
    """The format of one tensor: some classes of transformers keep modules in fp32, which fp16 would overflow."""
    import torch

    kept = set(model._keep_in_fp32_modules or ()) if dtype == torch.float16 else set()
    return torch.float32 if kept.intersection(name.split(".")) else dtype


def _set(model: Any, name: str, value: "torch.Tensor") -> None:
    """Put a tensor in the place of an empty one."""
    from accelerate.utils import set_module_tensor_to_device

    set_module_tensor_to_device(model, name, value.device, value=value, dtype=value.dtype, clear_cache=False)


def _refuse_other(
    tensors: ComponentTensors | FolderTensors, name: str, value: "torch.Tensor", empty: "torch.Tensor", raw: RawTensor
) -> None:
    """Raises: BaseError where a tensor has another shape than the empty one, or numbers beyond the range of fp16."""
    import torch

    if value.shape != empty.shape:
        raise BaseError(
            f"{tensors.path}: {name} of {tensors.component} is {list(value.shape)}; by its "
            f"config it must be {list(empty.shape)}."
        )
    if value.dtype == torch.float16 and not value.isfinite().all():
        if broken := find_broken(name, raw):
            raise BaseError(
                f"{tensors.path}: {broken.described()} of {tensors.component} is not finite in the file itself. Fetch "
                "it again, or take another base."
            )
        raise BaseError(
            f"{tensors.path}: {name} of {tensors.component} has numbers beyond fp16's range: take bf16 or fp32."
        )
