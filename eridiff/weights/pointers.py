"""Bases by what they are: a pointer says which weights are meant, a source where their files lie on this machine.

A pointer names the components of one part (vae, text, denoiser): their configs, their files with sizes, and a digest
over their tensors under canonical names.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eridiff.formats.safetensors import TensorFile
from eridiff.weights.component_tensors import ComponentTensors, FolderTensors
from eridiff.weights.components import Component
from eridiff.weights.files import Weights

PARTS = ("vae", "text", "denoiser")
UNSEALED_FORMAT = 1  # of pointers from before checksums, which git keeps


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """What one part of a base is, wherever its files lie."""

    base: str
    family: str
    part: str
    components: dict[str, Component]

    def identity(self) -> dict[str, dict[str, str]]:
        """Component name -> its digests."""
        return {name: component.identity() for name, component in sorted(self.components.items())}


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """The parts of a base whose files were found and checked on this machine."""

    pointers: dict[str, Pointer]
    folders: dict[str, Path]  # component name -> the folder of its files
    single_files: dict[str, ComponentTensors] = field(default_factory=dict)  # component name -> its tensors there
    empty: bool = False  # no files: models are made of their configs on torch's meta device, for their shapes

    def component(self, name: str) -> Component:
        """What a component is."""
        return next(p.components[name] for p in self.pointers.values() if name in p.components)

    def config(self, component: str) -> dict[str, Any]:
        """The config of a component."""
        return self.component(component).config

    def tensors(self, component: str, *, own_names: bool) -> ComponentTensors | FolderTensors | None:
        """A component's mapped tensors: in single files; in its folder, if it has the model's own names there."""
        if component in self.single_files or not own_names:
            return self.single_files.get(component)
        names = sorted(name for name in self.component(component).files if name.endswith(".safetensors"))
        files = tuple(TensorFile(self.folders[component] / name) for name in names)
        return FolderTensors(component=component, weights=Weights(files))


def empty_source(pointers: Iterable[Pointer]) -> ModelSource:
    """Models without weights, by the pointers alone."""
    return ModelSource(pointers={pointer.part: pointer for pointer in pointers}, folders={}, empty=True)


def pointer_text(pointer: Pointer, marks: Mapping[str, Any] | None = None) -> str:
    """The pointer file's text: sorted, indented, readable in a diff. marks: None: those of one without a checksum."""
    components = {
        c.name: {"config": c.config, "digest": c.digest, "files": c.files} for c in pointer.components.values()
    }
    marks = marks or {"format": UNSEALED_FORMAT}
    record = {**marks, "family": pointer.family, "part": pointer.part, "components": components}
    return json.dumps(record, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
