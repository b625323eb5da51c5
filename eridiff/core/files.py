"""Files written whole or not at all, files opened and read within bounds, and digests of files and values.

All that is read is opened by `open_file`: whatever stands under a name, nothing waits for a pipe and nothing reads a
device without end. Small files are read by `read_file` and `read_text`, which have a bound of bytes.
"""

import errno
import hashlib
import json
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal

from eridiff.core.leftovers import temporary_path

CHUNK_BYTES = 1 << 20
MAX_BYTES = 1 << 26  # of a file that is read at once and has no closer bound
MAX_LISTING_BYTES = 1 << 30  # of one that has a line for each picture of a folder, or of a store
KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` and rename it to `path` once the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None:  # of a write that found no space: the system does not say in which file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def open_file(path: Path) -> BinaryIO:
    """A regular file, open for reading.

    Raises: OSError with the path: FileNotFoundError, IsADirectoryError, or one that says what stands there.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # waits for no pipe
    mode = os.fstat(number).st_mode
    if stat.S_ISREG(mode):
        return open(number, "rb")
    os.close(number)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.ENXIO, f"{KINDS.get(stat.S_IFMT(mode), 'something else')}, no file", str(path))


def read_file(path: Path, at_most: int = MAX_BYTES) -> bytes:
    """The bytes of a file of at most so many.

    Raises: OSError as open_file, and for a longer one.
    """
    with open_file(path) as file:
        data = file.read(at_most + 1)
    if len(data) > at_most:
        raise OSError(errno.EFBIG, f"it has more than {at_most} bytes", str(path))
    return data


def read_text(path: Path, at_most: int = MAX_BYTES) -> str:
    """The text of a UTF-8 file of at most so many bytes, its lines' ends as Python has them.

    Raises: OSError as read_file, and with the first byte that is no UTF-8.
    """
    data = read_file(path, at_most)
    try:
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        where = f"byte {error.start} (0x{data[error.start]:02X}) is no UTF-8"
        raise OSError(errno.EILSEQ, where, str(path)) from None


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return CANONICAL.encode(value)


def digest_json(value: object) -> str:
    """sha256 (hex) of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode("utf-8")).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def map_file(path: Path) -> memoryview:
    """The bytes of a file, mapped; an empty one cannot be."""
    with open_file(path) as file:
        if not os.fstat(file.fileno()).st_size:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def link_kind(folder: Path) -> Literal["hardlink", "symlink", "copy"]:
    """How two names can share one file in a folder: the best kind of link that its file system has, or none."""
    source, target = temporary_path(folder / "link"), temporary_path(folder / "link")
    try:
        source.touch()
        with suppress(OSError):
            os.link(source, target)
            return "hardlink"
        with suppress(OSError):
            os.symlink(source, target)
            return "symlink"
        return "copy"
    finally:
        target.unlink(missing_ok=True)
        source.unlink(missing_ok=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Hardlink `source` as `target`; where the file system has no hardlinks, copy it atomically."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:
        with open_file(source) as reader, atomic_write(target) as writer:
            while chunk := reader.read(CHUNK_BYTES):
                writer.write(chunk)


def inode(path: Path) -> tuple[int, int]:
    """Which file on which disk a path leads to: equal for hard links of one file."""
    facts = path.stat()
    return facts.st_dev, facts.st_ino
