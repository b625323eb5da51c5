"""Latents of 16 channels with mean and std, 1 MiB a sample: what the cache costs for each, from 1,000 to 10,000.

    python -m benchmarks.latents_scale [--folder DIR] [--counts 1000 10000]

A fake encoder gives random numbers at once, so that all time is the pipeline's own: writing entries behind the encoder
and publishing them as shards. Needs 2.1 MiB of disk a sample. Prints a table in Markdown, and to $OUT/latents_scale.md
where OUT is set.
"""

import argparse
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from eridiff.caching.fill import Resources
from eridiff.caching.latents import encode as latentcache
from eridiff.caching.latents.encode import BatchEncoder, PictureReader, cache_latents, encode_batches
from eridiff.caching.latents.plan import batch_by_bucket, common_key_fields, plan_samples
from eridiff.caching.latents.samples import Sample
from eridiff.caching.pipeline import entry_writer
from eridiff.params.latents import LatentParams
from eridiff.store.pixels import PixelDigests
from eridiff.store.reader import Cache
from eridiff.store.store import Store

CPU = torch.device("cpu")


class FakeVae(nn.Module):
    """Posteriors [B, 16, 64, 128] (the size of 1024 x 512 pixels, in fp32 with std 1 MiB), all different."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = torch.randn(2, 16, 64, 128)
        self.calls = 0

    def encode(self, pixels: torch.Tensor) -> Any:
        """Numbers that no other batch has."""
        self.calls += 1
        batch = torch.arange(len(pixels))[:, None, None, None] + self.calls
        mean, std = self.numbers[0] + batch, self.numbers[1].abs() + batch
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=std))


def make_samples(count: int, folder: Path, params: LatentParams) -> list[Sample]:
    """Samples of one small bucket, with made-up digests that the store knows already."""
    pixels = PixelDigests(folder / "store")
    pixels.learn({f"{number:064x}": f"{number:064x}" for number in range(count)})
    size = {"bucket_w": 64, "bucket_h": 64, "resize_w": 64, "resize_h": 64, "crop_left": 0, "crop_top": 0}
    rows = [
        {**size, "path": f"{n}.png", "file_digest": f"{n:064x}", "original_w": 64, "original_h": 64}
        for n in range(count)
    ]
    return plan_samples(rows, params, common_key_fields(params, {"content": "c", "config": "d"}, 1), 8, folder, pixels)


def no_pictures(reader: Any, buffer: torch.Tensor, place: int, sample: Sample) -> None:
    """In place of reading a picture."""
    buffer[place] = 0


def nothing_to_load() -> Any:
    """In place of a model's loader where all is encoded already."""
    raise AssertionError("the pipeline has left something")


def measure(count: int, folder: Path) -> Iterator[str]:
    """Cells of one row."""
    params, root, out = LatentParams(batch_size=8), folder / "store", folder / "out"
    samples, store = make_samples(count, folder, params), Store(root, "latents")
    done = Resources(root=root, load=nothing_to_load)
    began, cpu_began = time.monotonic(), time.process_time()
    with entry_writer(CPU, params.batch_size) as writer:
        encoder = BatchEncoder(store, params, FakeVae(), CPU, writer)
        encode_batches(batch_by_bucket(samples, 8), encoder, PictureReader(params, folder))
    written, cpu_written = time.monotonic(), time.process_time()
    cache_latents(samples, params, folder, done, out)
    published, cpu_published = time.monotonic(), time.process_time()
    cache_latents(samples, params, folder, done, out)
    again = time.monotonic()
    cache, few = Cache(out), samples[:: max(1, count // 200)]
    cache.read(few[0].key)  # opens the shards
    opened = time.monotonic()
    for sample in few:
        cache.tensors(sample.key)["mean"].sum()
    read = time.monotonic()
    gib = sum(path.stat().st_size for path in out.iterdir()) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    yield f"{count:,}"
    yield f"{gib:.1f} GiB"
    yield f"{1000 * (written - began) / count:.1f} ({1000 * (cpu_written - cpu_began) / count:.1f}) ms"
    yield f"{1000 * (published - written) / count:.1f} ({1000 * (cpu_published - cpu_written) / count:.1f}) ms"
    yield f"{again - published:.2f} s"
    yield f"{1000 * (read - opened) / len(few):.2f} ms"
    yield f"{peak:.1f} GiB"


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="on the disk that is measured (default: the temporary folder)")
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10000])
    given = parser.parse_args()
    latentcache.PictureReader.fill = no_pictures  # type: ignore[method-assign]
    cells = [
        "samples",
        "shards",
        "write a sample (CPU)",
        "publish a sample (CPU)",
        "no-op",
        "first read of a sample",
        "peak RSS",
    ]
    lines = [f"| {' | '.join(cells)} |", f"|{'---|' * len(cells)}"]
    for count in given.counts:
        folder = Path(tempfile.mkdtemp(prefix="eridiff-scale-", dir=given.folder))
        try:
            lines.append(f"| {' | '.join(measure(count, folder))} |")
            print(lines[-1], flush=True)
        finally:
            shutil.rmtree(folder)
    table = "\n".join(lines)
    print(f"\n{table}")
    if "OUT" in os.environ:
        (Path(os.environ["OUT"]) / "latents_scale.md").write_text(table + "\n", "utf-8")


if __name__ == "__main__":
    main()
