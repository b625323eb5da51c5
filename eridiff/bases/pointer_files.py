"""Files of pointers: `data/bases/NAME/PART.json`, small and in git.

A stage depends on the pointer of each part that it uses, so a clone whose weights lie elsewhere has nothing to rerun,
and other weights are refused.
"""

import difflib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from eridiff.bases.wanted import how_to_add, makers_family, wanted_family
from eridiff.core.errors import BaseError, DataError
from eridiff.core.files import read_file
from eridiff.core.json_files import MAX_JSON_BYTES, Record, read_record
from eridiff.formats.seals import BLANK, KEY, check_seal, sealed, write_sealed
from eridiff.machine.local import bases_dir
from eridiff.weights.components import Component, ComponentRecord
from eridiff.weights.pointers import UNSEALED_FORMAT, Pointer, pointer_text

NEAR = 0.8  # likeness of a name to be taken for a misspelt one: two names that share an ending are not
FORMAT = 2


class PointerRecord(Record):
    """A pointer as its file has it."""

    format: int = UNSEALED_FORMAT
    family: str
    part: str
    components: dict[str, ComponentRecord]


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
