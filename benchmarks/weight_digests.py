"""What it would cost to digest weights again while they are loaded: `python -m benchmarks.weight_digests [--gib 8]`.

A file of random weights, in matrices of Flux's size, goes to the device as a base does, without and with a sha256 of
each tensor by threads beside the copy; once from the system's page cache, once from the disk.
"""

import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
import typer

from eridiff.formats.safetensors import RawTensor, TensorFile, write_tensors
from eridiff.machine.page_cache import forget
from eridiff.models.upload import Uploader

ROWS, COLUMNS = 12288, 3072  # of a matrix: 72 MiB in bf16


def make_file(path: Path, gib: float) -> None:
    """Random bytes in matrices."""
    data = np.random.default_rng(0).integers(0, 256, ROWS * COLUMNS * 2, np.uint8).tobytes()
    count = max(1, round(gib * 2**30 / len(data)))
    write_tensors(path, {f"blocks.{n}.weight": RawTensor("BF16", (ROWS, COLUMNS), data) for n in range(count)}, {})


def load(path: Path, device: torch.device, threads: int) -> float:
    """Seconds to bring all tensors to the device; threads: those that digest meanwhile, 0: none do."""
    start, file = time.perf_counter(), TensorFile(path)

    def digest(name: str) -> bytes:
        return hashlib.sha256(file.raw(name).data).digest()

    with Uploader(device) as uploader, ThreadPoolExecutor(max(1, threads)) as pool:
        digests = [pool.submit(digest, name) for name in file.names] if threads else []
        for name in file.names:
            uploader.upload(file.raw(name))
        for one in digests:
            one.result()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main(gib: Annotated[float, typer.Option(help="Size of the file.")] = 8.0) -> None:
    """Print the table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cores = os.cpu_count() or 1
    with TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        make_file(path, gib)
        os.sync()
        load(path, device, 0)  # starts the device
        kinds: dict[str, Callable[[], object]] = {"page cache": lambda: None, "disk": lambda: forget(path)}
        for source, prepare in kinds.items():
            for threads in (0, 1, cores // 2, cores):
                seconds = []
                for _ in range(3):
                    prepare()
                    seconds.append(load(path, device, threads))
                size = path.stat().st_size / 2**30
                print(f"{source}, {device.type}, {threads} threads digest: {min(seconds):.2f} s for {size:.1f} GiB")


if __name__ == "__main__":
    typer.run(main)
