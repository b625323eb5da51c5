"""Entries of a store, made up: what several test files and their processes put."""

from pathlib import Path

from eridiff.entries import Parts, entry_key
from eridiff.store import Store
from eridiff.tensorfile import RawTensor

Entry = tuple[str, Parts, dict[str, RawTensor]]


def entry(number: int, length: int = 16) -> Entry:
    parts = {"number": number, "crop": {"at": (0, 8), "flip": False}, "vae": "d" * 64}
    values = RawTensor("F32", (length // 4,), bytes((number * 7 + i) % 256 for i in range(length)))
    return entry_key(parts), parts, {"mean": values, "std": RawTensor("U8", (), bytes([number % 256]))}


ENTRIES = [entry(number) for number in range(40)]
KEYS = [key for key, _, _ in ENTRIES]


def filled(root: Path, entries: list[Entry]) -> Store:
    store = Store(root, "latents")
    for item in entries:
        store.put(*item)
    return store


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*"))}
