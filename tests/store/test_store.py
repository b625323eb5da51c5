"""The store: entries by content, shards as a function of the key set, damage found, many processes."""

import dataclasses
import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eridiff.caching.fill import CacheCounts, fill
from eridiff.core.errors import EridiffError, StoreError
from eridiff.formats.safetensors import RawTensor, TensorFile
from eridiff.store import sharding as module
from eridiff.store.entries import KeyFields, check_parts, checksum, entry_key, read_catalogue
from eridiff.store.pixels import PixelDigests
from eridiff.store.store import Store
from tests.support.entries import ENTRIES, KEYS, contents, filled, split_keys


def test_put_get_missing(tmp_path: Path) -> None:
    store = filled(tmp_path, ENTRIES[:3])
    key, parts, tensors = ENTRIES[1]
    assert store.missing([*KEYS[:5], KEYS[4], KEYS[0]]) == sorted(KEYS[3:5])
    for again in (store, Store(tmp_path, "latents")):
        read = again.get(key)
        assert {name: (t.dtype, t.shape, bytes(t.data)) for name, t in read.items()} == {
            name: (t.dtype, t.shape, bytes(t.data)) for name, t in tensors.items()
        }
        assert again.catalogue[key].key_fields == {**parts, "crop": {"at": [0, 8], "flip": False}}
        assert again.catalogue[key].size == 17
    assert Store(tmp_path, "texts").missing(KEYS[:1]) == KEYS[:1]  # kinds are apart


def test_an_entry_never_changes(tmp_path: Path) -> None:
    store = filled(tmp_path, ENTRIES[:1])
    key, parts, tensors = ENTRIES[0]
    store.put(key, parts, {"mean": RawTensor("U8", (1,), b"x")})
    assert checksum(store.get(key)) == checksum(tensors)
    Store(tmp_path, "latents").put(key, parts, {"mean": RawTensor("U8", (1,), b"x")})
    assert checksum(Store(tmp_path, "latents").get(key)) == checksum(tensors)


def test_the_closing_line() -> None:
    counts = CacheCounts(what="latents", samples=600, encoded=1, shards_written=2, seconds=0.81)
    assert counts.line() == "latents: 600 samples, 1 encoded, 599 reused, 2 shards written, 0.8 s"
    counts = CacheCounts(what="text", samples=1, encoded=1, shards_written=1, seconds=0.0)
    assert counts.line() == "text: 1 samples, 1 encoded, 0 reused, 1 shard written, 0.0 s"


def test_the_closing_line_says_what_checking_took_where_it_counts() -> None:
    counts = CacheCounts(what="text", samples=1, encoded=0, shards_written=0, seconds=4.3, shards_checked=40)
    assert counts.line().endswith("0 shards written, 4.3 s")
    line = dataclasses.replace(counts, check_seconds=3.14).line()
    assert line.endswith("0 shards written, 4.3 s, 3.1 s of it to check 40 shards")


def test_publish_is_a_function_of_the_key_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One history at once, one over several stores, processes' views, orders and other key sets between."""
    monkeypatch.setattr(module, "SHARD_BYTES", 100)
    wanted = KEYS[:30]
    placed = filled(tmp_path / "a", ENTRIES[:30]).publish(wanted, tmp_path / "out-a")

    filled(tmp_path / "b", ENTRIES[20:]).publish(KEYS[20:], tmp_path / "out-0")
    filled(tmp_path / "b", ENTRIES[5:12][::-1])  # stays loose, seen again from its file
    store = filled(tmp_path / "b", ENTRIES[:25][::-1])
    store.publish(KEYS[3:25], tmp_path / "out-1")
    assert store.publish(wanted[::-1] * 2, tmp_path / "out-b") == placed
    assert contents(tmp_path / "out-a") == contents(tmp_path / "out-b")
    assert len(contents(tmp_path / "out-a")) > 4
    assert set(placed) == set(wanted)


def test_published_shards_are_links_and_nothing_is_stored_twice(tmp_path: Path) -> None:
    store = filled(tmp_path, ENTRIES[:5])
    assert len(list(tmp_path.glob("latents/entries/*/*"))) == 5
    placed = store.publish(KEYS[:5], tmp_path / "out")
    assert set(placed.values()) == {"shard-all.safetensors"}
    assert list(tmp_path.glob("latents/entries/*/*")) == []
    (shard,) = tmp_path.glob("latents/shards/*")
    assert shard.samefile(tmp_path / "out" / "shard-all.safetensors")
    assert store.shards_written == 1
    again = Store(tmp_path, "latents")
    assert again.missing(KEYS[:5]) == []
    assert again.publish(KEYS[:5], tmp_path / "again") == placed
    assert again.shards_written == 0
    assert checksum(store.get(KEYS[0])) == checksum(again.get(KEYS[0])) == checksum(ENTRIES[0][2])


