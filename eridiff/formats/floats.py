"""Tensors as numpy arrays and back: fp32, fp16 and bf16 without torch, rounded to even as torch does."""

import numpy as np
from numpy.typing import NDArray

from eridiff.formats.safetensors import RawTensor

Array = NDArray[np.float32]

# Unit roundoff: a rounded value differs from the true one by at most this share of it ...
ROUNDOFF = {"fp16": 2.0**-11, "bf16": 2.0**-8, "fp32": 2.0**-24}
# ... and, near zero, by at most this much: half the distance of two subnormal numbers.
UNDERFLOW = {"fp16": 2.0**-25, "bf16": 2.0**-134, "fp32": 2.0**-150}


def to_float32(tensor: RawTensor) -> Array:
    """A tensor of a file as a float32 array.

    Raises: KeyError for a dtype other than F32, F16 and BF16.
    """
    if tensor.dtype == "BF16":  # the upper half of a float32
        bits = np.frombuffer(tensor.data, dtype="<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(tensor.shape)
    kind = {"F32": "<f4", "F16": "<f2"}[tensor.dtype]
    return np.frombuffer(tensor.data, dtype=kind).astype(np.float32).reshape(tensor.shape)


def from_float32(array: Array, dtype: str) -> RawTensor:
    """An array as a contiguous tensor of `fp32`, `fp16` or `bf16`; what does not fit becomes infinite."""
    flat = np.ascontiguousarray(array, dtype=np.float32)
    if dtype == "fp32":
        return RawTensor("F32", array.shape, flat.astype("<f4").tobytes())
    if dtype == "fp16":
        with np.errstate(over="ignore", under="ignore"):
            return RawTensor("F16", array.shape, flat.astype("<f2").tobytes())
    bits = flat.reshape(-1).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # a tie goes to the even neighbour
    return RawTensor("BF16", array.shape, rounded.astype("<u2").tobytes())
