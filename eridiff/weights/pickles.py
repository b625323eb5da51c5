"""Pickled weights (`.ckpt`, `.pt`, `.bin`): read only where local.yaml allows it, and then as tensors alone."""

import pickle
from functools import cached_property
from pathlib import Path
from typing import Any

from eridiff.core.errors import BaseError
from eridiff.formats.safetensors import TORCH_NAMES, RawTensor, raw_tensor
from eridiff.machine.local import load_local

PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
# What torch's reader raises on bytes that are no pickle of tensors.
DAMAGE = (RuntimeError, ValueError, EOFError, KeyError, IndexError, TypeError, AttributeError, ImportError, MemoryError)


class PickleFile:
    """A pickled state dict with the face of a TensorFile. Code in it is never run: torch's `weights_only`.

    Raises: BaseError where pickles are not allowed, or where it holds more than tensors.
    """

    def __init__(self, path: Path) -> None:
        if not load_local().allow_pickle:
            raise BaseError(
                f"{path} is a pickle, which may run code when it is opened. Take a .safetensors file of the model; or "
                "write `allow_pickle: true` into local.yaml: then its tensors are read, and no code in it is run."
            )
        import torch

        self.path = path
        self.metadata: dict[str, str] = {}
        try:
            record = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, *DAMAGE) as error:
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise BaseError(f"{path} holds more than tensors, or is damaged, and is not read: {first}") from None
        record = record.get("state_dict", record) if isinstance(record, dict) else {}
        names = {getattr(torch, value): key for key, value in TORCH_NAMES.items()}
        self._tensors = {
            name: tensor
            for name, tensor in record.items()
            if isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.dtype in names
        }
        if not self._tensors:
            raise BaseError(f"{path} holds no tensors by name: it is no model.")
        self.header: dict[str, Any] = {
            name: {"dtype": names[tensor.dtype], "shape": list(tensor.shape)} for name, tensor in self._tensors.items()
        }

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    @cached_property
    def names(self) -> list[str]:
        """Names of the tensors, sorted."""
        return sorted(self._tensors)

    def raw(self, name: str) -> RawTensor:
        """One tensor's bytes."""
        return raw_tensor(self._tensors[name])

    def size(self, name: str) -> int:
        """Bytes of one tensor."""
        return self._tensors[name].nbytes
