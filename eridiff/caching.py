"""What both caching stages do with the store: look up, import, encode what is missing, publish, count."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from eridiff.store import Store


@dataclass(frozen=True, kw_only=True)
class CacheCounts:
    """What a caching stage did, for its closing line."""

    what: str
    samples: int
    encoded: int
    shards_written: int
    seconds: float

    def line(self) -> str:
        """The stage's closing line."""
        reused = self.samples - self.encoded
        shards = f"{self.shards_written} shard{'' if self.shards_written == 1 else 's'} written"
        samples = f"{self.samples} samples, {self.encoded} encoded, {reused} reused"
        return f"{self.what}: {samples}, {shards}, {self.seconds:.1f} s"


def fill(
    store: Store,
    keys: list[str],
    earlier: Callable[[], Iterable[Path]],
    encode: Callable[[], int],
    out: Path,
    *,
    what: str,
) -> tuple[dict[str, str], CacheCounts]:
    """What both caching stages do: import what the store lacks, encode the rest, publish the shards into `out`.

    earlier() gives the shards of the stage's own last output; encode() puts every key that is missing and says how
    many it put. Each is called only where a key is missing. Returns key -> shard and the counts.
    """
    start = time.monotonic()
    if store.missing(keys):
        store.adopt(earlier())
    encoded = encode() if store.missing(keys) else 0
    shards = store.publish(keys, out)
    seconds = time.monotonic() - start
    counts = CacheCounts(
        what=what, samples=len(keys), encoded=encoded, shards_written=store.shards_written, seconds=seconds
    )
    return shards, counts
