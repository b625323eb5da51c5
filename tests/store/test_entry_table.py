"""The table of entries against a plain dict, and what it costs; the catalogue's file that remembers it."""

import hashlib
import tracemalloc
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eridiff.store import sharding as placement
from eridiff.store.catalogue import read_store
from eridiff.store.entries import Location
from eridiff.store.entry_table import ALONE, Columns, EntryTable, sorted_keys
from eridiff.store.sharding import Placement
from eridiff.store.store import Store
from tests.support.entries import ENTRIES, KEYS, filled, split_keys

FOLDER = Path("store/latents")
FILES = [FOLDER / "shards/one.safetensors", FOLDER / "shards/two.safetensors"]


def key_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def location(number: int, file: int, size: int) -> Location:
    path = FOLDER / "entries" / key_of(number)[:2] / f"{key_of(number)}.safetensors" if file == ALONE else FILES[file]
    return Location(key_of(number), path, f"{size:032x}", size)


ROWS = st.tuples(st.integers(0, 30), st.sampled_from([ALONE, 0, 1]), st.integers(0, 1 << 40))


@given(first=st.lists(ROWS, max_size=20), added=st.lists(ROWS, max_size=20), moved=st.sets(st.integers(0, 30)))
@settings(max_examples=100, deadline=None)
def test_it_is_a_dict(first: list[tuple[int, int, int]], added: list[tuple[int, int, int]], moved: set[int]) -> None:
    columns, expected = Columns(), {}
    for number, file, size in first:
        columns.add(key_of(number), f"{size:032x}", size, file)
        expected.setdefault(key_of(number), location(number, file, size))
    table = EntryTable(FOLDER, FILES, columns)
    assert dict(table) == expected
    for number, file, size in added:
        table.add(location(number, file, size))
        expected[key_of(number)] = location(number, file, size)
        assert table[key_of(number)] == expected[key_of(number)]
    there = [key_of(number) for number in moved if key_of(number) in table]
    table.move([key_of(number) for number in moved], FOLDER / "shards/three.safetensors")
    for key in there:
        old = expected[key]
        expected[key] = Location(key, FOLDER / "shards/three.safetensors", old.checksum, old.size)
    assert dict(table) == expected
    assert list(table) == sorted(expected)
    wanted = sorted_keys(key_of(number) for number in range(31))
    assert {key.decode() for key in table.lacking(wanted)} == {key_of(n) for n in range(31)} - set(expected)
    here = sorted_keys(expected)
    assert table.sizes(here).tolist() == [expected[key].size for key in sorted(expected)]
    assert table.checksums(here) == [expected[key].checksum for key in sorted(expected)]
    assert "0" * 63 not in table and "ü" * 64 not in table and "0" * 65 not in table


@pytest.mark.slow
def test_an_entry_costs_less_than_half_a_kibibyte() -> None:
    """Of the three that all bookkeeping of a sample may take; whether it was there or is added."""
    keys = [key_of(number) for number in range(20_000)]
    tracemalloc.start()
    try:
        columns = Columns()
        for number, key in enumerate(keys[:10_000]):
            columns.add(key, f"{number:032x}", number, 0)
        table = EntryTable(FOLDER, FILES, columns)
        for number, key in enumerate(keys[10_000:]):
            table.add(Location(key, FILES[0], f"{number:032x}", number))
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(table) == 20_000
    assert 108 * 20_000 < held < most < 512 * 20_000


def test_threads_add_at_once() -> None:
    table = EntryTable(FOLDER, FILES)

    def add(start: int) -> None:
        for number in range(start, 800, 4):
            table.add(location(number, 0, number))
            assert key_of(number) in table

    threads = [Thread(target=add, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(table) == sorted(key_of(number) for number in range(800))


def test_the_shard_of_a_key_follows_from_the_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "SHARD_BYTES", 3)
    groups = split_keys({key_of(number): 1 for number in range(40)})
    assert len({len(prefix) for prefix in groups}) > 1
    keys = sorted_keys(key_of(number) for number in range(40))
    placed = Placement(keys, groups)
    assert dict(placed) == {key: f"shard-{prefix}.safetensors" for prefix, members in groups.items() for key in members}
    with pytest.raises(KeyError):
        Placement(keys, ["x"])[key_of(1)]


@pytest.mark.slow
def test_every_flipped_bit_of_the_remembered_catalogue_is_found(tmp_path: Path) -> None:
    """It is then read anew from the shards' headers: no entry is sought where it does not lie."""
    store = filled(tmp_path, ENTRIES[:6])
    store.publish(KEYS[:6], tmp_path / "out")
    expected = dict(Store(tmp_path, "latents").catalogue)  # which writes the file
    path = tmp_path / "latents/catalogue.sealed.parquet"
    sound = path.read_bytes()
    for place in range(0, len(sound), 7):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << place % 8]) + sound[place + 1 :])
        assert dict(read_store(tmp_path / "latents").entries) == expected, place
    path.write_bytes(sound[: len(sound) // 2])
    assert dict(read_store(tmp_path / "latents").entries) == expected
