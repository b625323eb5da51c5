"""Weight files, opened by their headers alone: one file, or the shards of a component; and a component found there.

No weight is read before it is asked for.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from eridiff.core.errors import BaseError
from eridiff.core.files import open_file
from eridiff.formats.safetensors import RawTensor, TensorFile
from eridiff.weights.pickles import PICKLE_SUFFIXES, PickleFile
from eridiff.weights.signatures import Look, Shape

SCALES = (".scale_weight", ".weight_scale")  # one number a matrix of fp8: ComfyUI's older and newer name
MAX_MISSING = 20  # shards that a message names
TensorSource = TensorFile | PickleFile


@dataclass(frozen=True, eq=False)
class Weights:
    """The tensors of one file, or of the shards of a component."""

    files: tuple[TensorSource, ...]

    @cached_property
    def where(self) -> dict[str, TensorSource]:
        """Tensor name -> the file that holds it."""
        return {name: file for file in self.files for name in file.names}

    def shape(self, name: str) -> Shape:
        """The shape of a tensor."""
        return tuple(self.where[name].header[name]["shape"])

    def dtype(self, name: str) -> str:
        """The number format of a tensor, by its safetensors name."""
        return str(self.where[name].header[name]["dtype"])

    def raw(self, name: str) -> RawTensor:
        """The bytes of a tensor."""
        return self.where[name].raw(name)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files."""
        return tuple(file.path for file in self.files)


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """One component that a file holds."""

    look: Look
    kind: str  # of the look, or of the prefix where that says more
    family: str  # whose denoiser it is; empty for parts that families share
    prefix: str
    weights: Weights
    shapes: Mapping[str, Shape]  # names less the prefix; scales of fp8 are not among them

    @property
    def formats(self) -> Counter[str]:
        """Number format -> how many tensors have it."""
        return Counter(self.weights.dtype(self.prefix + name) for name in self.shapes)

    @property
    def bytes(self) -> int:
        """Size of its tensors."""
        names = [self.prefix + name for name in self.shapes]
        return sum(self.weights.where[name].size(name) for name in names)

    def scale(self, name: str) -> str | None:
        """The full name of the number that a matrix of fp8 has to be multiplied by."""
        stem = self.prefix + name.removesuffix(".weight")
        return next((stem + end for end in SCALES if stem + end in self.weights.where), None)

    @property
    def scaled(self) -> bool:
        """Whether any of its matrices has a scale of its own."""
        return any(self.scale(name) for name in self.shapes)


def open_weights(path: Path) -> Weights:
    """Open a file, or all shards of a component where the file is one of them. Only headers are read.

    Raises: BaseError where it is a pickle, a GGUF file or nothing known; DataError where it is damaged.
    """
    if not path.is_file():
        raise BaseError(f"{path} is no file.")
    with open_file(path) as file:
        start = file.read(4)
    if start == b"GGUF":
        raise BaseError(f"{path} is a GGUF file: its weights are rounded to blocks. Take the fp16 or bf16 file.")
    if path.suffix.lower() in PICKLE_SUFFIXES:
        return Weights((PickleFile(path),))
    return Weights(tuple(TensorFile(shard) for shard in shards_of(path)))


def shards_of(path: Path) -> list[Path]:
    """A file and the shards that belong to it.

    Raises: BaseError where one is missing.
    """
    found = re.fullmatch(r"(.+)-(\d+)-of-(\d+)(\.\w+)", path.name)
    if not found:
        return [path]
    stem, number, count, end = found.groups()
    wanted = (path.with_name(f"{stem}-{i:0{len(number)}}-of-{count}{end}") for i in range(1, int(count) + 1))
    # The name may claim any number: no more are looked for than until a few are missing.
    shards: list[Path] = []
    missing: list[Path] = []
    for shard in wanted:
        (shards if shard.is_file() else missing).append(shard)
        if len(missing) > MAX_MISSING:
            break
    if missing:
        names = ", ".join(shard.name for shard in missing[:MAX_MISSING])
        more = " and more" if len(missing) > MAX_MISSING else ""
        raise BaseError(f"{path.parent} is missing {names}{more}: the model was copied incompletely.")
    if path not in shards:
        raise BaseError(f"{path} is none of the {int(count)} files that its name speaks of.")
    return shards
