"""Faults of entry and shard files: each byte is looked at.

A file is sound where it is, byte for byte, what the store would write: its header is the one that its entries give,
each entry's tensors give its checksum, its key fields give its key, and the file's name fits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eridiff.core.errors import StoreError
from eridiff.formats.safetensors import TensorFile, header_bytes
from eridiff.store.entries import (
    WAY_OUT,
    Location,
    check_parts,
    open_shard,
    read_catalogue,
    read_entry,
    shard_id,
    shard_metadata,
)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault: the file, what it is, the entry where one can be named, and what is wrong."""

    path: Path
    what: str  # shard, entry, catalogue, pixels, pin, drift check, state, base, stray; out, object, original...
    problem: str
    key: str | None = None

    def line(self) -> str:
        """The fault in one line."""
        return f"{self.path}: {f'entry {self.key[:12]}: ' if self.key else ''}{self.problem}"


def check_shard(path: Path) -> list[Fault]:
    """Faults of a shard of the store."""
    faults, entries = check_file(path, "shard")
    name = shard_id({key: entry.checksum for key, entry in entries.items()})
    if entries and name != path.stem:
        faults.append(Fault(path=path, what="shard", problem=f"its entries ask for the name {name}"))
    return faults


def check_loose(path: Path) -> list[Fault]:
    """Faults of an entry with a file of its own."""
    faults, entries = check_file(path, "entry")
    if entries and (set(entries) != {path.stem} or path.parent.name != path.stem[:2]):
        faults.append(Fault(path=path, what="entry", problem=f"it holds entry {min(entries)[:12]}, not what it says"))
    return faults


def check_file(path: Path, what: str) -> tuple[list[Fault], dict[str, Location]]:
    """Faults of an entry or shard file, whatever its name, and its entries; {} where the header cannot be read."""
    try:
        file = open_shard(path)
        entries = read_catalogue(file)
    except StoreError as error:
        return [Fault(path=path, what=what, problem=reason_of(error, path))], {}
    faults = []
    for key, entry in entries.items():
        try:
            check_parts(entry)
            read_entry(file, key, entry.checksum)
        except StoreError as error:
            problem = reason_of(error, path).removeprefix(f"is damaged: entry {key[:12]} ")
            faults.append(Fault(path=path, what=what, problem=problem.removeprefix("is damaged: "), key=key))
    if not faults and not _is_canonical(file, entries):
        faults.append(Fault(path=path, what=what, problem="its header is not the one that was written"))
    return faults, entries


def _is_canonical(file: TensorFile, entries: dict[str, Location]) -> bool:
    """Whether the header is byte for byte what the store writes for these entries."""
    if not entries:
        return False
    metadata = shard_metadata({key: (entry.checksum, entry.key_fields) for key, entry in entries.items()})
    return bytes(file.first_bytes) == header_bytes({name: file.raw(name) for name in file.names}, metadata)


def reason_of(error: StoreError, path: Path) -> str:
    """An error's reason, less the file's name before and the way out after it."""
    return str(error).removeprefix(f"{path} ").split(". ")[0].rstrip(".")


def refuse_damaged(faults: list[Fault]) -> None:
    """Raises: StoreError that names the first fault, and the way out."""
    for fault in faults:
        problem = f"entry {fault.key[:12]} {fault.problem}" if fault.key else fault.problem
        raise StoreError(f"{fault.path} is damaged: {problem.removeprefix('is damaged: ')}. {WAY_OUT}")


Check = Callable[[Path], None]


def check_now(path: Path) -> None:
    """Read a shard of the store, and refuse a damaged one.

    Raises: StoreError, FileNotFoundError.
    """
    refuse_damaged(check_shard(path))
