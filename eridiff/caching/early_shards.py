"""Shards written beside the encoder: each as soon as the store has all of its entries.

Which entry stands in which shard is decided by `Store.publish` alone, from the entries themselves. Here the same is
foreseen from the samples' relative sizes and the first entry's bytes, so that publish finds the shards written. Were
that wrong, one shard more would lie in the store, and no byte of the output would be another.
"""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from eridiff.caching.pipeline import writer_threads
from eridiff.core.errors import StoreError
from eridiff.formats.safetensors import RawTensor
from eridiff.store.entries import KeyFields
from eridiff.store.sharding import Keys, split_sorted
from eridiff.store.store import Store

if TYPE_CHECKING:
    import torch


class Puts(Protocol):
    """What takes entries: a store, or this beside one."""

    def put(self, key: str, key_fields: KeyFields, tensors: Mapping[str, RawTensor]) -> None:
        """Add one entry, atomically."""


class EarlyShards:
    """Puts entries into a store, and in threads of its own gathers those whose shard is complete."""

    def __init__(
        self, store: Store, keys: Keys, units: NDArray[np.int64], own: Iterable[str], device: "torch.device"
    ) -> None:
        """keys: all that will be published; units: the size of each in a unit of any kind; own: those put here.

        device: the encoder's; on a CPU one thread must do.
        """
        self.store = store
        self.keys, first = np.unique(keys, return_index=True)
        self._units = units[first]
        own_keys = np.unique(np.array(list(own), dtype=self.keys.dtype))
        self._own = np.searchsorted(self.keys, own_keys)
        self._groups: list[tuple[str, slice]] = []
        self._starts, self._left = np.zeros(0, np.int64), np.zeros(0, np.int64)  # of each group: first key, own to come
        self._waiting: list[int] = []  # groups that wait for what other processes put
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(writer_threads(device), thread_name_prefix="eridiff-shard")

    def __enter__(self) -> "EarlyShards":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)

    def put(self, key: str, key_fields: KeyFields, tensors: Mapping[str, RawTensor]) -> None:
        """`Store.put`; the last entry of a shard has it written."""
        self.store.put(key, key_fields, tensors)
        with self._lock:
            place = int(np.searchsorted(self.keys, np.bytes_(key.encode())))
            if not self._groups:
                self._foresee(place, sum(len(tensor.data) for tensor in tensors.values()))
            group = int(np.searchsorted(self._starts, place, side="right")) - 1
            self._left[group] -= 1
            if self._left[group] == 0:
                for ready in (*self._waiting, group):
                    self._pool.submit(self._gather, ready)
                self._waiting = []

    def _foresee(self, place: int, size: int) -> None:
        """Which shards there will be: sizes are to each other as the units are."""
        sizes = self._units * size // self._units[place]
        self._groups = list(split_sorted(self.keys, sizes))
        self._starts = np.array([part.start for _, part in self._groups])
        groups = np.searchsorted(self._starts, self._own, side="right") - 1
        self._left = np.bincount(groups, minlength=len(self._groups))

    def _gather(self, group: int) -> None:
        prefix, part = self._groups[group]
        with suppress(StoreError, OSError):  # publish meets it again, and says so
            if not self.store.gather((key.decode() for key in self.keys[part]), prefix):
                with self._lock:
                    self._waiting.append(group)
