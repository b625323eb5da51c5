"""What both caching stages do with the store: look up, import, encode what is missing, publish, count."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from eridiff.roots import pin
from eridiff.store import EntryGone, Store

ATTEMPTS = 3  # at a fill, where entries vanish from the store under it


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
    start, encoded = time.monotonic(), 0
    for attempt in range(1, ATTEMPTS + 1):
        if store.missing(keys):
            store.adopt(earlier())
        encoded += encode() if store.missing(keys) else 0
        try:
            shards = store.publish(keys, out)
            break
        except EntryGone:  # `eridiff store gc` or a user took entries meanwhile
            if attempt == ATTEMPTS:
                raise
            store.look_again()
    pin(store.root, store.kind, Path.cwd(), store.published)
    seconds = time.monotonic() - start
    counts = CacheCounts(
        what=what, samples=len(keys), encoded=encoded, shards_written=store.shards_written, seconds=seconds
    )
    return shards, counts
