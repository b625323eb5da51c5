"""How much a Parquet file unpacks to, by the headers of its pages, before a library unpacks any.

pyarrow takes as much memory for a page as the page's header claims: up to 2 GiB, which a few KB may unpack to. Headers
and the footer are structs of Thrift's compact protocol, read here within a bound of fields: nothing of the file's own
words is allocated. https://parquet.apache.org/docs/file-format/metadata/
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

MAGIC = b"PAR1"
MAX_FOOTER_BYTES = 1 << 26  # it holds a table's facts
MAX_FIELDS = 400_000  # of footer and page headers together: a second's work; a page's header has 20
MAX_LEVELS = 16
HEADER_BYTES = (1 << 14, 1 << 24)  # read of a page's header; the second where statistics make it longer
MAX_VALUES_A_BYTE = 64  # of a file, in a column: repeated values are packed well, but not without end
FEW_VALUES = 1 << 20
COPYING = 7  # DELTA_BYTE_ARRAY: each value may copy the one before
Read = Callable[[int, int], bytes]  # offset, length => bytes, fewer at the end of the file
Struct = dict[int, Any]  # number of a field -> its value


@dataclass(frozen=True)
class Pages:
    """What was found: bytes of the largest dictionary page, unpacked."""

    largest_dictionary: int


def check_pages(read: Read, size: int, largest: int, columns: Collection[str] | None = None) -> Pages:
    """Look at the pages of some columns, or of all. largest: bytes of a page, unpacked.

    Raises: ValueError in words where a page unpacks to more, where there are more values than such a file can hold in
    good faith, or where this is no Parquet file.
    """
    end = read(size - 8, 8) if size >= 12 else b""
    length = int.from_bytes(end[:4], "little")
    if end[4:] != MAGIC or length > size - 12:
        raise ValueError("it has no footer of Parquet")
    if length > MAX_FOOTER_BYTES:
        raise ValueError(f"its footer has {length} bytes, more than {MAX_FOOTER_BYTES}")
    budget = [MAX_FIELDS]
    footer = _Compact(read(size - 8 - length, length), budget).struct()
    most, dictionary = 0, 0
    for chunk in _chunks(footer, columns):
        values = 0
        for header in _headers(read, size, chunk, budget):
            unpacked = _number(header, 2)
            if unpacked > largest:
                raise ValueError(f"a page unpacks to {unpacked} bytes, more than {largest}")
            if header.get(1) == 2:
                dictionary = max(dictionary, unpacked)
                continue
            count, encoding = _counted(header)
            values += count
            if encoding == COPYING:
                raise ValueError("a page is in DELTA_BYTE_ARRAY, which has no bound: save it in another encoding")
        most = max(most, values)
    if most > max(FEW_VALUES, size * MAX_VALUES_A_BYTE):
        raise ValueError(f"a column has {most} values in a file of {size} bytes")
    return Pages(largest_dictionary=dictionary)


def _chunks(footer: Struct, columns: Collection[str] | None) -> Iterator[Struct]:
    """The metadata of the columns' chunks."""
    for group in _list(footer, 4):
        for chunk in _list(group, 1):
            found = chunk.get(3)
            if not isinstance(found, dict):
                raise ValueError("a column of it has no place in the file")
            path = _list(found, 3)
            if not (path and isinstance(path[0], bytes)):
                raise ValueError("a column of it has no name")
            if columns is None or path[0].decode("utf-8", "replace") in columns:
                yield found


def _headers(read: Read, size: int, chunk: Struct, budget: list[int]) -> Iterator[Struct]:
    """The headers of a chunk's pages."""
    starts = [start for number in (9, 11) if isinstance(start := chunk.get(number), int) and start > 0]
    length = chunk.get(7, -1)
    place = min(starts, default=-1)
    if place < 0 or not isinstance(length, int) or not 0 <= length <= size - place:
        raise ValueError("a column of it lies outside the file")
    end = place + length
    while place < end:
        header, taken = _header(read, place, budget)
        place += taken + _number(header, 3)
        yield header


def _header(read: Read, place: int, budget: list[int]) -> tuple[Struct, int]:
    for length in HEADER_BYTES:
        compact = _Compact(read(place, length), budget)
        try:
            return compact.struct(), compact.place
        except _CutShort:
            continue
    raise ValueError("the header of a page cannot be read")


def _counted(header: Struct) -> tuple[int, int]:
    """Values and encoding of a page of data, of either version."""
    first, second = header.get(5), header.get(8)
    if isinstance(first, dict):
        return _number(first, 1), _number(first, 2)
    return (_number(second, 1), _number(second, 4)) if isinstance(second, dict) else (0, 0)


def _number(struct: Struct, field: int) -> int:
    value = struct.get(field)
    if type(value) is not int or value < 0:
        raise ValueError("the header of a page cannot be read")
    return value


def _list(struct: Any, field: int) -> list[Any]:
    value = struct.get(field, []) if isinstance(struct, dict) else None
    if not isinstance(value, list):
        raise ValueError("its footer cannot be read")
    return value


class _CutShort(ValueError):
    """The bytes end inside a struct."""


class _Compact:
    """Values of Thrift's compact protocol, one behind the other."""

    def __init__(self, data: bytes, budget: list[int]) -> None:
        """budget: the number of values that may still be read, shared."""
        self.data, self.place, self.budget = data, 0, budget

    def struct(self, level: int = 0) -> Struct:
        """Fields by their numbers, up to the end of the struct."""
        found: Struct = {}
        number = 0
        while kind := self._byte():
            number = number + (kind >> 4) if kind >> 4 else self._signed()
            found[number] = self._value(kind & 15, level + 1, field=True)
        return found

    def _byte(self) -> int:
        if self.place >= len(self.data):
            raise _CutShort("it ends too soon")
        self.place += 1
        return self.data[self.place - 1]

    def _unsigned(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number of it has no end")

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)

    def _bytes(self, count: int) -> bytes:
        if count > len(self.data) - self.place:
            raise _CutShort("it ends too soon")
        self.place += count
        return self.data[self.place - count : self.place]

    def _value(self, kind: int, level: int, *, field: bool) -> Any:
        """One value; a truth is in the kind of a field, and a byte elsewhere."""
        self.budget[0] -= 1
        if self.budget[0] < 0:
            raise ValueError(f"its footer and pages have more than {MAX_FIELDS} fields")
        if level > MAX_LEVELS:
            raise ValueError("its footer goes too deep")
        match kind:
            case 1 | 2:
                return kind == 1 if field else self._byte() == 1
            case 3:
                return self._byte()
            case 4 | 5 | 6:
                return self._signed()
            case 7:
                return self._bytes(8)
            case 8:
                return self._bytes(self._unsigned())
            case 9 | 10:
                start = self._byte()
                count = self._unsigned() if start >> 4 == 15 else start >> 4
                return [self._value(start & 15, level + 1, field=False) for _ in range(count)]
            case 12:
                return self.struct(level)
        raise ValueError("its footer cannot be read")
