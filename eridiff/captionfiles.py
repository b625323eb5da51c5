"""Caption files: their text, read within bounds and only from regular files of the folder of pictures."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from eridiff.errors import DataError

SIDECAR_SUFFIXES = (".txt", ".caption", ".tags", ".tag", ".cap", ".captions", ".prompt", ".text")
METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
TABLE_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
MAX_CAPTION_BYTES = 1 << 18  # 256 KiB: the longest caption that an encoder reads has some 2,500 letters
MAX_TABLE_BYTES = 1 << 26  # 64 MiB of text: some 200,000 captions
BOM = b"\xef\xbb\xbf"
CACHE_OBJECT = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")  # DVC's, where its links are symbolic
KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def is_caption_file(path: str) -> bool:
    """Whether a file may hold captions, by its name."""
    return os.path.splitext(path)[1].lower() in (*SIDECAR_SUFFIXES, *TABLE_SUFFIXES)


def read_text(path: Path, folder: Path | None = None, *, at_most: int = MAX_CAPTION_BYTES) -> str:
    """A UTF-8 file, with or without a byte order mark.

    Raises: DataError as opened, and one that names the first byte that is no UTF-8.
    """
    data = read_bytes(path, folder, at_most=at_most)
    start = len(BOM) if data.startswith(BOM) else 0
    try:
        return data[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        at = start + error.start
        kind = " (it looks like UTF-16)" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        place = f"{path}: byte {at} (0x{data[at]:02X})"
        raise DataError(f"{place} is no UTF-8{kind}. Save the file as UTF-8.") from None


def read_bytes(path: Path, folder: Path | None = None, *, at_most: int) -> bytes:
    """A file of at most so many bytes. Raises: DataError as opened."""
    with opened(path, folder, at_most=at_most) as file:
        data = file.read(at_most + 1)
    if len(data) > at_most:  # it grew, or says that it is empty
        raise DataError(_too_long(path, len(data), at_most))
    return data


@contextmanager
def opened(path: Path, folder: Path | None = None, *, at_most: int) -> Iterator[BinaryIO]:
    """A regular file of at most so many bytes, open for reading; folder: what it must lie in, links followed.

    Raises: DataError that names a file that is no regular one (it is not waited for), too long, unreadable, or a link
    out of the folder: what such a link names was not put there as a caption.
    """
    if folder is not None and (target := leads_out(path, folder)):
        raise DataError(f"{path}: a link out of {folder}, to {target}. Copy the file here, or remove the link.")
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # waits for no pipe
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{path}: {KINDS.get(stat.S_IFMT(status.st_mode), 'a folder')}, no file. Remove it.")
            if status.st_size > at_most:
                raise DataError(_too_long(path, status.st_size, at_most))
            yield file
    except FileNotFoundError:
        raise DataError(f"{path}: missing, or a link to nothing. Restore it, or remove it.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}). Check its permissions.") from None


def _too_long(path: Path, size: int, at_most: int) -> str:
    return f"{path}: {size:,} bytes, and at most {at_most:,} are read. Shorten it, or remove it."


def leads_out(path: Path, folder: Path) -> str | None:
    """Where a link leads that leaves the folder; None for what lies in it, or is an object of a DVC cache.

    The folder may be a link itself, to where the originals are; folders below it are none, since such are not walked.
    """
    if not os.path.islink(path):
        return None
    real = os.path.realpath(path)
    inside = os.path.join(os.path.realpath(folder), "")
    return None if real.startswith(inside) or CACHE_OBJECT.search(real) else real
