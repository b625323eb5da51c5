"""A pointer of a base in words: which part of which base, which files are meant, and whether they are here."""

from collections.abc import Iterator
from pathlib import Path

from eridiff.bases.find import candidates
from eridiff.bases.pointer_files import read_pointer_file
from eridiff.bases.wanted import how_to_add, wanted_family
from eridiff.core.errors import BaseError
from eridiff.core.json_files import read_json
from eridiff.weights.pointers import PARTS

WHAT = "a pointer, which says what weights are meant and holds none"
KEYS = {"family", "part"}  # that every pointer has


def is_pointer(path: Path) -> bool:
    """Whether a file is a pointer, or was one: by its keys, else by its name in a folder of bases."""
    if path.suffix != ".json" or not path.is_file():
        return False
    try:
        return read_json(path).keys() >= KEYS
    except ValueError:
        return path.stem in PARTS and path.parent.parent.name == "bases"


def pointer_files(folder: Path) -> list[Path]:
    """Pointers below a folder, sorted."""
    return sorted(path for part in PARTS for path in folder.rglob(f"{part}.json") if is_pointer(path))


def describe_pointer(path: Path, name: str) -> Iterator[str]:
    """A line on what the file is, then one a component; by names and sizes, no weight is read.

    Raises: BaseError where it is damaged.
    """
    path = path.absolute()  # its folder is called as the base
    base = path.parent.name
    if family := wanted_family(path):
        yield f"{name}: {WHAT}: {path.stem} of base '{base}' ({family}), which is wanted"
        yield f"  {how_to_add(base, family)}"
        return
    pointer = read_pointer_file(path)
    yield f"{name}: {WHAT}: {pointer.part} of base '{base}' ({pointer.family})"
    for component in pointer.components.values():
        if not component.files:
            yield f"  {component.name}: its config alone, no files"
            continue
        place = next(candidates(pointer, component), None)
        where = "not on this machine"
        if place is not None:
            where = f"here by name and size, in {place if isinstance(place, Path) else place.path}"
        yield f"  {component.name}: {where}: " + ", ".join(f"{file} ({n} bytes)" for file, n in component.files.items())
    yield f"  `eridiff base find {base}` compares their content; `eridiff base add {base} SOURCE` makes it again"


def refuse_other_json(path: Path) -> None:
    """Say of a JSON file that is no pointer what it may be.

    Raises: BaseError.
    """
    if path.suffix == ".json" and path.is_file() and not is_pointer(path):
        raise BaseError(f"{path} is neither a weight file nor a pointer of a base, which has the keys family and part.")
