"""`eridiff base list` and `eridiff base find`: which bases there are, and where their weights lie on this machine."""

from collections.abc import Iterator
from pathlib import Path

from eridiff.bases.add import base_names, missing_components
from eridiff.bases.find import candidates, find_component
from eridiff.bases.inspect import describe
from eridiff.bases.places import Places, model_files
from eridiff.bases.pointer_files import pointers_of, read_pointer
from eridiff.bases.wanted import has_pointers, how_to_add, makers_family, want_base
from eridiff.core.config import load_section
from eridiff.core.errors import BaseError, EridiffError
from eridiff.family import load_family
from eridiff.machine.filedigests import FileDigests
from eridiff.machine.local import bases_dir
from eridiff.params.model import ModelParams
from eridiff.weights.component_tensors import ComponentTensors
from eridiff.weights.files import open_weights
from eridiff.weights.pointers import PARTS


def list_bases() -> Iterator[str]:
    """A line a base: its family, and the components that are not found here by name and size."""
    names = base_names()
    if not names:
        yield f"no bases in {bases_dir()}: `eridiff base add NAME SOURCE` makes one"
    for name in names:
        try:
            family = read_pointer(name, "denoiser").family
            missing = missing_components(name, family)
        except EridiffError as error:
            yield f"{name}: {error}"
            continue
        yield f"{name}: {family}, " + (f"not on this machine: {', '.join(missing)}" if missing else "found")


def find_base(name: str, *, deep: bool = False) -> Iterator[str]:
    """A line a component: where it lies, its content compared with the pointer's.

    deep: every byte is read again, whatever is remembered of the files.
    Raises: BaseError where one is nowhere, or is another.
    """
    names = base_names()
    if name not in names:
        raise BaseError(f"there is no base '{name}'. Known: {', '.join(names) or '(none)'}.")
    family = read_pointer(name, "denoiser").family
    pointers = pointers_of(name, load_family(family).PARTS, family)
    with FileDigests(anew=lambda _: deep) as digests:
        for pointer in pointers.values():
            for component in pointer.components.values():
                if component.files:
                    place = find_component(pointer, component, digests)
                    where = (
                        ", ".join(map(str, place.found.weights.paths)) if isinstance(place, ComponentTensors) else place
                    )
                    yield f"{component.name}: {where}"


def place_base(name: str) -> Iterator[str]:
    """One base that has pointers: by names and sizes, unread, where its components lie."""
    try:
        family = read_pointer(name, "denoiser").family
        pointers = pointers_of(name, load_family(family).PARTS, family)
    except EridiffError as error:
        yield f"{name}: {error}"
        return
    places: dict[str, list[str]] = {}
    for pointer in pointers.values():
        for component in pointer.components.values():
            if component.files:
                place = next(candidates(pointer, component), None)
                places.setdefault(_where(place), []).append(component.name)
    yield f"{name}: {family}"
    yield from (f"  {', '.join(components)}: {where}" for where, components in places.items())


def _where(place: Path | ComponentTensors | None) -> str:
    """A component's folder less its own name, or its files."""
    if place is None:
        return "not on this machine"
    return str(place.parent if isinstance(place, Path) else place.found.weights.paths[0])


def want(name: str) -> Iterator[str]:
    """`eridiff base want`: wanted pointers of a published model; where a base of that name is here, what stands.

    Raises: BaseError for a name that no makers gave.
    """
    if has_pointers(name):
        yield f"base '{name}' was added here already, so nothing is written. It stands as:"
        yield from place_base(name)
        yield f"Other weights under that name: `eridiff base add {name} SOURCE`"
        return
    written = want_base(name)
    yield from (f"written: {path}" for path in written)
    standing = [path for part in PARTS if (path := bases_dir() / name / f"{part}.json") not in written]
    yield from (f"stays as it is: {path}" for path in standing)
    if not written:
        yield f"base '{name}' was wanted already, so nothing is written"
        yield how_to_add(name, str(makers_family(name)))


def verify_deep(name: str | None) -> Iterator[str]:
    """`find_base` of a base, or of the current project's, without what is remembered.

    Raises: BaseError where its weights are not those of the pointers.
    """
    name = name or load_section(ModelParams, "model").base
    yield from find_base(name, deep=True)
    yield f"{name}: every byte is the one that the pointers were made of"


def find_models() -> Iterator[str]:
    """The bases that have pointers, and where they lie; then what every other weight file is in the named folders and
    in ComfyUI's, and the model folders of the hub's cache.
    """
    places, found = Places(), False
    for name in base_names():
        found = True
        yield from place_base(name)
    folders = [*places.roots, *places.comfyui_folders]
    for path in dict.fromkeys(path for folder in folders for path in model_files(folder)):
        found = True
        try:
            yield from describe(open_weights(path))
        except EridiffError as error:
            yield f"{path.name}: {error}"
        yield f"  {path}"
    for index in places.snapshots:
        found = True
        yield f"{index.parent.parent.parent.name.removeprefix('models--').replace('--', '/')}: {index.parent}"
    if not found:
        yield f"no models found. Searched: {places.described()}"
