"""One component of a base out of files in another layout: its tensors under the model's own names, cut when asked for.

checkpoint: model.diffusion_model.input_blocks.0.0.weight => unet: conv_in.weight
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from eridiff.core.errors import BaseError
from eridiff.core.files import canonical_json
from eridiff.core.progress import track
from eridiff.core.threads import on_cores
from eridiff.formats.safetensors import RawTensor, digest_tensors
from eridiff.machine.filedigests import FileDigests
from eridiff.weights.files import Found, Weights
from eridiff.weights.lora_keys import Config, Row
from eridiff.weights.signatures import Mark, fits
from eridiff.weights.tensor_keys import ComponentKeys, table_version, to_model

Canonical = Callable[[str, str], str]  # (component, tensor name in its file) -> canonical tensor name
CONFIG_FAULTS = (KeyError, TypeError, ValueError, IndexError, AttributeError)  # of rows, where a key is another's
SHOWN = 3  # names in a message


@dataclass(frozen=True, kw_only=True, eq=False)
class ComponentTensors:
    """The tensors of one component, by canonical name."""

    component: str
    found: Found
    rows: tuple[Row, ...]
    canonical: Canonical

    @cached_property
    def in_file(self) -> dict[str, str]:
        """Name in the table -> name in the file less its prefix."""
        if self.found.look.layout == "original":
            return {name: name for name in self.found.shapes}
        return {self.canonical(self.component, name): name for name in self.found.shapes}

    @cached_property
    def sources(self) -> dict[str, tuple[Row, str]]:
        """Canonical name of a tensor -> its row and the name in the file."""
        return {
            name: (row, self.in_file[row.target])
            for row in self.rows
            if row.target in self.in_file
            for name in row.slices
        }

    @property
    def missing(self) -> list[str]:
        """Names of the table that the file does not have."""
        return [row.target for row in self.rows if row.target not in self.in_file]

    @property
    def extra(self) -> list[str]:
        """Names in the file that no row reads, less those that files of this kind often hold."""
        read = {row.target for row in self.rows}
        spare = self.found.look.spare
        return sorted(
            old for new, old in self.in_file.items() if new not in read and not (spare and old.startswith(spare))
        )

    @property
    def path(self) -> Path:
        """The file, or the first of its shards."""
        return self.found.weights.paths[0]

    def read(self, name: str) -> tuple[RawTensor, RawTensor | None]:
        """One tensor by the model's own name, and the scale of one in fp8."""
        canonical = self.canonical(self.component, name)
        return self.raw(canonical), self.scale(canonical)

    def raw(self, name: str) -> RawTensor:
        """One tensor, by its canonical name.

        Raises: BaseError where the file is missing it.
        """
        if name not in self.sources:
            raise BaseError(f"{self.path} is missing {name} of {self.component}.")
        row, old = self.sources[name]
        return to_model(row, self.found.weights.raw(self.found.prefix + old))[name]

    def scale(self, name: str) -> RawTensor | None:
        """The number that a matrix of fp8 has to be multiplied by, where it has one."""
        full = self.found.scale(self.sources[name][1])
        return self.found.weights.raw(full) if full else None

    def digests(self, remembered: FileDigests) -> dict[str, str]:
        """Canonical name -> digest of dtype, shape and bytes (and scale), as remembered for each file."""
        version, everything = table_version(self.rows), {}
        for file in self.found.weights.files:
            what = f"{self.component}:{self.found.prefix}:{version}"
            text = remembered.remember(file.path, what, lambda file=file: self._digests_of(file.names))  # type: ignore[misc]
            everything.update(json.loads(text))
        return everything

    def _digests_of(self, in_file: list[str]) -> str:
        """JSON of the digests of those tensors that come out of these names of a file."""
        held = set(in_file)
        names = [name for name, (_, old) in self.sources.items() if self.found.prefix + old in held]
        digests = zip(names, on_cores(names, self._digest_of), strict=True)
        shown = track(digests, what="digest", total=len(names), unit="tensors")
        return canonical_json(dict(shown))

    def _digest_of(self, name: str) -> str:
        """The digest of one tensor, by its canonical name, with its scale."""
        scale = self.scale(name)
        return digest_tensors({"": self.raw(name), **({"scale": scale} if scale else {})})


@dataclass(frozen=True, kw_only=True, eq=False)
class FolderTensors:
    """The tensors of one component in diffusers' layout, under the model's own names."""

    component: str
    weights: Weights

    @property
    def path(self) -> Path:
        """The file, or the first of its shards."""
        return self.weights.paths[0]

    def read(self, name: str) -> tuple[RawTensor, None]:
        """One tensor by the model's own name.

        Raises: BaseError where the files do not have it.
        """
        if name not in self.weights.where:
            raise BaseError(f"{self.path} is missing {name} of {self.component}.")
        return self.weights.raw(name), None


def map_component(
    found: Found, keys: ComponentKeys, component: str, config: Config, canonical: Canonical, *, whole: bool = True
) -> ComponentTensors:
    """Read what was found in a file as a component of a base.

    whole: refuse one with missing tensors. Raises: BaseError that names them; and where the config is none of its kind.
    """
    try:
        rows, sizes = keys.rows(found.look.layout, config), keys.sizes(config) if whole else {}
    except CONFIG_FAULTS as error:
        raise BaseError(
            f"the config of {component} is none of its kind ({type(error).__name__}: {error}): copy the model's own."
        ) from None
    tensors = ComponentTensors(component=component, found=found, rows=rows, canonical=canonical)
    if whole:
        refuse_others(tensors, sizes)
    return tensors


def refuse_others(tensors: ComponentTensors, sizes: Mapping[str, Mark]) -> None:
    """Raises: BaseError where tensors are missing, or have other sizes than the config asks for."""
    found, missing = tensors.found, tensors.missing
    what = f"{found.weights.paths[0]} ({found.look.what})"
    if missing:
        raise BaseError(
            f"{what} is missing {len(missing)} of {len(tensors.rows)} tensors of {tensors.component}: "
            f"{shorten(missing)}. "
            "It is of another model, or was saved in part."
        )
    for name, mark in sizes.items():
        shape = found.shapes[tensors.sources[name][1]]
        if not fits(shape, mark):
            raise BaseError(
                f"{what} is not the {tensors.component} of this base: its {name} is {list(shape)}, and must be "
                f"{list(mark or ())}."
            )


def as_kind(found: Found, kind: str, config: Config) -> Found:
    """A CLIP of an unpublished size as the one whose width it has: its header alone does not say which."""
    tokens = found.shapes.get("text_model.embeddings.token_embedding.weight", ())
    if found.kind == "clip" and kind.startswith("clip") and tokens[1:2] == (config.get("hidden_size"),):
        return replace(found, kind=kind)
    return found


def shorten(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
