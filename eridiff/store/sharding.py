"""Which entry stands in which shard: a pure function of the set of keys and their sizes.

One shard, or split into 16 by the next digit of the key wherever one would be larger than SHARD_BYTES. So one insert
splits one shard at most, and the shard of a key follows from the shards' prefixes.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

SHARD_BYTES = 64 << 20
Keys = NDArray[np.bytes_]


def shard_name(prefix: str) -> str:
    """The name of the shard of all keys with a prefix in a stage's out."""
    return f"shard-{prefix or 'all'}.safetensors"


class Placement(Mapping[str, str]):
    """Key -> name of the shard in the out, by the shards' prefixes alone."""

    def __init__(self, keys: Keys, prefixes: Iterable[str]) -> None:
        self.keys_, self.names = keys, {prefix: shard_name(prefix) for prefix in prefixes}
        self._lengths = sorted(set(map(len, self.names)))

    def __getitem__(self, key: str) -> str:
        for length in self._lengths:
            if name := self.names.get(key[:length]):
                return name
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return (key.decode() for key in self.keys_)

    def __len__(self) -> int:
        return len(self.keys_)


def split_sorted(keys: Keys, sizes: NDArray[np.int64]) -> Iterator[tuple[str, slice]]:
    """The prefixes by which sorted keys are split, in order, each with its part of them."""
    ends = np.concatenate([[0], np.cumsum(sizes)])  # bytes before each key
    letters = keys.view(np.uint8).reshape(len(keys), keys.itemsize)

    def split(start: int, stop: int, depth: int) -> Iterator[tuple[str, slice]]:
        if stop - start == 1 or ends[stop] - ends[start] <= SHARD_BYTES:
            yield keys[start].decode()[:depth], slice(start, stop)
            return
        column = letters[start:stop, depth]
        cuts = [start, *(start + 1 + np.flatnonzero(column[1:] != column[:-1])), stop]
        for one, other in pairwise(cuts):
            yield from split(int(one), int(other), depth + 1)

    if len(keys):
        yield from split(0, len(keys), 0)
