"""Files of tensors, read as a whole."""

from pathlib import Path

import torch

from eridiff.formats.safetensors import TensorFile


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file."""
    file = TensorFile(path)
    return {name: file.raw(name).torch() for name in file.names}