def test_a_loose_copy_of_a_sharded_entry_vanishes(tmp_path: Path) -> None:
    """As after a kill between the shard and the removal of its entries."""
    store = filled(tmp_path, ENTRIES[:3])
    (loose, *_) = sorted(tmp_path.glob("latents/entries/*/*"))
    kept = loose.read_bytes()
    store.publish(KEYS[:3], tmp_path / "out")
    loose.write_bytes(kept)
    Store(tmp_path, "latents").publish(KEYS[:3], tmp_path / "out-2")
    assert not loose.exists()


def test_publish_replaces_the_shards_of_an_out(tmp_path: Path) -> None:
    store = filled(tmp_path, ENTRIES)
    store.publish(KEYS[:3], tmp_path / "out")
    store.publish(KEYS[3:9], tmp_path / "out")
    assert set(read_catalogue(TensorFile(tmp_path / "out" / "shard-all.safetensors"))) == set(KEYS[3:9])
    assert store.publish([], tmp_path / "out") == {}
    assert contents(tmp_path / "out") == {}


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK])
def test_without_hardlinks_shards_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Another file system, one without hardlinks, one whose file has as many as there can be."""

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    filled(tmp_path, ENTRIES[:5]).publish(KEYS[:5], tmp_path / "out")
    (shard,) = tmp_path.glob("latents/shards/*")
    out = tmp_path / "out" / "shard-all.safetensors"
    assert not shard.samefile(out)
    assert shard.read_bytes() == out.read_bytes()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [out.name]
    store = Store(tmp_path / "other", "latents")
    assert store.adopt([out]) == 5
    assert checksum(store.get(KEYS[4])) == checksum(ENTRIES[4][2])


def test_adopt_takes_what_is_new(tmp_path: Path) -> None:
    filled(tmp_path / "a", ENTRIES[:6]).publish(KEYS[:6], tmp_path / "out")
    shards = list((tmp_path / "out").iterdir())
    store = filled(tmp_path / "b", ENTRIES[4:8])
    assert store.adopt(shards) == 4
    assert store.missing(KEYS[:9]) == KEYS[8:9]
    assert store.adopt(shards) == 0
    assert store.adopt([]) == 0
    store.publish(KEYS[:8], tmp_path / "out-b")
    filled(tmp_path / "c", ENTRIES[:8]).publish(KEYS[:8], tmp_path / "out-c")
    assert contents(tmp_path / "out-b") == contents(tmp_path / "out-c")


def test_a_damaged_shard_is_not_adopted(tmp_path: Path) -> None:
    filled(tmp_path / "a", ENTRIES[:6]).publish(KEYS[:6], tmp_path / "out")
    path = tmp_path / "out" / "shard-all.safetensors"
    flip(path, -3)
    store = Store(tmp_path / "b", "latents")
    with pytest.raises(StoreError, match=r"out/shard-all\.safetensors is damaged"):
        store.adopt([path])
    assert list((tmp_path / "b").glob("latents/**/*.safetensors")) == []


def flip(path: Path, place: int, mask: int = 0xFF) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= mask
    path.write_bytes(data)


def test_every_flipped_byte_of_an_entry_is_found_or_does_no_harm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, _, tensors = ENTRIES[0]
    filled(tmp_path, ENTRIES[:1])
    (path,) = tmp_path.glob("latents/entries/*/*")
    data = path.read_bytes()
    found = 0
    for place in range(0, len(data), 2):
        for mask in (0x01, 0x80):
            path.write_bytes(data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :])
            try:
                store = Store(tmp_path, "latents")
                if store.missing([key]):  # its header is damaged: it is encoded again
                    found += 1
                    continue
                assert checksum(store.get(key)) == checksum(tensors)
                check_parts(store.catalogue[key])
            except EridiffError as error:
                assert isinstance(error, StoreError)
                assert str(path) in str(error)
                found += 1
    assert found > len(data) / 2
    capsys.readouterr()


def test_a_shard_is_read_before_it_is_published(tmp_path: Path) -> None:
    """Every flipped bit of one that is there already, in its header as in its tensors."""
    filled(tmp_path / "s", ENTRIES[:2]).publish(KEYS[:2], tmp_path / "out")
    (shard,) = (tmp_path / "s/latents/shards").iterdir()
    store = Store(tmp_path / "s", "latents")
    assert store.missing(KEYS[:2]) == []  # the header is read, and found sound
    data = shard.read_bytes()
    for place in range(0, len(data), 7):
        shard.unlink()
        shard.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        with pytest.raises(StoreError, match=f"{shard.name} is .*Run `eridiff store repair`"):
            store.publish(KEYS[:2], tmp_path / "again")
        assert list((tmp_path / "again").glob("*")) == []


def test_a_stage_reads_a_shard_once_in_some_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not again while size, time and inode stay; what it has just written, in the next run only."""
    root = tmp_path / "s"
    filled(root, ENTRIES[:3])

    def run(days: str) -> CacheCounts:
        Path(tmp_path / "local.yaml").write_text(f"check_days: {days}\n")
        return fill(Store(root, "latents"), KEYS[:3], list, lambda: 0, tmp_path / "out", what="latents")[1]

    monkeypatch.chdir(tmp_path)
    assert (run("7").shards_checked, run("7").shards_checked) == (0, 1)
    (shard,) = (root / "latents/shards").iterdir()
    os.utime(shard, (shard.stat().st_mtime - 100,) * 2)  # a file younger than the clock's grain is not remembered
    assert [run(days).shards_checked for days in ("7", "7", "0", "7")] == [1, 0, 1, 0]
    facts = shard.stat()
    flip(shard, -3)
    os.utime(shard, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert run("7").shards_checked == 0  # which is why it is remembered for some days only
    with pytest.raises(StoreError, match=r"does not match its checksum"):
        run("0")


def test_damage_in_a_shard_names_the_file(tmp_path: Path) -> None:
    filled(tmp_path, ENTRIES[:4]).publish(KEYS[:4], tmp_path / "out")
    (path,) = tmp_path.glob("latents/shards/*")
    flip(path, -1)
    store = Store(tmp_path, "latents")
    damaged = []
    for key in KEYS[:4]:
        try:
            store.get(key)
        except StoreError as error:
            assert str(path) in str(error)
            assert f"entry {key[:12]}" in str(error)
            assert "Run `eridiff store repair`, then `dvc repro`." in str(error)
            damaged.append(key)
    assert len(damaged) == 1  # the others are whole


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_truncated_entry_is_named_and_encoded_again(
    tmp_path: Path, length: int, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(tmp_path, ENTRIES[:2])
    path = next(tmp_path.glob("latents/entries/*/*"))
    path.write_bytes(path.read_bytes()[:length])
    store = Store(tmp_path, "latents")
    assert store.missing(KEYS[:2]) == [path.stem]
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {path} is ")
    assert warning.endswith("Run `eridiff store repair`, then `dvc repro`. What it held counts as missing.")
    for item in ENTRIES[:2]:
        store.put(*item)
    store.publish(KEYS[:2], tmp_path / "out")
    filled(tmp_path / "alone", ENTRIES[:2]).publish(KEYS[:2], tmp_path / "out-alone")
    assert contents(tmp_path / "out") == contents(tmp_path / "out-alone")


@pytest.mark.parametrize("place", [3, 60])
def test_a_damaged_shard_header_stops_no_other_project(
    tmp_path: Path, place: int, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(tmp_path, ENTRIES[:4]).publish(KEYS[:4], tmp_path / "out")
    (path,) = tmp_path.glob("latents/shards/*")
    filled(tmp_path, ENTRIES[4:8]).publish(KEYS[4:8], tmp_path / "other")
    flip(path, place)
    store = Store(tmp_path, "latents")
    assert store.missing(KEYS[:8]) == sorted(KEYS[:4])
    assert f"warning: {path} is " in capsys.readouterr().err
    assert set(store.publish(KEYS[4:8], tmp_path / "other-again")) == set(KEYS[4:8])
    for item in ENTRIES[:4]:
        store.put(*item)
    with pytest.raises(StoreError, match=rf"{path.name} is .*Run `eridiff store repair`"):
        store.publish(KEYS[:4], tmp_path / "again")  # else DVC would link its own damaged copy over it


def test_a_shard_under_another_name_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path, ENTRIES[:4]).publish(KEYS[:4], tmp_path / "out")
    (path,) = tmp_path.glob("latents/shards/*")
    path.rename(path.with_name(f"{'0' * 64}.safetensors"))
    assert Store(tmp_path, "latents").missing(KEYS[:4]) == sorted(KEYS[:4])
    assert (
        "0.safetensors holds something else than its name says. Run `eridiff store repair`" in capsys.readouterr().err
    )


def test_parts_that_do_not_give_the_key_are_not_published(tmp_path: Path) -> None:
    filled(tmp_path, ENTRIES[:2])
    path = next(tmp_path.glob("latents/entries/*/*"))
    data = path.read_bytes()
    assert data.count(b"dddd") > 1
    path.write_bytes(data.replace(b"dddd", b"dddc", 1))
    with pytest.raises(StoreError, match=rf"{path.name} is damaged: entry {path.stem[:12]} has key fields that"):
        Store(tmp_path, "latents").publish(KEYS[:2], tmp_path / "out")


def test_an_error_of_one_shard_ends_the_others_that_were_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 1)
    store = filled(tmp_path / "store", ENTRIES)
    begun: list[str] = []

    def failing(out: Path, prefix: str, keys: Any) -> str:
        begun.append(prefix)
        time.sleep(0.2)
        raise StoreError("damaged")

    monkeypatch.setattr(store, "_write_and_place", failing)
    with pytest.raises(StoreError, match="damaged"):
        store.publish(store.catalogue, tmp_path / "out")
    assert 1 <= len(begun) < 15 < len(store.catalogue)


def test_other_formats_are_refused(tmp_path: Path) -> None:
    (tmp_path / "FORMAT").write_text("eridiff-store 9\n")
    with pytest.raises(StoreError, match=r"FORMAT says 'eridiff-store 9'; this eridiff reads 'eridiff-store 1'"):
        Store(tmp_path, "latents")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file cannot be used: .*Choose another with ERIDIFF_STORE"):
        Store(tmp_path / "file", "latents")
    Store(tmp_path / "new", "latents")
    assert (tmp_path / "new" / "FORMAT").read_text() == "eridiff-store 1\n"


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path, ENTRIES[:2])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot write to the store .*: No space left on device"):
        store.put(*ENTRIES[3])
    with pytest.raises(StoreError, match=r"cannot write shards to .*: No space left on device"):
        store.publish(KEYS[:2], tmp_path / "out")
    monkeypatch.undo()
    assert checksum(Store(tmp_path, "latents").get(KEYS[1])) == checksum(ENTRIES[1][2])
    assert list(tmp_path.rglob("*.tmp")) == []


