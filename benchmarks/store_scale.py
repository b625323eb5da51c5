"""How the stage `latents` grows with the number of samples, less pictures and encoder.

    python -m benchmarks.store_scale [1000 10000 100000] [--folder DIR]

Entries are small (mean and std of 4 x 8 x 8 in fp32, 2 KiB), so that the bookkeeping is measured, not the disk. Shards
are kept to what 1 MB an entry would give: as many files as a data set of that size really has. Each column but the
first three is a process of its own, from the start of `main` (imports of torch and pyarrow come before, 2 s).

    fill        put and publish all entries, for each
    no-op       plan all samples from buckets.parquet, look them up, link all shards, write the index
    CPU         of the no-op, the processor's time, of all threads
    start       of the no-op, until it is known that nothing is missing: plan and look-up
    look-up     of the no-op, what the store takes to say that it has all
    cold        the look-up without the catalogue
    add one     the same with one sample more: import of the last output, its entry, its shard
    MiB         the largest resident memory of the no-op; more: than that of a no-op of one sample
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from eridiff.caching.fill import fill
from eridiff.caching.latents.plan import INDEX_COLUMNS, common_key_fields, index_rows, plan_samples
from eridiff.caching.latents.samples import Sample, Samples
from eridiff.formats.safetensors import RawTensor
from eridiff.formats.tables import Row, TableRows, write_table
from eridiff.params.latents import LatentParams
from eridiff.store import sharding as placement
from eridiff.store.pixels import PixelDigests
from eridiff.store.store import Store

PER_SHARD = 64  # entries of 1 MB in a shard of 64 MiB
BYTES = 2048
COLUMNS = dict.fromkeys(("path", "file_digest"), "str") | dict.fromkeys(
    ("repeats", "bucket_w", "bucket_h", "resize_w", "resize_h", "crop_left", "crop_top", "original_w", "original_h"),
    "int",
)


def make_rows(count: int) -> Iterator[Row]:
    """Rows of buckets.parquet."""
    for number in range(count):
        row: Row = {"path": f"{number:06}.png", "file_digest": f"{number:064x}", "repeats": 1}
        row |= {"bucket_w": 1024, "bucket_h": 1024, "resize_w": 1200 + number % 64, "resize_h": 1024}
        yield row | {"crop_left": 88, "crop_top": 0, "original_w": 2400 + number % 64, "original_h": 2048}


def bucket_table(folder: Path, count: int) -> Path:
    """Where the table of so many pictures lies."""
    return folder / f"buckets-{count}.parquet"


def plan(folder: Path, count: int) -> Samples:
    """The samples, as the stage makes them."""
    table = bucket_table(folder, count)
    rows = TableRows(table)
    pixels = PixelDigests(folder / "store", {row["file_digest"] for row in TableRows(table, ["file_digest"])})
    pixels.learn({digest: digest for digest in (f"{number:064x}" for number in range(count))})
    common = common_key_fields(LatentParams(), {"content": "c" * 64, "config": "d" * 64}, 1)
    return plan_samples(rows, LatentParams(), common, 8, folder, pixels)


def put(store: Store, number: int, sample: Sample) -> None:
    """A made-up entry."""
    half = RawTensor("F32", (4, 8, 8), number.to_bytes(4, "little") * (BYTES // 8))
    store.put(sample.key, sample.parts, {"mean": half, "std": half})


def build(folder: Path, count: int) -> dict[str, float]:
    """Fill the store and publish all; the tables of as many pictures and of one more are there."""
    for pictures in (count, count + 1):
        write_table(bucket_table(folder, pictures), make_rows(pictures), COLUMNS)
    samples, store = plan(folder, count), Store(folder / "store", "latents")
    start = time.perf_counter()
    for number, sample in enumerate(samples):
        put(store, number, sample)
    filled = time.perf_counter()
    store.publish((sample.key for sample in samples), folder / "out")
    published = time.perf_counter()
    return {
        "entries": count,
        "put, ms": 1000 * (filled - start) / count,
        "publish, ms": 1000 * (published - filled) / count,
        "shards": store.shards_written,
    }


def stage(folder: Path, count: int) -> dict[str, float]:
    """What the stage does when it starts; `count` may be one more than the store has."""
    start, began = time.perf_counter(), time.process_time()
    samples = plan(folder, count)
    planned = time.perf_counter()
    store = Store(folder / "store", "latents")
    keys = samples.keys
    store.missing(keys)
    looked = time.perf_counter()

    def encode() -> int:
        lost = set(store.missing(keys))
        for number, sample in enumerate(samples.having(lost)):
            put(store, number, sample)
        return len(lost)

    shards, _ = fill(store, keys, lambda: sorted((folder / "out").glob("shard-*")), encode, folder / "out", what="l")
    write_table(folder / "out/index.parquet", index_rows(samples, shards), INDEX_COLUMNS)
    all_of_it, processor = time.perf_counter() - start, time.process_time() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"all": all_of_it, "CPU": processor, "start": looked - start, "look-up": looked - planned, "MiB": memory}


def run(work: str, folder: Path, count: int) -> dict[str, float]:
    """`build` or `stage` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.store_scale", str(count), "--work", work, "--folder", str(folder)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def measure(count: int, folder: Path, least: float) -> dict[str, float]:
    """One row. least: the memory that a no-op of one sample takes."""
    row = run("build", folder, count)
    run("stage", folder, count)  # reads the headers of the new shards
    again = run("stage", folder, count)
    (folder / "store/latents/catalogue.sealed.parquet").unlink()
    cold = run("stage", folder, count)["look-up"]
    row |= {"no-op": again["all"], "CPU": again["CPU"], "start": again["start"], "look-up": again["look-up"]}
    row |= {"cold": cold}
    more = run("stage", folder, count + 1)
    row |= {"add one": more["all"], "its CPU": more["CPU"]}
    return row | {"MiB": again["MiB"], "more": again["MiB"] - least}


def main() -> None:
    """Measure each size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", nargs="*", type=int, default=[1000, 10000, 100000])
    parser.add_argument("--folder", type=Path, help="on the disk that is measured (default: the temporary folder)")
    parser.add_argument("--work", choices=("build", "stage"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    placement.SHARD_BYTES = PER_SHARD * BYTES
    if given.work:
        print(json.dumps((build if given.work == "build" else stage)(given.folder, given.counts[0])))
        return
    least = 0.0
    for number, count in enumerate((1, *given.counts)):
        folder = Path(tempfile.mkdtemp(prefix="eridiff-scale-", dir=given.folder))
        try:
            row = measure(count, folder, least)
        finally:
            shutil.rmtree(folder)
        least = least or row["MiB"]
        if number == 0:
            print("| " + " | ".join(row) + " |\n|" + "---|" * len(row))
            continue
        cells = (f"{value:.2f}" if value % 1 else f"{value:,.0f}" for value in row.values())
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
