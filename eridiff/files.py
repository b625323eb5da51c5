"""Files written whole or not at all, and digests of files and values."""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal

CHUNK_BYTES = 1 << 20
CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` and rename it to `path` once the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
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
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def link_kind(folder: Path) -> Literal["hardlink", "symlink", "copy"]:
    """How two names can share one file in a folder: the best kind of link that its file system has, or none."""
    source = folder / f".link.{uuid.uuid4().hex[:12]}.tmp"
    target = source.with_suffix(".link.tmp")
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
        with open(source, "rb") as reader, atomic_write(target) as writer:
            while chunk := reader.read(CHUNK_BYTES):
                writer.write(chunk)
