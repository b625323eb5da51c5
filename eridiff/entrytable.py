"""Which entries there are and where, in a few dozen bytes each: sorted arrays instead of objects.

A store of 100,000 entries takes 13 MB here. What is added meanwhile waits in a small dict and is merged in when that
has grown to a quarter of the whole. Any thread may read and add.
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

import numpy as np
from numpy.typing import NDArray

from eridiff.entries import CHECKSUM_LETTERS, KEY_LETTERS, Location
from eridiff.placement import Keys

ALONE = -1  # in place of a file's number: the entry has a file of its own
FEW = 4096  # additions that are never merged in
KEY, CHECKSUM = f"S{KEY_LETTERS}", f"S{CHECKSUM_LETTERS}"
Addition = tuple[str, int, int]  # checksum, bytes, number of the file


@dataclass(frozen=True)
class Rows:
    """Some rows of remembered columns, as bytes: of keys, checksums and sizes those from start to stop."""

    keys: memoryview
    checksums: memoryview
    sizes: memoryview
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Columns:
    """Rows on their way into a table: raw bytes, no object a row."""

    def __init__(self) -> None:
        self.keys, self.checksums = bytearray(), bytearray()
        self.sizes, self.files = array("q"), array("i")

    def add(self, key: str, checksum: str, size: int, file: int) -> None:
        """One row more."""
        self.keys += key.encode()
        self.checksums += checksum.encode()
        self.sizes.append(size)
        self.files.append(file)

    def extend(self, rows: Rows, file: int) -> None:
        """Many rows of one file more."""
        self.keys += rows.keys[rows.start * KEY_LETTERS : rows.stop * KEY_LETTERS]
        self.checksums += rows.checksums[rows.start * CHECKSUM_LETTERS : rows.stop * CHECKSUM_LETTERS]
        self.sizes.frombytes(rows.sizes[rows.start * 8 : rows.stop * 8])
        self.files.extend(array("i", [file]) * len(rows))

    def __len__(self) -> int:
        return len(self.sizes)


class EntryTable(Mapping[str, Location]):
    """Key -> where its entry lies. Of several rows with one key the first counts."""

    def __init__(self, folder: Path, files: Iterable[Path] = (), columns: Columns | None = None) -> None:
        """folder: of the kind, below which entries with files of their own lie. files: the others, by number."""
        self.folder = folder
        self.paths = list(files)
        self._numbers = {path: number for number, path in enumerate(self.paths)}
        self._lock = RLock()
        self._new: dict[str, Addition] = {}
        self._set(columns or Columns())

    def _set(self, columns: Columns) -> None:
        keys = np.frombuffer(columns.keys, KEY)
        _, first = np.unique(keys, return_index=True)  # sorted; the first of equal ones
        self._keys = keys[first]
        self._checksums = np.frombuffer(columns.checksums, CHECKSUM)[first]
        self._sizes = np.frombuffer(columns.sizes, np.int64)[first]
        self._files = np.frombuffer(columns.files, np.intc)[first]

    def loose_path(self, key: str) -> Path:
        """Where an entry has a file of its own."""
        return self.folder / "entries" / key[:2] / f"{key}.safetensors"

    def _find(self, key: str) -> Addition | None:
        with self._lock:
            if key in self._new:
                return self._new[key]
            raw = key.encode("ascii", "replace")
            place = int(np.searchsorted(self._keys, np.bytes_(raw)))
            if place == len(self._keys) or self._keys[place] != raw:
                return None
            return self._checksums[place].decode(), int(self._sizes[place]), int(self._files[place])

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._find(key) is not None

    def __getitem__(self, key: str) -> Location:
        found = self._find(key)
        if found is None:
            raise KeyError(key)
        checksum, size, file = found
        return Location(key, self.loose_path(key) if file == ALONE else self.paths[file], checksum, size)

    def add(self, entry: Location) -> None:
        """Take in one entry; it comes before one of the same key."""
        with self._lock:
            file = ALONE if entry.path == self.loose_path(entry.key) else self._number(entry.path)
            self._new[entry.key] = entry.checksum, entry.size, file
            if len(self._new) > max(FEW, len(self._keys) // 4):
                self._merge()

    def _number(self, path: Path) -> int:
        number = self._numbers.setdefault(path, len(self.paths))
        if number == len(self.paths):
            self.paths.append(path)
        return number

    def _merge(self) -> None:
        """Take what was added into the arrays; it comes before what they had."""
        if not self._new:
            return
        columns = Columns()
        for key, (checksum, size, file) in self._new.items():
            columns.add(key, checksum, size, file)
        columns.keys += self._keys.tobytes()
        columns.checksums += self._checksums.tobytes()
        columns.sizes.frombytes(self._sizes.tobytes())
        columns.files.frombytes(self._files.tobytes())
        self._set(columns)
        self._new = {}

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            self._merge()
            keys = self._keys
        return (key.decode() for key in keys)

    def __len__(self) -> int:
        with self._lock:
            self._merge()
            return len(self._keys)

    def lacking(self, keys: Keys) -> Keys:
        """Those of some sorted keys that are not here."""
        with self._lock:
            self._merge()
            return keys[~self._are_here(keys)]

    def sizes(self, keys: Keys) -> NDArray[np.int64]:
        """Bytes of entries that all are here."""
        with self._lock:
            self._merge()
            return self._sizes[np.searchsorted(self._keys, keys)]

    def checksums(self, keys: Keys) -> list[str]:
        """Checksums of entries that all are here."""
        with self._lock:
            self._merge()
            return [checksum.decode() for checksum in self._checksums[np.searchsorted(self._keys, keys)]]

    def move(self, keys: Iterable[str], path: Path) -> None:
        """Say that entries, as they are, lie in another file now; of what is not here nothing is said."""
        with self._lock:
            number = self._number(path)
            old = []
            for key in keys:
                if key in self._new:
                    self._new[key] = (*self._new[key][:2], number)
                else:
                    old.append(key)
            wanted = sorted_keys(old)
            self._files[np.searchsorted(self._keys, wanted[self._are_here(wanted)])] = number

    def _are_here(self, keys: Keys) -> NDArray[np.bool_]:
        if not len(self._keys):
            return np.zeros(len(keys), np.bool_)
        places = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        return np.asarray(self._keys[places] == keys)


def sorted_keys(keys: Iterable[str] | Keys) -> Keys:
    """Keys, each once, sorted, as an array."""
    return np.unique(keys if isinstance(keys, np.ndarray) else np.fromiter((key.encode() for key in keys), KEY))
