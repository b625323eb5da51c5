"""How the store's own work grows with the number of entries: `python benchmarks/store_scale.py [1000 10000 100000]`.

Small entries (mean and std of 4 x 8 x 8 in fp32, 2 KiB), so that the store is measured, not the disk. Shards are kept
to what 1 MB an entry would give: as many files as a data set of that size really has. One process a row.

columns: seconds to fill (put), to publish all, of a no-op (open, missing, publish) with the catalogue and without,
of one added entry (open, missing, import of the earlier out, put, publish); the largest resident memory, MiB.
"""

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from eridiff import placement as module
from eridiff.store import Store, entry_key
from eridiff.tensorfile import RawTensor

PER_SHARD = 64  # entries of 1 MB in a shard of 64 MiB
BYTES = 2048
PARTS = {
    "vae": {"weights": "d" * 64, "config": "c" * 64},
    "params": {"dtype": "bf16", "batch_size": 4, "keep": "mean_std", "alpha": "white", "resample": "lanczos"},
    "version": 1,
}


def make_entry(number: int) -> tuple[str, dict[str, object], dict[str, RawTensor]]:
    """An entry with the parts of a latent."""
    crop = {"bucket": [1024, 1024], "resize": [1200, 1024], "at": [88, 0], "flip": False}
    parts: dict[str, object] = {**PARTS, "pixels": f"{number:064x}", "crop": crop}
    half = RawTensor("F32", (4, 8, 8), number.to_bytes(4, "little") * (BYTES // 8))
    return entry_key(parts), parts, {"mean": half, "std": half}


def timed(work: object) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - start


def measure(count: int, folder: Path) -> dict[str, float]:
    """One row."""
    module.SHARD_BYTES = PER_SHARD * BYTES
    root, out = folder / "store", folder / "out"
    row: dict[str, float] = {"entries": count}
    keys = [make_entry(number)[0] for number in range(count)]
    store = Store(root, "latents")

    def fill() -> None:
        for number in range(count):
            store.put(*make_entry(number))

    row["fill"] = timed(fill)
    row["publish"] = timed(lambda: store.publish(keys, out))
    row["shards"] = store.shards_written

    def no_op() -> None:
        again = Store(root, "latents")
        assert again.missing(keys) == []
        again.publish(keys, out)
        assert again.shards_written == 0

    row["first no-op"] = timed(no_op)  # reads the headers of the new shards
    row["look-up"] = timed(lambda: Store(root, "latents").missing(keys))
    row["no-op"] = timed(no_op)
    (root / "latents/catalogue.parquet").unlink()
    row["look-up, no catalogue"] = timed(lambda: Store(root, "latents").missing(keys))

    def add() -> None:
        again, new = Store(root, "latents"), make_entry(count)
        assert again.missing([*keys, new[0]]) == [new[0]]
        again.adopt(sorted(out.iterdir()))
        again.put(*new)
        again.publish([*keys, new[0]], out)

    row["add one"] = timed(add)
    row["MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return row


def main() -> None:
    """Measure each size in a process of its own and print a table."""
    if sys.argv[1:2] == ["--one"]:
        folder = Path(tempfile.mkdtemp(dir=sys.argv[3]))
        try:
            print(json.dumps(measure(int(sys.argv[2]), folder)))
        finally:
            shutil.rmtree(folder)
        return
    place = tempfile.gettempdir()
    for number, count in enumerate(sys.argv[1:] or ["1000", "10000", "100000"]):
        command = [sys.executable, __file__, "--one", count, place]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        if number == 0:
            print("| " + " | ".join(row) + " |\n|" + "---|" * len(row))
        print(
            "| " + " | ".join(f"{value:.2f}" if value % 1 else f"{value:.0f}" for value in row.values()) + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()
