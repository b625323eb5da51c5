"""Shards beside the encoder: those that publish would write, written as soon as their entries are there."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eridiff.caching.early_shards import EarlyShards
from eridiff.store import sharding as placement
from eridiff.store import store
from eridiff.store.entry_table import sorted_keys
from eridiff.store.store import Store
from tests.support.entries import Entry, contents, entry, filled

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "SHARD_BYTES", 100)


def make(count: int, lengths: tuple[int, ...] = (16,)) -> list[Entry]:
    """Entries in the order of their keys."""
    return sorted((entry(number, lengths[number % len(lengths)]) for number in range(count)), key=lambda one: one[0])


def size(one: Entry) -> int:
    return sum(len(tensor.data) for tensor in one[2].values())


def early(given: Store, entries: list[Entry], own: list[Entry], units: Any = size) -> EarlyShards:
    keys = sorted_keys(one[0] for one in entries)
    return EarlyShards(given, keys, np.array([units(one) for one in entries]), [one[0] for one in own], CPU)


@pytest.mark.parametrize("lengths", [(16,), (16, 64)])
@pytest.mark.parametrize("known", [0, 7])
def test_publish_finds_all_shards_written(tmp_path: Path, lengths: tuple[int, ...], known: int) -> None:
    """Also where some entries were there before; the bytes are those that publish alone writes."""
    entries = make(40, lengths)
    given = filled(tmp_path / "early", entries[:known])
    with early(given, entries, entries[known:]) as shards:
        for one in entries[known:]:
            shards.put(*one)
    written = given.shards_written
    assert written >= 10
    given.publish([one[0] for one in entries], tmp_path / "a")
    assert given.shards_written - written <= known  # those of old entries alone, which nobody waited for
    filled(tmp_path / "plain", entries).publish([one[0] for one in entries], tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(contents(tmp_path / "a")) == len(list((tmp_path / "early").rglob("shards/*.safetensors")))


def test_shards_are_written_while_entries_still_come(tmp_path: Path) -> None:
    entries = make(40)
    given = Store(tmp_path / "store", "latents")
    with early(given, entries, entries) as shards:
        for one in entries[:30]:
            shards.put(*one)
        limit = time.monotonic() + 10
        while given.shards_written < 5 and time.monotonic() < limit:
            time.sleep(0.01)
        assert given.shards_written >= 5


def test_what_was_foreseen_wrongly_changes_no_byte(tmp_path: Path) -> None:
    entries = make(40)
    given = Store(tmp_path / "store", "latents")
    with early(given, entries, entries, units=lambda one: 1 + int(one[0][:2], 16)) as shards:
        for one in entries:
            shards.put(*one)
    given.publish([one[0] for one in entries], tmp_path / "a")
    filled(tmp_path / "plain", entries).publish([one[0] for one in entries], tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_what_other_processes_put_is_waited_for(tmp_path: Path) -> None:
    """Every second entry comes from another process, which the catalogue knows nothing of."""
    entries = make(40)
    given, other = Store(tmp_path / "store", "latents"), Store(tmp_path / "store", "latents")
    with early(given, entries, entries[::2]) as shards:
        for mine, theirs in zip(entries[::2], entries[1::2], strict=True):
            shards.put(*mine)
            other.put(*theirs)
    assert given.shards_written >= 8
    given.look_again()
    given.publish([one[0] for one in entries], tmp_path / "a")
    filled(tmp_path / "plain", entries).publish([one[0] for one in entries], tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_shard_that_cannot_be_written_is_left_to_publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = store.write_tensors

    def full(path: Path, *arguments: Any) -> None:
        if path.parent.name == "shards":
            raise OSError(28, "No space left on device")
        write(path, *arguments)

    entries = make(40)
    given = Store(tmp_path / "store", "latents")
    with monkeypatch.context() as patch:
        patch.setattr(store, "write_tensors", full)
        with early(given, entries, entries) as shards:
            for one in entries:
                shards.put(*one)
        assert given.shards_written == 0
        with pytest.raises(store.StoreError, match="No space left on device"):
            given.publish([one[0] for one in entries], tmp_path / "a")
    given.publish([one[0] for one in entries], tmp_path / "a")
    assert given.shards_written == len(contents(tmp_path / "a"))
