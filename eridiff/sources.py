"""Bases: small pointers in git say which weights are meant; where the files lie is found per machine.

`data/bases/NAME/PART.json` names the components of one part (vae, text, denoiser): their configs, their files
with sizes, and a digest over their tensors under canonical names. A stage depends on the pointer of each part
that it uses, so a clone whose weights lie elsewhere has nothing to rerun, and other weights are refused.
"""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eridiff.components import Component, ComponentRecord, describe_folder, describe_part
from eridiff.errors import BaseError, DataError
from eridiff.families import Keys, load_family, load_keys
from eridiff.filedigests import FileDigests
from eridiff.files import read_file
from eridiff.headers import Weights, find_parts, open_weights
from eridiff.jsonfiles import MAX_JSON_BYTES, Record, read_record
from eridiff.marks import unheeded
from eridiff.partfiles import FolderTensors, PartTensors, as_kind, map_part
from eridiff.places import Places
from eridiff.progress import warn
from eridiff.project import bases_dir, load_local
from eridiff.seals import BLANK, KEY, check_seal, sealed, write_sealed
from eridiff.tensorfile import TensorFile
from eridiff.tokenizers import built_in_tokenizers
from eridiff.wanted import how_to_add, makers_family, wanted_family

if TYPE_CHECKING:
    from eridiff.quantise import Storage

PARTS = ("vae", "text", "denoiser")
NEAR = 0.8  # likeness of a name to be taken for a misspelt one: two names that share an ending are not
UNSEALED_FORMAT = 1  # of pointers from before checksums, which git keeps
FORMAT = 2


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


class PointerRecord(Record):
    """A pointer as its file has it."""

    format: int = UNSEALED_FORMAT
    family: str
    part: str
    components: dict[str, ComponentRecord]


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """The parts of a base whose files were found and checked on this machine."""

    pointers: dict[str, Pointer]
    folders: dict[str, Path]  # component name -> the folder of its files
    parts: dict[str, PartTensors] = field(default_factory=dict)  # component name -> its tensors in single files
    storage: "Storage | None" = None  # where some components go as they are loaded, and in how many bits
    empty: bool = False  # no files: models are made of their configs on torch's meta device, for their shapes

    def component(self, name: str) -> Component:
        """What a component is."""
        return next(p.components[name] for p in self.pointers.values() if name in p.components)

    def config(self, component: str) -> dict[str, Any]:
        """The config of a component."""
        return self.component(component).config

    def tensors(self, component: str, *, own_names: bool) -> PartTensors | FolderTensors | None:
        """A component's mapped tensors: in single files; in its folder, if it has the model's own names there."""
        if component in self.parts or not own_names:
            return self.parts.get(component)
        names = sorted(name for name in self.component(component).files if name.endswith(".safetensors"))
        files = tuple(TensorFile(self.folders[component] / name) for name in names)
        return FolderTensors(component=component, weights=Weights(files))


def read_pointer(base: str, part: str) -> Pointer:
    """Read `data/bases/BASE/PART.json`.

    Raises: BaseError where there is none, with the bases that exist, or as read_pointer_file.
    """
    path = bases_dir() / base / f"{part}.json"
    if not path.exists():
        raise BaseError(_no_pointer(base, path.name))
    return read_pointer_file(path)


def read_pointer_file(path: Path) -> Pointer:
    """Read a pointer; its folder is called as the base.

    Raises: BaseError where it is only wanted, or cannot be read.
    """
    base = path.parent.name
    if family := wanted_family(path):
        raise BaseError(how_to_add(base, family))
    try:
        record = read_record(path, PointerRecord)
        if not check_seal(read_file(path, MAX_JSON_BYTES), path) and record.format != UNSEALED_FORMAT:
            raise ValueError("it carries no checksum")
    except (DataError, ValueError) as error:
        raise BaseError(f"{path} is no pointer ({error}): make it again with `eridiff base add`.") from None
    components = {
        name: Component(name=name, config=c.config, files=c.files, digest=c.digest)
        for name, c in record.components.items()
    }
    return Pointer(base=base, family=record.family, part=record.part, components=components)