hexes = st.text("0123456789abcdef", min_size=8, max_size=8)


@given(sizes=st.dictionaries(hexes, st.integers(1, 60), max_size=60), extra=hexes, size=st.integers(1, 60))
@settings(max_examples=150, deadline=None)
def test_split_keys(sizes: dict[str, int], extra: str, size: int) -> None:
    """A partition into prefixes, each within the limit; one insert changes one group at most."""
    limit, module.SHARD_BYTES = module.SHARD_BYTES, 64
    try:
        groups = split_keys(sizes)
        more = split_keys({**sizes, extra: sizes.get(extra, size)})
    finally:
        module.SHARD_BYTES = limit
    assert sorted(key for members in groups.values() for key in members) == sorted(sizes)
    for prefix, members in groups.items():
        assert members == sorted(members)
        assert all(key.startswith(prefix) for key in members)
        assert len(members) == 1 or sum(sizes[key] for key in members) <= 64
    kept = {tuple(members) for members in groups.values()} & {tuple(members) for members in more.values()}
    assert len(groups) - len(kept) <= 1


parts_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(parts=st.lists(st.dictionaries(st.sampled_from("abc"), parts_values), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_parts_come_back_from_a_shard(parts: list[KeyFields], tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("store")
    store = Store(root, "latents")
    for part in parts:
        store.put(entry_key(part), part, {"mean": RawTensor("U8", (1,), b"x")})
    store.publish(map(entry_key, parts), root / "out")
    found = read_catalogue(TensorFile(root / "out" / "shard-all.safetensors"))
    assert {key: entry_key(location.key_fields) for key, location in found.items()} == {key: key for key in found}
    assert set(found) == set(map(entry_key, parts))


def test_pixel_digests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = PixelDigests(tmp_path)
    assert pixels.known == {}
    pixels.learn({"f1": "p1", "f2": "p1"})
    pixels.learn({"f1": "other", "f3": "p3"})
    pixels.learn({"f3": "p3"})
    assert pixels.known == PixelDigests(tmp_path).known == {"f1": "p1", "f2": "p1", "f3": "p3"}
    assert len(list((tmp_path / "pixels").iterdir())) == 2
    path = sorted((tmp_path / "pixels").iterdir())[0]
    path.write_text(path.read_text().replace("p", "q"))
    assert len(PixelDigests(tmp_path).known) < 3
    assert f"warning: {path} is damaged: its pictures are read again. Run `eridiff store" in capsys.readouterr().err


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(StoreError, match=r"is no store: it holds holiday.jpg and no FORMAT. Choose an empty folder"):
        Store(tmp_path, "latents")
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]
