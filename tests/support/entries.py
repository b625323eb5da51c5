"""Entries of a store, made up: what several test files and their processes put."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from eridiff.formats.safetensors import RawTensor
from eridiff.store.entries import KeyFields, entry_key
from eridiff.store.sharding import split_sorted
from eridiff.store.store import Store

Entry = tuple[str, KeyFields, dict[str, RawTensor]]


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


def split_keys(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """Prefix -> the keys of one shard, as a store splits them by their sizes."""
    keys = np.array(sorted(sizes), dtype=np.bytes_)
    lengths = np.array([sizes[key.decode()] for key in keys], np.int64)
    return {prefix: [key.decode() for key in keys[part]] for prefix, part in split_sorted(keys, lengths)}
