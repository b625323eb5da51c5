"""Several processes on one store: filled together, killed in the middle, entries moved under a reader."""

import signal
import time
from pathlib import Path

import pytest

from eridiff.core.errors import StoreError
from eridiff.formats.safetensors import RawTensor
from eridiff.store.entries import checksum
from eridiff.store.store import Store
from tests.support import processes
from tests.support.entries import ENTRIES, KEYS, contents, entry, filled

FILL = """
import random, sys
from pathlib import Path
from eridiff.store.store import Store
from tests.support.entries import ENTRIES, KEYS
root, out, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
order = list(ENTRIES)
random.Random(seed).shuffle(order)
store = Store(root, "latents")
for number, entry in enumerate(order):
    store.put(*entry)
    if number % 9 == 8:
        store.publish([key for key, _, _ in order[: number + 1]], out)
store.publish(KEYS, out)
print(store.shards_written)
"""


@pytest.mark.slow
def test_two_processes_fill_one_store(tmp_path: Path) -> None:
    """Each puts all entries in its own order and publishes on the way: entries vanish under the other."""
    running = [processes.start(FILL, tmp_path / "store", tmp_path / f"out-{seed}", seed) for seed in range(3)]
    for process in running:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    filled(tmp_path / "alone", ENTRIES).publish(KEYS, tmp_path / "out-alone")
    expected = contents(tmp_path / "out-alone")
    assert [contents(tmp_path / f"out-{seed}") for seed in range(3)] == [expected] * 3
    store = Store(tmp_path / "store", "latents")
    assert all(checksum(store.get(key)) == checksum(tensors) for key, _, tensors in ENTRIES)
    store.publish(KEYS, tmp_path / "out-last")
    assert list((tmp_path / "store").rglob("*.tmp")) == []
    assert list((tmp_path / "store").glob("latents/entries/*/*")) == []


PUT_FOR_EVER = """
import os, sys
from pathlib import Path
from eridiff.store.store import Store
from tests.support.entries import entry
store = Store(Path(sys.argv[1]), "latents")
print("ready", flush=True)
number, parent = 0, os.getppid()
while os.getppid() == parent:  # not after the tests
    store.put(*entry(number, 400_000))
    number += 1
"""


def test_a_killed_process_leaves_whole_entries(tmp_path: Path) -> None:
    process = processes.start(PUT_FOR_EVER, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    while len(list(tmp_path.glob("latents/entries/*/*.safetensors"))) < 5:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    store = Store(tmp_path, "latents")
    survivors = list(store.catalogue)
    assert len(survivors) >= 5
    expected = {key: checksum(tensors) for key, _, tensors in (entry(n, 400_000) for n in range(len(survivors)))}
    assert {key: checksum(store.get(key)) for key in survivors} == expected  # the first so many, each whole


def test_a_reader_finds_an_entry_that_was_moved(tmp_path: Path) -> None:
    reader = filled(tmp_path, ENTRIES[:4])
    Store(tmp_path, "latents").publish(KEYS[:4], tmp_path / "out")
    assert list(tmp_path.glob("latents/entries/*/*")) == []
    assert checksum(reader.get(KEYS[0])) == checksum(ENTRIES[0][2])
    late = Store(tmp_path, "latents")
    assert late.missing(KEYS[:4]) == []


def test_publish_finds_entries_that_were_moved(tmp_path: Path) -> None:
    writer = filled(tmp_path, ENTRIES[:4])
    Store(tmp_path, "latents").publish(KEYS[:3], tmp_path / "out-other")
    writer.publish(KEYS[:4], tmp_path / "out")
    filled(tmp_path / "alone", ENTRIES[:4]).publish(KEYS[:4], tmp_path / "out-alone")
    assert contents(tmp_path / "out") == contents(tmp_path / "out-alone")


def test_an_entry_that_another_process_encoded_with_other_bits_is_whole(tmp_path: Path) -> None:
    """Kernels are not exact: two processes may put other bits under one key; the last one's count, for both."""
    key, parts, _ = ENTRIES[0]
    first, second = Store(tmp_path, "latents"), Store(tmp_path, "latents")
    assert first.missing([key]) == second.missing([key]) == [key]
    first.put(key, parts, {"mean": RawTensor("U8", (1,), b"1")})
    second.put(key, parts, {"mean": RawTensor("U8", (1,), b"2")})
    assert bytes(first.get(key)["mean"].data) == b"2"
    first.publish([key], tmp_path / "out")
    assert bytes(Store(tmp_path, "latents").get(key)["mean"].data) == b"2"


def test_an_entry_that_was_removed_is_named(tmp_path: Path) -> None:
    store = filled(tmp_path, ENTRIES[:1])
    for path in tmp_path.glob("latents/entries/*/*"):
        path.unlink()
    with pytest.raises(StoreError, match=rf"entry {KEYS[0][:12]} is gone from the store"):
        store.get(KEYS[0])
