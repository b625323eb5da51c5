"""`eridiff base list` and `eridiff base find`: which bases there are, and where their weights lie on this machine."""

from collections.abc import Iterator

from eridiff.bases import known_bases, missing_components
from eridiff.config import ModelParams, load_section
from eridiff.errors import BaseError, EridiffError
from eridiff.families import load_family
from eridiff.filedigests import FileDigests
from eridiff.headers import open_weights
from eridiff.inspect import describe
from eridiff.partfiles import PartTensors
from eridiff.places import Places
from eridiff.project import bases_dir
from eridiff.sources import find_component, pointers_of


def list_bases() -> Iterator[str]:
    """A line a base: its family, and the components that are not found here by name and size."""
    bases = known_bases()
    if not bases:
        yield f"no bases in {bases_dir()}: `eridiff base add NAME SOURCE` makes one"
    for name, family in bases.items():
        try:
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
    bases = known_bases()
    if name not in bases:
        raise BaseError(f"there is no base '{name}'. Known: {', '.join(bases) or '(none)'}.")
    pointers = pointers_of(name, load_family(bases[name]).PARTS, bases[name])
    with FileDigests(anew=deep) as digests:
        for pointer in pointers.values():
            for component in pointer.components.values():
                if component.files:
                    place = find_component(pointer, component, digests)
                    where = ", ".join(map(str, place.found.weights.paths)) if isinstance(place, PartTensors) else place
                    yield f"{component.name}: {where}"


def verify_deep(name: str | None) -> Iterator[str]:
    """`find_base` of a base, or of the current project's, without what is remembered.

    Raises: BaseError where its weights are not those of the pointers.
    """
    name = name or load_section(ModelParams, "model").base
    yield from find_base(name, deep=True)
    yield f"{name}: every byte is the one that the pointers were made of"


def find_models() -> Iterator[str]:
    """What every weight file in the named folders and in ComfyUI's is, then model folders of the hub's cache."""
    places, found = Places(), False
    for path in places.files():
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
