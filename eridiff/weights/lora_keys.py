"""Key tables: what a denoiser's modules are called, and joined, in other programs' files. Read both ways.

A table is a tuple of rows, made from the denoiser's own config. A row names one module of the other program
(the target) and the diffusers modules that it is made of, in the order of its output rows. `join` goes from
trained modules to the target, `split` back; the gate of the export reads every file through `split`.

Legend: R rank, I inputs, O outputs of a linear module.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from eridiff.core.errors import ExportError
from eridiff.formats.floats import Array

Config = Mapping[str, Any]
Renames = Mapping[str, tuple[tuple[str, str], ...]]  # component -> (regular expression, replacement)


@dataclass(frozen=True, eq=False)
class Factors:
    """A LoRA of one linear module: its weight [O, I] changes by alpha / R * up @ down."""

    down: Array  # [R, I]
    up: Array  # [O, R]
    alpha: float

    @property
    def scale(self) -> float:
        """What up @ down is multiplied by."""
        return self.alpha / len(self.down)

    def moved(self) -> bool:
        """Whether it changes the weight at all. (An untrained adapter has up = 0.)"""
        return bool(self.up.any() and self.down.any() and self.alpha)


def unchanged(up: Array) -> Array:
    """Rows as they are."""
    return up


def swap_halves(up: Array) -> Array:
    """Exchange the halves of the rows: diffusers' (scale, shift) is (shift, scale) in the original models."""
    first, second = np.split(up, 2)
    return np.concatenate([second, first])


@dataclass(frozen=True)
class Row:
    """One target module. Before `place`, names hold {placeholders} and heights count widths of the model."""

    target: str
    slices: tuple[str, ...]  # diffusers modules, in the order of the target's output rows: several where it is fused
    heights: tuple[int, ...] = ()  # output rows of each slice; only where the target is fused
    reorder: Callable[[Array], Array] = unchanged  # of the rows of `up`; its own inverse


def place(rows: Iterable[Row], *, width: int = 1, **names: object) -> Iterator[Row]:
    """Fill the placeholders of rows (numbers and names of blocks) and turn heights into numbers of rows."""
    for row in rows:
        slices = tuple(module.format(**names) for module in row.slices)
        heights = tuple(height * width for height in row.heights)
        yield Row(row.target.format(**names), slices, heights, row.reorder)


def join(row: Row, trained: Mapping[str, Factors]) -> Factors | None:
    """The target's adapter out of its slices'; None where no slice has one.

    Of n slices down = vstack(A_i), up = blockdiag(B_i), rank = n R and alpha = n alpha, so that
    alpha / rank stays. A slice without an adapter is a block of zeros and takes its share of the rank all the
    same: loaders recognise the blocks by equal ranks, and older diffusers mis-scales files of mixed ranks.
    """
    present = {module: trained[module] for module in row.slices if module in trained}
    if not present:
        return None
    first = next(iter(present.values()))
    if not row.heights:
        return Factors(first.down, row.reorder(first.up), first.alpha)
    rank, inputs = first.down.shape
    count = len(row.slices)
    down = np.zeros((count * rank, inputs), np.float32)
    up = np.zeros((sum(row.heights), count * rank), np.float32)
    for index, (module, top) in enumerate(zip(row.slices, _tops(row), strict=True)):
        if module in present:
            columns = slice(index * rank, (index + 1) * rank)
            _check_shape(module, present[module], (row.heights[index], rank, inputs))
            down[columns] = present[module].down
            up[top : top + row.heights[index], columns] = present[module].up
    return Factors(down, row.reorder(up), count * first.alpha)


def _check_shape(module: str, factors: Factors, expected: tuple[int, int, int]) -> None:
    """Raises: ExportError where a slice is not (outputs, rank, inputs) as it must be."""
    shape = (*factors.up.shape, factors.down.shape[1])
    if shape != expected:
        raise ExportError(
            f"the adapter of {module} has (outputs, rank, inputs) {shape}; by the denoiser's config and the "
            f"other adapters it must be {expected}: the checkpoint is damaged or of another base."
        )


def split(row: Row, joined: Factors) -> dict[str, Factors]:
    """The adapters of the slices that a target's adapter changes: the other way of `join`.

    Where `up` is block diagonal each slice gets its block, else all slices share `down`, as in other trainers' files.
    """
    up, count = row.reorder(joined.up), len(row.slices)
    rank, rest = divmod(up.shape[1], count)
    heights = row.heights or (up.shape[0],)
    rows = [slice(top, top + height) for top, height in zip(_tops(row), heights, strict=True)]
    columns = [slice(index * rank, (index + 1) * rank) for index in range(count)]
    blocks = [up[place] for place in zip(rows, columns, strict=True)]
    if rest == 0 and sum(map(np.count_nonzero, blocks)) == np.count_nonzero(up):
        slices = [Factors(joined.down[c], b, joined.alpha / count) for c, b in zip(columns, blocks, strict=True)]
    else:
        slices = [Factors(joined.down, up[r], joined.alpha) for r in rows]
    return {module: factors for module, factors in zip(row.slices, slices, strict=True) if factors.up.any()}


def _tops(row: Row) -> list[int]:
    """The first output row of each slice."""
    return [sum(row.heights[:index]) for index in range(len(row.slices))]


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """One kind of LoRA file: how it calls modules and tensors. Its table says which modules there are."""

    table: Callable[[Config], tuple[Row, ...]]
    prefix: str
    ending: str = ""  # of the file's stem
    readers: str  # which programs read it, for the model card
    flat: bool = True  # dots in module names become underscores
    down: str = ".lora_down.weight"
    up: str = ".lora_up.weight"
    alpha: str = ".alpha"  # none: alpha / rank is folded into `up`

    def key(self, target: str) -> str:
        """The stem of a module's tensor names."""
        return self.prefix + (target.replace(".", "_") if self.flat else target)

    def file_name(self, name: str) -> str:
        """The file's name, from the export's name."""
        return f"{name}{self.ending}.safetensors"


def peft(*, table: Callable[[Config], tuple[Row, ...]], prefix: str, readers: str) -> Dialect:
    """The dialect of PEFT and diffusers without alpha keys: readers take the scale to be 1."""
    return Dialect(
        table=table,
        prefix=prefix,
        readers=readers,
        flat=False,
        down=".lora_A.weight",
        up=".lora_B.weight",
        alpha="",
    )


def renamed(renames: Renames, component: str, name: str) -> str:
    """A tensor's name after the first rule of its component that matches it whole; unchanged if none does."""
    for pattern, replacement in renames.get(component, ()):
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return name
