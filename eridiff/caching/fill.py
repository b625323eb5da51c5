"""What both caching stages do with the store: look up, import, encode what is missing, publish, count."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eridiff.caching.processes import Ranks
from eridiff.core.leftovers import take_away
from eridiff.machine.filedigests import FileDigests
from eridiff.machine.local import load_local
from eridiff.store.faults import check_now
from eridiff.store.pins import pin
from eridiff.store.sharding import Keys
from eridiff.store.store import EntryGone, Store

if TYPE_CHECKING:
    import torch

SOUND = "sound shard"  # what is remembered of one that was read
ATTEMPTS = 3  # at a fill, where entries vanish from the store under it


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a caching stage fills the store with.

    root: the store's folder. load: gives the encoder and its device, called only where something has to be encoded.
    earlier: gives the shards of the stage's own last output, called only where a key is missing. workers: threads
    that read pictures; None: as fits the machine. ranks: the processes that share the encoding, and this one's place.
    """

    root: Path
    load: "Callable[[], tuple[Any, torch.device]]"
    earlier: Callable[[], Iterable[Path]] = tuple
    workers: int | None = None
    ranks: Ranks = field(default_factory=Ranks)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What was encoded, and how long it took."""

    encoded: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CacheCounts:
    """What a caching stage did, for its closing line. saved: seconds, as far as known (eridiff/caching/savings.py)."""

    what: str
    samples: int
    encoded: int
    shards_written: int
    seconds: float
    encode_seconds: float = 0.0  # of these; with the loading of the encoder where it was not loaded before
    saved: float | None = None
    shards_checked: int = 0  # that were there before, and were read before they were put out
    check_seconds: float = 0.0

    def after(self, work: Work) -> "CacheCounts":
        """The counts with those of work that came before."""
        return replace(
            self,
            encoded=self.encoded + work.encoded,
            seconds=self.seconds + work.seconds,
            encode_seconds=self.encode_seconds + work.seconds,
        )

    def line(self) -> str:
        """The stage's closing line."""
        reused = self.samples - self.encoded
        shards = f"{self.shards_written} shard{'' if self.shards_written == 1 else 's'} written"
        samples = f"{self.samples} samples, {self.encoded} encoded, {reused} reused"
        saved = "" if self.saved is None else f", saved about {_duration(self.saved)}"
        checked = (
            f", {self.check_seconds:.1f} s of it to check {self.shards_checked} shards"
            if self.check_seconds > 1
            else ""
        )
        return f"{self.what}: {samples}, {shards}, {self.seconds:.1f} s{saved}{checked}"


def _duration(seconds: float) -> str:
    """A length of time in words, two figures."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class ShardChecks:
    """Reads shards before they are put out, but not those that are remembered as sound: for one thread."""

    def __init__(self, remembered: FileDigests) -> None:
        self.remembered, self.read, self.seconds = remembered, 0, 0.0

    def check(self, path: Path) -> None:
        """Refuse a damaged shard.

        Raises: StoreError, FileNotFoundError.
        """
        self.remembered.remember(path, SOUND, lambda: self._read(path))

    def _read(self, path: Path) -> str:
        began = time.monotonic()
        check_now(path)
        self.seconds += time.monotonic() - began
        self.read += 1
        return SOUND


def _publish(store: Store, keys: Sequence[str] | Keys, out: Path) -> tuple[Mapping[str, str], ShardChecks]:
    """Put out the shards of the keys; key -> shard, and what was read of shards that were there."""
    with FileDigests(days=load_local().check_days) as remembered:
        checks = ShardChecks(remembered)
        return store.publish(keys, out, checks.check), checks


def fill(
    store: Store,
    keys: Sequence[str] | Keys,
    earlier: Callable[[], Iterable[Path]],
    encode: Callable[[], int],
    out: Path,
    *,
    what: str,
) -> tuple[Mapping[str, str], CacheCounts]:
    """What both caching stages do: import what is missing in the store, encode the rest, publish the shards into `out`.

    earlier() gives the shards of the stage's own last output; encode() puts what is missing and says how many.
    Each is called only where a key is missing. Returns key -> shard and the counts.
    """
    start, work = time.monotonic(), Work()
    take_away(store.folder)
    for attempt in range(1, ATTEMPTS + 1):
        if store.missing(keys):
            store.adopt(earlier())
        began, encoded = time.monotonic(), encode() if store.missing(keys) else 0
        work = Work(encoded=work.encoded + encoded, seconds=work.seconds + time.monotonic() - began)
        try:
            shards, checks = _publish(store, keys, out)
            break
        except EntryGone:  # `eridiff store gc` or a user took entries meanwhile
            if attempt == ATTEMPTS:
                raise
            store.look_again()
    pin(store.root, store.kind, Path.cwd(), store.published)
    counts = CacheCounts(
        what=what,
        samples=len(keys),
        encoded=work.encoded,
        shards_written=store.shards_written,
        seconds=time.monotonic() - start,
        encode_seconds=work.seconds,
        shards_checked=checks.read,
        check_seconds=checks.seconds,
    )
    return shards, counts
