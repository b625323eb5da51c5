"""Which entries there are and where: columns of raw bytes, and a dict that says in which row a key stands.

A store of 100,000 entries takes 27 MB here. Any thread may read and add.
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

import numpy as np
from numpy.typing import NDArray

from eridiff.store.entries import CHECKSUM_LETTERS, KEY_LETTERS, Location
from eridiff.store.sharding import Keys

ALONE = -1  # in place of a file's number: the entry has a file of its own
KEY, CHECKSUM = f"S{KEY_LETTERS}", f"S{CHECKSUM_LETTERS}"


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
    """Rows of a table: raw bytes, no object a row."""

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

    def row(self, place: int) -> tuple[str, int, int]:
        """Checksum, bytes and number of the file of one row."""
        checksum = self.checksums[place * CHECKSUM_LETTERS : (place + 1) * CHECKSUM_LETTERS]
        return checksum.decode(), self.sizes[place], self.files[place]

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
        self._columns = columns or Columns()
        keys = np.frombuffer(self._columns.keys, KEY).tolist()
        self._rows = dict(zip(reversed(keys), reversed(range(len(keys))), strict=True))

    def loose_path(self, key: str) -> Path:
        """Where an entry has a file of its own."""
        return self.folder / "entries" / key[:2] / f"{key}.safetensors"

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key.encode() in self._rows

    def __getitem__(self, key: str) -> Location:
        with self._lock:
            if (row := self._rows.get(key.encode())) is None:
                raise KeyError(key)
            checksum, size, file = self._columns.row(row)
        return Location(key, self.loose_path(key) if file == ALONE else self.paths[file], checksum, size)

    def add(self, entry: Location) -> None:
        """Take in one entry; it comes before one of the same key."""
        with self._lock:
            file = ALONE if entry.path == self.loose_path(entry.key) else self._number(entry.path)
            self._columns.add(entry.key, entry.checksum, entry.size, file)
            self._rows[entry.key.encode()] = len(self._columns) - 1

    def _number(self, path: Path) -> int:
        number = self._numbers.setdefault(path, len(self.paths))
        if number == len(self.paths):
            self.paths.append(path)
        return number

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            keys = sorted(self._rows)
        return (key.decode() for key in keys)

    def __len__(self) -> int:
        return len(self._rows)

    def lacking(self, keys: Keys) -> Keys:
        """Those of some sorted keys that are not here."""
        return keys[[key not in self._rows for key in keys.tolist()]] if len(keys) else keys

    def sizes(self, keys: Keys) -> NDArray[np.int64]:
        """Bytes of entries that all are here."""
        with self._lock:  # columns cannot grow while numpy looks at them
            return np.frombuffer(self._columns.sizes, np.int64)[self._places(keys)]

    def checksums(self, keys: Keys) -> list[str]:
        """Checksums of entries that all are here."""
        with self._lock:
            found = np.frombuffer(self._columns.checksums, CHECKSUM)[self._places(keys)]
        return [checksum.decode() for checksum in found.tolist()]

    def _places(self, keys: Keys) -> NDArray[np.int64]:
        return np.fromiter(map(self._rows.__getitem__, keys.tolist()), np.int64, len(keys))

    def move(self, keys: Iterable[str], path: Path) -> None:
        """Say that entries, as they are, lie in another file now; of what is not here nothing is said."""
        with self._lock:
            number = self._number(path)
            for key in keys:
                if (row := self._rows.get(key.encode())) is not None:
                    self._columns.files[row] = number


def sorted_keys(keys: Iterable[str] | Keys) -> Keys:
    """Keys, each once, sorted, as an array."""
    return np.unique(keys if isinstance(keys, np.ndarray) else np.fromiter((key.encode() for key in keys), KEY))