def _no_pointer(base: str, file: str) -> str:
    """What to say where a base has no pointer. A published model is no misspelt one of the bases that are here."""
    if family := makers_family(base):
        return (
            f"{how_to_add(base, family)} `eridiff base want {base}` lets all run meanwhile that needs no weights: "
            "captions, buckets, `eridiff plan`."
        )
    known = sorted(path.parent.name for path in bases_dir().glob(f"*/{file}"))
    nearest = difflib.get_close_matches(base, known, n=1, cutoff=NEAR)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return (
        f"base '{base}' has no pointer {file}.{hint} Known: {', '.join(known) or '(none)'}. `eridiff base add {base} "
        "SOURCE` makes one from a model folder or its files."
    )


def write_pointer(path: Path, pointer: Pointer) -> None:
    """Write a pointer with its checksum; one that says the same already keeps its bytes, and so starts no stage."""
    with suppress(BaseError):
        if read_pointer(path.parent.name, path.stem) == pointer:
            return
    text = pointer_text(pointer, {"format": FORMAT, KEY: BLANK})
    write_sealed(path, sealed(text.encode("utf-8")))


def pointer_text(pointer: Pointer, marks: Mapping[str, Any] | None = None) -> str:
    """The pointer file's text: sorted, indented, readable in a diff. marks: None: those of one without a checksum."""
    components = {
        c.name: {"config": c.config, "digest": c.digest, "files": c.files} for c in pointer.components.values()
    }
    marks = marks or {"format": UNSEALED_FORMAT}
    record = {**marks, "family": pointer.family, "part": pointer.part, "components": components}
    return json.dumps(record, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def empty_source(pointers: Iterable[Pointer]) -> ModelSource:
    """Models without weights, by the pointers alone."""
    return ModelSource(pointers={pointer.part: pointer for pointer in pointers}, folders={}, empty=True)


def find_source(pointers: Iterable[Pointer]) -> ModelSource:
    """Find the files of these parts on this machine and check them against the pointers.

    Raises: BaseError that names the missing or differing file, and where it was looked for.
    """
    found = {pointer.part: pointer for pointer in pointers}
    folders: dict[str, Path] = {}
    parts: dict[str, PartTensors] = {}
    wanted = [(p, c) for p in found.values() for c in p.components.values() if c.files]  # a scheduler is its config
    with FileDigests(days=load_local().check_days) as digests:
        for pointer, component in wanted:
            place = find_component(pointer, component, digests)
            if isinstance(place, Path):
                folders[component.name] = place
            else:
                parts[component.name] = place
                _tell_unheeded(pointer, component, place)
    return ModelSource(pointers=found, folders=folders, parts=parts)


def _tell_unheeded(pointer: Pointer, component: Component, place: PartTensors) -> None:
    """Say where a denoiser's file marks an objective that its pointer does not have: `base add` was older."""
    family = load_family(pointer.family)
    if component.name != family.DENOISER:
        return
    scheduler = pointer.components["scheduler"].config if "scheduler" in pointer.components else {}
    if names := unheeded(place.found, scheduler, family.OBJECTIVE):
        warn(
            f"{place.path} has the {' and '.join(names)}, of which the pointer of base '{pointer.base}' says nothing: "
            "it is trained and drawn with another objective than its own. Add it again: "
            f"`eridiff base add {pointer.base} {place.path}`."
        )


def find_component(pointer: Pointer, component: Component, digests: FileDigests) -> Path | PartTensors:
    """The folder of a component, or its tensors in files, checked against the pointer.

    The first place counts that has files of the right names and sizes; then what local.yaml names, whatever its names
    and sizes, since another file may hold the same tensors. Raises: BaseError where there is none, or other weights.
    """
    places, keys = Places(pointer.base), load_keys(pointer.family)
    refusals = []
    for place in candidates(pointer, component):
        here = _describe(place, keys, component, digests)
        refusal = _difference(place, here, component, pointer.base)
        if not refusal:
            return place
        refusals.append(refusal)
    if refusals:
        raise BaseError(refusals[0])
    wanted = ", ".join(f"{name} ({size} bytes)" for name, size in component.files.items())
    raise BaseError(
        f"the weights of base '{pointer.base}', component {component.name}, are not on this machine. Wanted: {wanted}. "
        f"Searched: {places.described()}. Name their folder, or files, in local.yaml "
        f"(bases: {{{pointer.base}: PATH}}) or put FOLDER/{pointer.base} under a folder of ERIDIFF_MODELS."
    )


def candidates(pointer: Pointer, component: Component) -> Iterator[Path | PartTensors]:
    """Places where a component may lie, the likeliest first; their content is not looked at."""
    places, keys = Places(pointer.base), load_keys(pointer.family)
    folders = (folder / component.name for folder in places.model_folders())
    yield from (folder for folder in folders if _has_files(folder, component.files))
    if not any(name.endswith(".safetensors") for name in component.files):
        yield from (folder for folder in places.tokenizers() if _has_files(folder, component.files))
        yield from (folder for folder in built_in_tokenizers() if _has_files(folder, component.files))
    if component.name in keys.COMPONENTS:
        for path in places.files():
            if component.files.get(path.name) == path.stat().st_size and (tensors := read_part(path, keys, component)):
                yield tensors
        for path in places.named:
            if path.is_file() and (tensors := read_part(path, keys, component)):
                yield tensors
            elif any((path / component.name).glob("*.safetensors")):
                yield path / component.name


def _has_files(folder: Path, files: Mapping[str, int]) -> bool:
    """Whether a folder has these files at these sizes."""
    return folder.is_dir() and all(
        (folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files.items()
    )


def read_part(path: Path, keys: Keys, component: Component) -> PartTensors | None:
    """A component's tensors in a file, by the config that is meant; None where the file does not have them all."""
    part = keys.COMPONENTS[component.name]
    try:
        found, _ = find_parts(open_weights(path))
    except (BaseError, DataError):
        return None
    for one in (as_kind(one, part.kind, component.config) for one in found):
        if one.kind == part.kind:
            tensors = map_part(one, part, component.name, component.config, keys.canonical, whole=False)
            if not tensors.missing:
                return tensors
    return None


def _describe(place: Path | PartTensors, keys: Keys, meant: Component, digests: FileDigests) -> Component:
    """What lies at a place."""
    if isinstance(place, PartTensors):
        return describe_part(place, meant.config, digests)
    return describe_folder(place, keys.canonical, digests, meant.variant, meant.name)


def _difference(place: Path | PartTensors, here: Component, meant: Component, base: str) -> str:
    """Why a place is not what the pointer names; empty where it is."""
    if here.digest != meant.digest:
        wrong = f"its content has digest {here.digest[:12]}, the pointer says {meant.digest[:12]}"
    elif here.config != meant.config:
        keys = sorted(k for k in {*here.config, *meant.config} if here.config.get(k) != meant.config.get(k))
        wrong = f"its config differs from the pointer's in {', '.join(keys)}"
    else:
        return ""
    name = str(place)
    if isinstance(place, PartTensors):
        name = f"{meant.name} ({place.found.look.what}) in {place.found.weights.paths[0]}"
    return (
        f"{name} is not what the pointer of base '{base}' names: {wrong}. Put the right files there, or make new "
        "pointers with `eridiff base add`."
    )


def pointers_of(base: str, parts: Iterable[str], family: str) -> dict[str, Pointer]:
    """Pointers of several parts, checked to be of one family.

    Raises: BaseError where a part belongs to another family.
    """
    pointers: Mapping[str, Pointer] = {part: read_pointer(base, part) for part in parts}
    for pointer in pointers.values():
        if pointer.family != family:
            raise BaseError(
                f"params.yaml: model.base '{base}' is a base of family '{pointer.family}', but model.family is "
                f"'{family}'. Change one of the two."
            )
    return dict(pointers)
