"""Checksums of whole files that lie in the files: damage is found before anything of a file is used.

A sealed file holds, where its format allows a text, `eridiff-sha256:` and 64 hex digits: the sha256 of all its bytes,
these digits being zeros. So one function seals and one checks, whatever the format: safetensors, Parquet, JSON. No
flipped bit is a way past: a file must be sealed where its name says so (`.sealed.`), or where it is an out of a stage
whose md5 is not the one that dvc.lock names, as that of a file from before seals is.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from eridiff.errors import DataError
from eridiff.files import CHUNK_BYTES, MAX_BYTES, atomic_write, canonical_json, read_file
from eridiff.ownouts import locked_md5
from eridiff.progress import say

Piece = bytes | memoryview

KEY = "seal"  # of the text, in formats that name their texts
MARK = b"eridiff-sha256:"
DIGITS = 64
BLANK = MARK.decode() + "0" * DIGITS
SEALED_NAME = ".sealed."  # in the name of a file that must be sealed
WAY_OUT = "Run `eridiff store repair`, then `dvc repro`."  # DVC would link a damaged object of its own again


def seal_into(file: BinaryIO, pieces: Iterable[Piece]) -> None:
    """Write pieces of bytes, of which one holds BLANK, and put the digest in its place.

    Raises: DataError where a piece holds it twice: somebody's text is the mark itself.
    """
    place, size, digest = -1, 0, hashlib.sha256()
    for piece in pieces:
        if place < 0 and isinstance(piece, bytes) and (count := piece.count(BLANK.encode())):
            if count > 1:
                raise DataError(f"a text holds the mark of checksums, {MARK.decode()}: change it.")
            place = size + piece.index(BLANK.encode()) + len(MARK)
        digest.update(piece)
        file.write(piece)
        size += len(piece)
    assert place >= 0, "nothing to put the checksum into"
    file.seek(place)
    file.write(digest.hexdigest().encode())


def sealed(data: bytes) -> bytes:
    """Bytes that hold BLANK, with the digest in its place.

    Raises: DataError where they hold it twice.
    """
    before, mark, after = data.partition(BLANK.encode())
    assert mark, "nothing to put the checksum into"
    if BLANK.encode() in after:
        raise DataError(f"a text holds the mark of checksums, {MARK.decode()}: change it.")
    return before + MARK + hashlib.sha256(data).hexdigest().encode() + after


def sealed_json(record: Mapping[str, Any]) -> str:
    """A line of canonical JSON that carries its checksum."""
    return sealed((canonical_json({**record, KEY: BLANK}) + "\n").encode()).decode()


def write_sealed(path: Path, data: bytes) -> None:
    """Write bytes that are sealed already, atomically."""
    with atomic_write(path) as file:
        file.write(data)


def check_seal(data: Piece, path: Path, way_out: str = WAY_OUT) -> bool:
    """Whether a file carries a checksum, which its bytes give; False: it carries none, and its name asks for none.

    Raises: DataError that names the file where it is damaged.
    """
    view = memoryview(data)
    places = list(_places(view))
    if any(bytes(view[place : place + DIGITS]) == _digest(view, place) for place in places):
        return True
    if places or SEALED_NAME in path.name:
        raise DataError(f"{path} is damaged: its bytes do not give the checksum that it must carry. {way_out}")
    return False


def check_out(data: Piece, path: Path, way_out: str = WAY_OUT) -> None:
    """Check a file of an out. One without a checksum, of before, must be the one that dvc.lock names; it is told.

    Raises: DataError that names the file where it is damaged.
    """
    if check_seal(data, path, way_out):
        return
    locked = locked_md5(path)
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != locked:
        why = "dvc.lock names other bytes" if locked else "dvc.lock does not name it"
        raise DataError(f"{path} is damaged: it carries no checksum, and {why}. {way_out}")
    tell_unsealed(path)


def check_sealed(data: Piece, path: Path, way_out: str) -> None:
    """Check a file that must be sealed, or is of before seals, which is told.

    Raises: DataError where it is damaged.
    """
    if not check_seal(data, path, way_out):
        tell_unsealed(path)


def read_sealed(path: Path, way_out: str, at_most: int = MAX_BYTES) -> bytes:
    """A small file that must be sealed, or is of before seals, checked.

    Raises: DataError where it is damaged, or is no such file; FileNotFoundError.
    """
    try:
        data = read_file(path, at_most)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. {way_out}") from None
    check_sealed(data, path, way_out)
    return data


@cache
def tell_unsealed(path: Path) -> None:
    """Say once that a file is read that nothing can be found in."""
    say(f"{path} carries no checksum, as files of before: it is read as it is")


def _places(view: memoryview) -> Iterator[int]:
    """Where the digits after each mark begin. Chunks overlap, so that no mark is cut."""
    for begin in range(0, len(view), CHUNK_BYTES):
        chunk, found = bytes(view[begin : begin + CHUNK_BYTES + len(MARK) - 1]), -1
        while (found := chunk.find(MARK, found + 1)) >= 0:
            yield begin + found + len(MARK)


def _digest(view: memoryview, place: int) -> bytes:
    digest = hashlib.sha256(view[:place])
    digest.update(b"0" * len(view[place : place + DIGITS]))
    digest.update(view[place + DIGITS :])
    return digest.hexdigest().encode()
