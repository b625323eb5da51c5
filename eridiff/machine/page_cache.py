"""Which files the system holds in memory: what must come from the disk anyway is checked again as it comes."""

import ctypes
import mmap
import os
from pathlib import Path

import psutil

from eridiff.core.threads import shared_cores

CORES = 8  # that digest as fast as a good disk reads (docs/benchmarks.md)
SAMPLES = 64  # pages that are asked for, evenly spread
IN_MEMORY = 0.5  # the share of them from which on a file counts as held


def worth_reading(path: Path) -> bool:
    """Whether a file can be digested again for less than a tenth of the time that loading it takes.

    It must be read from the disk anyway, there are cores enough, and the memory then holds it for the load itself.
    """
    size = path.stat().st_size
    return shared_cores() >= CORES and size < psutil.virtual_memory().available / 2 and not in_memory(path)


def in_memory(path: Path) -> bool:
    """Whether the system's page cache holds most of a file; True where the system does not say."""
    size = path.stat().st_size
    libc = ctypes.CDLL(None, use_errno=True)
    if size == 0 or not hasattr(libc, "mincore"):
        return True
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as view,
    ):
        start = ctypes.addressof(ctypes.c_char.from_buffer(view))
        pages = -(-size // mmap.PAGESIZE)
        asked = sorted({round(n * (pages - 1) / (SAMPLES - 1)) for n in range(SAMPLES)})
        found = [_held(libc, start + page * mmap.PAGESIZE) for page in asked]
    return None in found or sum(map(bool, found)) >= IN_MEMORY * len(found)


def _held(libc: ctypes.CDLL, address: int) -> bool | None:
    """Whether the page at an address is in memory; None where the system refuses to say (mincore(2))."""
    answer = ctypes.c_ubyte()
    failed = libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), ctypes.byref(answer))
    return None if failed else bool(answer.value & 1)


def forget(path: Path) -> None:
    """Take a file out of the page cache, as far as the system does so (posix_fadvise(2))."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
