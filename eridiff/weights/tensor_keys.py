"""Weights under other programs' names: the rows of keytables.py, one a tensor, read both ways on raw bytes.

A row names one tensor of the original file (the target) and the model's tensors that it is made of, in the order of
its rows. No weight is computed: bytes are cut, joined and moved, whatever their number format.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eridiff.core.errors import BaseError
from eridiff.core.files import digest_json
from eridiff.formats.safetensors import ITEM_SIZE, RawTensor
from eridiff.weights.lora_keys import Config, Row
from eridiff.weights.signatures import Mark

Table = Callable[[str, Config], tuple[Row, ...]]  # (layout, config) -> rows
Sizes = Callable[[Config], Mapping[str, Mark]]  # config -> sizes of some of the model's tensors
BOTH = ("weight", "bias")


@dataclass(frozen=True, kw_only=True)
class ComponentKeys:
    """The names of a component's tensors in single files, and the sizes that recognise it."""

    kind: str  # as in signatures.Look
    rows: Table
    sizes: Sizes  # of some tensors, where models of other sizes have the same names


def leaves(rows: Iterable[Row], *names: str) -> Iterator[Row]:
    """Rows of modules => rows of their tensors; without names: weight and bias."""
    for row in rows:
        for name in names or BOTH:
            yield replace(row, target=f"{row.target}.{name}", slices=tuple(f"{module}.{name}" for module in row.slices))


def same(names: Iterable[str]) -> Iterator[Row]:
    """Rows of tensors, or modules, that have one name in both layouts."""
    return (Row(name, (name,)) for name in names)


def as_diffusers(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The table of a file that has the model's own names already."""
    return tuple(same(name for row in rows for name in row.slices))


def conv_or_linear(weight: Any) -> Any:
    """[O, I, 1, 1] <=> [O, I]: a projection written as a convolution over one pixel."""
    return weight[:, :, 0, 0] if weight.ndim == 4 else weight[:, :, None, None]


def transposed(weight: Any) -> Any:
    """[O, I] <=> [I, O]: a matrix that is multiplied from the other side."""
    return weight.T


def to_model(row: Row, tensor: RawTensor) -> dict[str, RawTensor]:
    """One tensor of the original file => the model's tensors.

    Raises: BaseError where its shape cannot be cut as the row says.
    """
    whole = row.reorder(_array(tensor))
    heights = row.heights or (len(whole) if whole.ndim else 1,)
    if whole.ndim and sum(heights) != len(whole):
        raise BaseError(f"{row.target} has {len(whole)} rows; by the model's config they must be {sum(heights)}.")
    pieces = np.split(whole, np.cumsum(heights)[:-1]) if row.heights else [whole]
    return {name: _raw(tensor.dtype, piece) for name, piece in zip(row.slices, pieces, strict=True)}


def to_original(row: Row, tensors: Mapping[str, RawTensor]) -> RawTensor:
    """The model's tensors => one tensor of the original file: the other way of `to_model`."""
    pieces = [_array(tensors[name]) for name in row.slices]
    whole = np.concatenate(pieces) if row.heights else pieces[0]
    return _raw(tensors[row.slices[0]].dtype, row.reorder(whole))


def write_original(rows: Iterable[Row], tensors: Mapping[str, RawTensor], prefix: str = "") -> dict[str, RawTensor]:
    """All tensors of a model under the original file's names."""
    return {prefix + row.target: to_original(row, tensors) for row in rows}


def table_version(rows: Iterable[Row]) -> str:
    """A digest of what a table says, to name what was remembered with it."""
    return digest_json([[row.target, row.slices, row.heights, row.reorder.__name__] for row in rows])[:16]


def _array(tensor: RawTensor) -> Any:
    """The bytes as whole numbers of the items' size: they are moved, not read."""
    return np.frombuffer(tensor.data, f"u{ITEM_SIZE[tensor.dtype]}").reshape(tensor.shape)


def _raw(dtype: str, array: Any) -> RawTensor:
    whole = np.ascontiguousarray(array).reshape(array.shape)  # it would give a scalar one dimension
    return RawTensor(dtype, tuple(array.shape), whole.reshape(-1).view(np.uint8).data)
