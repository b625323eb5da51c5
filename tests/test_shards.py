"""A cache as the trainer reads it: mapped, not copied, at random, checked once."""

import gc
import os
from pathlib import Path

import pytest
import torch

from eridiff.entries import entry_key
from eridiff.errors import StoreError
from eridiff.shards import Cache, Shard
from eridiff.store import Store
from eridiff.tensorfile import raw_tensors


def key_of(number: int) -> str:
    return entry_key({"number": number})


def filled(folder: Path, count: int, floats: int) -> Cache:
    """`count` entries of 4 * floats bytes and a small one beside each; entry n holds n."""
    store = Store(folder / "store", "latents")
    for number in range(count):
        tensors = {"mean": torch.full((floats // 4, 4), float(number)), "half": torch.ones(3, dtype=torch.bfloat16)}
        store.put(key_of(number), {"number": number}, raw_tensors({**tensors, "none": torch.empty(0, 2)}))
    store.publish([key_of(number) for number in range(count)], folder / "out")
    return Cache(folder / "out")


def anonymous_bytes() -> int:
    """Memory of this process that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def mapped_ranges(path: Path) -> list[tuple[int, int]]:
    """Where the file lies in this process's memory."""
    inode = str(os.stat(path).st_ino)
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    pairs = [line[0].split("-") for line in lines if line[4] == inode]
    return [(int(low, 16), int(high, 16)) for low, high in pairs]


def test_tensors_lie_in_the_map(tmp_path: Path) -> None:
    cache = filled(tmp_path, 3, 1024)
    (path,) = (tmp_path / "out").glob("*.safetensors")
    first, again = cache.tensors(key_of(1)), cache.tensors(key_of(1))
    assert first["mean"].data_ptr() == again["mean"].data_ptr()
    address = first["mean"].data_ptr()
    assert any(low <= address < high for low, high in mapped_ranges(path))
    assert first["mean"].shape == (256, 4)
    assert first["mean"].unique().tolist() == [1.0]
    assert first["half"].dtype == torch.bfloat16
    assert first["half"].tolist() == [1.0, 1.0, 1.0]
    assert first["none"].shape == (0, 2)
    entries = [cache.tensors(key_of(number))["mean"] for number in (2, 0, 1)]  # in any order
    assert [int(tensor[0, 0]) for tensor in entries] == [2, 0, 1]


def test_a_write_by_mistake_stays_in_the_process(tmp_path: Path) -> None:
    cache = filled(tmp_path, 1, 1024)
    (path,) = (tmp_path / "out").glob("*.safetensors")
    before = path.read_bytes()
    cache.tensors(key_of(0))["mean"] += 1
    assert path.read_bytes() == before
    assert Cache(tmp_path / "out").tensors(key_of(0))["mean"].unique().tolist() == [0.0]


@pytest.mark.slow
def test_memory_does_not_grow_by_the_payload(tmp_path: Path) -> None:
    """48 MiB of latents, all looked at and all held: less than 4 MiB of the process's own."""
    cache = filled(tmp_path, 48, 1 << 18)
    cache.tensors(key_of(0))
    gc.collect()
    before = anonymous_bytes()
    held = [cache.tensors(key_of(number))["mean"] for number in range(48)]
    assert sum(float(tensor[0, 0]) for tensor in held) == sum(range(48))
    assert all(bool((tensor == tensor[0, 0]).all()) for tensor in held)
    assert anonymous_bytes() - before < 4 << 20


def test_damage_is_found_before_it_is_used(tmp_path: Path) -> None:
    filled(tmp_path, 2, 1024)
    (path,) = (tmp_path / "out").glob("*.safetensors")
    data = bytearray(path.read_bytes())
    os.unlink(path)  # else the store's own copy changes too
    data[-1000] ^= 1
    path.write_bytes(data)
    cache, bad = Cache(tmp_path / "out"), 0
    for number in range(2):
        try:
            cache.tensors(key_of(number))
        except StoreError:
            bad += 1
            with pytest.raises(StoreError, match="does not match its checksum"):
                cache.tensors(key_of(number))  # and again
    assert bad == 1


def test_a_shard_of_one_kind_of_number(tmp_path: Path) -> None:
    cache = filled(tmp_path, 2, 64)
    (path,) = (tmp_path / "out").glob("*.safetensors")
    shard = Shard(path)
    name = f"{key_of(1)}.mean"
    assert torch.equal(shard.tensor(name), cache.tensors(key_of(1))["mean"])
    assert torch.equal(shard.tensor(name), shard.file.raw(name).torch())
