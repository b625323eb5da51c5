"""Where a base's files lie: found per machine, by what its pointers say, and refused where the weights are others."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from eridiff.bases.marks import unheeded
from eridiff.bases.places import Places
from eridiff.bases.recognise import components_in
from eridiff.bases.tokenizers import built_in_tokenizers
from eridiff.core.errors import BaseError, DataError
from eridiff.core.progress import warn
from eridiff.family import Keys, load_family, load_keys
from eridiff.machine.filedigests import FileDigests
from eridiff.machine.local import load_local
from eridiff.machine.page_cache import worth_reading
from eridiff.weights.component_tensors import ComponentTensors, as_kind, map_component
from eridiff.weights.components import Component, describe_folder, describe_tensors
from eridiff.weights.files import open_weights
from eridiff.weights.pointers import ModelSource, Pointer


def find_source(pointers: Iterable[Pointer]) -> ModelSource:
    """Find the files of these parts on this machine and check them against the pointers.

    Raises: BaseError that names the missing or differing file, and where it was looked for.
    """
    found = {pointer.part: pointer for pointer in pointers}
    folders: dict[str, Path] = {}
    single_files: dict[str, ComponentTensors] = {}
    wanted = [(p, c) for p in found.values() for c in p.components.values() if c.files]  # a scheduler is its config
    with FileDigests(days=load_local().check_days, anew=worth_reading) as digests:
        for pointer, component in wanted:
            place = find_component(pointer, component, digests)
            if isinstance(place, Path):
                folders[component.name] = place
            else:
                single_files[component.name] = place
                _tell_unheeded(pointer, component, place)
    return ModelSource(pointers=found, folders=folders, single_files=single_files)


def _tell_unheeded(pointer: Pointer, component: Component, place: ComponentTensors) -> None:
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


def find_component(pointer: Pointer, component: Component, digests: FileDigests) -> Path | ComponentTensors:
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


def candidates(pointer: Pointer, component: Component) -> Iterator[Path | ComponentTensors]:
    """Places where a component may lie, the likeliest first; their content is not looked at."""
    places, keys = Places(pointer.base), load_keys(pointer.family)
    folders = (folder / component.name for folder in places.model_folders())
    yield from (folder for folder in folders if _has_files(folder, component.files))
    if not any(name.endswith(".safetensors") for name in component.files):
        yield from (folder for folder in places.tokenizers() if _has_files(folder, component.files))
        yield from (folder for folder in built_in_tokenizers() if _has_files(folder, component.files))
    if component.name in keys.COMPONENTS:
        for path in places.files():
            same_size = component.files.get(path.name) == path.stat().st_size
            if same_size and (tensors := read_component(path, keys, component)):
                yield tensors
        for path in places.named:
            if path.is_file() and (tensors := read_component(path, keys, component)):
                yield tensors
            elif any((path / component.name).glob("*.safetensors")):
                yield path / component.name


def _has_files(folder: Path, files: Mapping[str, int]) -> bool:
    """Whether a folder has these files at these sizes."""
    return folder.is_dir() and all(
        (folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files.items()
    )


def read_component(path: Path, keys: Keys, component: Component) -> ComponentTensors | None:
    """A component's tensors in a file, by the config that is meant; None where the file does not have them all."""
    wanted = keys.COMPONENTS[component.name]
    try:
        found, _ = components_in(open_weights(path))
    except (BaseError, DataError):
        return None
    for one in (as_kind(one, wanted.kind, component.config) for one in found):
        if one.kind == wanted.kind:
            tensors = map_component(one, wanted, component.name, component.config, keys.canonical, whole=False)
            if not tensors.missing:
                return tensors
    return None


def _describe(place: Path | ComponentTensors, keys: Keys, meant: Component, digests: FileDigests) -> Component:
    """What lies at a place."""
    if isinstance(place, ComponentTensors):
        return describe_tensors(place, meant.config, digests)
    return describe_folder(place, keys.canonical, digests, meant.variant, meant.name)


def _difference(place: Path | ComponentTensors, here: Component, meant: Component, base: str) -> str:
    """Why a place is not what the pointer names; empty where it is."""
    if here.digest != meant.digest:
        wrong = f"its content has digest {here.digest[:12]}, the pointer says {meant.digest[:12]}"
    elif here.config != meant.config:
        missing = object()  # a key that holds nothing is another thing than no key
        keys = sorted(
            key
            for key in {*here.config, *meant.config}
            if here.config.get(key, missing) != meant.config.get(key, missing)
        )
        wrong = f"its config differs from the pointer's in {', '.join(keys)}"
    else:
        return ""
    name = str(place)
    if isinstance(place, ComponentTensors):
        name = f"{meant.name} ({place.found.look.what}) in {place.found.weights.paths[0]}"
    return (
        f"{name} is not what the pointer of base '{base}' names: {wrong}. Put the right files there, or make new "
        "pointers with `eridiff base add`."
    )
