"""Pictures that are new: decoded once, encoded while others are read, the same bytes as any other way."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from eridiff.caching import processes as ranks
from eridiff.caching.fill import CacheCounts, Resources, Work
from eridiff.caching.latents import encode as latentcache
from eridiff.caching.latents import new_pictures as newpictures
from eridiff.caching.latents.encode import cache_latents
from eridiff.caching.latents.new_pictures import NewPictures
from eridiff.caching.latents.plan import INDEX_COLUMNS, common_key_fields, plan_samples
from eridiff.caching.processes import Ranks
from eridiff.core.errors import ConfigError, DataError
from eridiff.core.files import digest_file
from eridiff.formats.tables import Row, write_table
from eridiff.params.latents import LatentParams
from eridiff.store import store
from eridiff.store.pixels import PixelDigests
from eridiff.store.store import Store
from tests.caching.latents.test_encode import VAE, MeanVae, make_pictures
from tests.support.entries import contents

CPU = torch.device("cpu")
PARAMS = LatentParams(batch_size=3, flip=True, crops=2)


def nothing_to_load() -> Any:
    raise AssertionError("all is encoded")


def stage(
    folder: Path,
    rows: list[Row],
    name: str,
    params: LatentParams = PARAMS,
    vae: Any = None,
    workers: int | None = None,
    once: bool = True,
    earlier: Callable[[], list[Path]] = list,
) -> CacheCounts:
    """The stage's work into FOLDER/NAME. once: new pictures by themselves, as the stage does; else after a plan."""
    root, out, raw = folder / f"store-{name}", folder / name, folder / "raw"
    pixels = PixelDigests(root, {row["file_digest"] for row in rows})
    work, common = Work(), common_key_fields(params, VAE, 1)
    resources = Resources(root=root, load=lambda: (vae or MeanVae(), CPU), earlier=earlier, workers=workers)
    if once:
        work = NewPictures(rows, params, 16, raw, pixels).encode(common, resources)
    samples = plan_samples(rows, params, common, 16, raw, pixels)
    index, counts = cache_latents(samples, params, raw, resources, out)
    write_table(out / "index.parquet", index, INDEX_COLUMNS)
    return counts.after(work)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the pictures that are decoded, as often as they are."""
    names: list[str] = []
    load = newpictures.load_pixels

    def counting(path: Path, digest: str | None = None) -> Any:
        names.append(path.name)
        return load(path, digest)

    for module in (newpictures, latentcache, plan_samples.__globals__):
        if isinstance(module, dict):
            monkeypatch.setitem(module, "load_pixels", counting)
        else:
            monkeypatch.setattr(module, "load_pixels", counting)
    yield names


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 4, None])
def test_each_is_decoded_once_and_the_bytes_are_the_same(
    tmp_path: Path, decoded: list[str], workers: int | None
) -> None:
    rows = make_pictures(tmp_path / "raw", 11)
    counts = stage(tmp_path, rows, "once", workers=workers)
    assert sorted(decoded) == [row["path"] for row in rows]
    assert counts.encoded == counts.samples == len(Store(tmp_path / "store-once", "latents").catalogue)
    stage(tmp_path, rows, "twice", once=False)
    assert len(decoded) > 3 * len(rows)
    assert contents(tmp_path / "once") == contents(tmp_path / "twice")


def test_equal_pictures_are_encoded_once(tmp_path: Path) -> None:
    """A copy beside, a copy elsewhere, and one with other metadata: one entry, and all stand in the index."""
    rows = make_pictures(tmp_path / "raw", 3)
    for name in ("000a.png", "zzz.png"):
        shutil.copy(tmp_path / "raw/000.png", tmp_path / "raw" / name)
        rows.append({**rows[0], "path": name})
    with Image.open(tmp_path / "raw/000.png") as image:
        facts = PngInfo()
        facts.add_text("title", "tagged")
        image.save(tmp_path / "raw/001a.png", pnginfo=facts)
    rows.append({**rows[0], "path": "001a.png", "file_digest": digest_file(tmp_path / "raw/001a.png")})
    assert rows[-1]["file_digest"] != rows[0]["file_digest"]
    rows.sort(key=lambda row: row["path"])
    params = LatentParams(batch_size=4)
    counts = stage(tmp_path, rows, "once", params)
    assert (counts.samples, counts.encoded) == (6, 3)
    stage(tmp_path, rows, "twice", params, once=False)
    assert contents(tmp_path / "once") == contents(tmp_path / "twice")


def test_what_the_last_output_has_is_not_encoded(tmp_path: Path) -> None:
    """A clone: the store is empty, the pictures were never read here, the last output is there."""
    rows = make_pictures(tmp_path / "raw", 6)
    stage(tmp_path, rows[:4], "before")
    shutil.copytree(tmp_path / "before", tmp_path / "cached")

    def earlier() -> list[Path]:
        return sorted((tmp_path / "cached").glob("shard-*"))

    pixels = PixelDigests(tmp_path / "store-none", {row["file_digest"] for row in rows[:4]})
    new = NewPictures(rows[:4], PARAMS, 16, tmp_path / "raw", pixels)
    none = Resources(root=tmp_path / "store-none", load=nothing_to_load, earlier=earlier)
    assert new.encode(common_key_fields(PARAMS, VAE, 1), none).encoded == 0
    assert pixels.unknown == set()
    one = stage(tmp_path, rows, "clone", earlier=earlier)
    assert (one.samples, one.encoded) == (24, 8)


def test_the_first_one_tells_that_something_lacks(tmp_path: Path, decoded: list[str]) -> None:
    rows = make_pictures(tmp_path / "raw", 5)
    pixels = PixelDigests(tmp_path / "store-a", {row["file_digest"] for row in rows})
    new = NewPictures(rows, PARAMS, 16, tmp_path / "raw", pixels)
    keys = new.first_keys(common_key_fields(PARAMS, VAE, 1))
    assert decoded == ["000.png"]
    stage(tmp_path, rows, "a")
    assert len(keys) == 4 and set(keys) <= set(Store(tmp_path / "store-a", "latents").catalogue)
    known = PixelDigests(tmp_path / "store-a", {row["file_digest"] for row in rows})
    again = NewPictures(rows, PARAMS, 16, tmp_path / "raw", known)
    assert again.first_keys({}) == []
    nothing = Resources(root=tmp_path / "store-a", load=nothing_to_load, earlier=nothing_to_load)
    assert again.encode({}, nothing) == Work()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 3])
def test_an_interruption_keeps_entries_and_pixels(tmp_path: Path, decoded: list[str], workers: int) -> None:
    rows = make_pictures(tmp_path / "raw", 20)

    class Stopping(MeanVae):
        left = 5

        def encode(self, pixels: Tensor) -> Any:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().encode(pixels)

    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path, rows, "a", vae=Stopping(), workers=workers)
    assert len(Store(tmp_path / "store-a", "latents").catalogue) == 15
    known = len(PixelDigests(tmp_path / "store-a").known)
    assert 3 <= known < 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("eridiff")]
    assert stage(tmp_path, rows, "a", workers=workers).encoded == 80 - 15
    stage(tmp_path, rows, "fresh", once=False)
    assert contents(tmp_path / "a") == contents(tmp_path / "fresh")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_one_is_named_and_the_others_are_kept(tmp_path: Path, workers: int) -> None:
    rows = make_pictures(tmp_path / "raw", 20)
    (tmp_path / "raw/010.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"010\.png: changed since the captions stage ran"):
        stage(tmp_path, rows, "a", workers=workers)
    assert 6 <= len(Store(tmp_path / "store-a", "latents").catalogue) <= 40
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_all_damaged_ones_are_named_at_once(tmp_path: Path, workers: int) -> None:
    """Also where the first is: by the stage's look at it nothing is named, but by who reads all."""
    rows = make_pictures(tmp_path / "raw", 12)
    for number in (0, 7, 11):
        (tmp_path / f"raw/{number:03}.png").write_bytes(b"no picture")
    pixels = PixelDigests(tmp_path / "store-a", {row["file_digest"] for row in rows})
    common = common_key_fields(PARAMS, VAE, 1)
    assert NewPictures(rows, PARAMS, 16, tmp_path / "raw", pixels).first_keys(common) == []
    with pytest.raises(DataError) as caught:
        stage(tmp_path, rows, "a", workers=workers)
    first, *named = str(caught.value).splitlines()
    assert first == "pictures that cannot be used:"
    assert [Path(line.strip().split(":")[0]).name for line in named] == ["000.png", "007.png", "011.png"]
    assert len(Store(tmp_path / "store-a", "latents").catalogue) == 0  # nothing is encoded after the first
    assert len(PixelDigests(tmp_path / "store-a").known) == 9


def test_sides_are_checked_before_anything_is_read(tmp_path: Path, decoded: list[str]) -> None:
    rows = make_pictures(tmp_path / "raw", 5)
    rows[4]["bucket_w"] = 40
    for once in (True, False):
        with pytest.raises(ConfigError, match="sides must be multiples of 16"):
            stage(tmp_path, rows, "a", once=once)
    assert decoded == []


def test_memory_is_a_batch_of_each_bucket_and_what_is_read_ahead(tmp_path: Path) -> None:
    """60 pictures through a slow encoder: what is read and not encoded is bounded."""
    rows, encoded = make_pictures(tmp_path / "raw", 60), [0]
    held: list[int] = []

    class Counting(MeanVae):
        def encode(self, pixels: Tensor) -> Any:
            encoded[0] += 2
            return super().encode(pixels)

    load, read = newpictures.load_pixels, [0]

    def counting(path: Path, digest: str | None = None) -> Any:
        read[0] += 1
        held.append(read[0] - encoded[0])
        return load(path, digest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(newpictures, "load_pixels", counting)
        stage(tmp_path, rows, "a", LatentParams(batch_size=2), vae=Counting(0.005), workers=2)
    assert (read[0], encoded[0]) == (60, 60)
    assert max(held) <= (2 + 2) + 2 * 2  # threads and a batch ahead, a batch in each of two buckets


class Steps:
    """How often something was begun, and waiting until something was: an error where it never is."""

    def __init__(self) -> None:
        self.read = self.encoded = 0
        self._changed = threading.Condition()

    def begin(self, kind: str) -> None:
        with self._changed:
            setattr(self, kind, getattr(self, kind) + 1)
            self._changed.notify_all()

    def until(self, kind: str, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: getattr(self, kind) >= count, 30), f"{kind} waits for its end"


@pytest.mark.parametrize("once", [True, False])
def test_reading_encoding_and_writing_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, once: bool) -> None:
    """Pictures of a later batch are read before the first is encoded, and another is encoded before it is written."""
    rows, params, steps = make_pictures(tmp_path / "raw", 40), LatentParams(batch_size=2), Steps()
    load, write = newpictures.load_pixels, store.write_tensors

    class Waiting(MeanVae):
        def encode(self, pixels: Tensor) -> Any:
            steps.begin("encoded")
            steps.until("read", 5)  # two buckets of two: four make a batch for certain
            return super().encode(pixels)

    def counted_load(path: Path, digest: str | None = None) -> Any:
        steps.begin("read")
        return load(path, digest)

    def waiting_write(path: Path, *arguments: Any) -> None:
        steps.until("encoded", 2)
        write(path, *arguments)

    if not once:  # their pixels are known
        pixels = PixelDigests(tmp_path / "store-a")
        plan_samples(rows, params, common_key_fields(params, VAE, 1), 16, tmp_path / "raw", pixels)
    monkeypatch.setattr(newpictures, "load_pixels", counted_load)
    monkeypatch.setattr(latentcache, "load_pixels", counted_load)
    monkeypatch.setattr(store, "write_tensors", waiting_write)
    assert stage(tmp_path, rows, "a", params, vae=Waiting(), workers=2).encoded == 40


@pytest.fixture
def quick_ranks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache folder of its own, and no long waits."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(ranks, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(ranks, "STALLED_SECONDS", 1.0)


def share(folder: Path, rows: list[Row], name: str, size: int, *, come: int) -> CacheCounts:
    """The stage's work as the first of `size` processes, of which `come` others do their part (threads, here)."""
    root, out, raw = folder / f"store-{name}", folder / name, folder / "raw"
    common = common_key_fields(PARAMS, VAE, 1)

    def resources(ranks: Ranks) -> Resources:
        return Resources(root=root, load=lambda: (MeanVae(), CPU), ranks=ranks)

    def other(index: int) -> None:
        place, pixels = Ranks(module="m", index=index, size=size, launch=name), PixelDigests(root, digests)
        NewPictures(rows, PARAMS, 16, raw, pixels).encode(common, resources(place))

    digests = {row["file_digest"] for row in rows}
    others = [threading.Thread(target=other, args=(index,)) for index in range(1, 1 + come)]
    for thread in others:
        thread.start()
    try:
        with Ranks(module="m", size=size, launch=name) as first:
            pixels = PixelDigests(root, digests)
            work = NewPictures(rows, PARAMS, 16, raw, pixels).encode(common, resources(first))
            samples = plan_samples(rows, PARAMS, common, 16, raw, pixels)
            first.planned = True  # what nobody has encoded by now the first one encodes alone
            index, counts = cache_latents(samples, PARAMS, raw, resources(first), out)
    finally:
        for thread in others:
            thread.join()
    write_table(out / "index.parquet", index, INDEX_COLUMNS)
    return counts.after(work)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.usefixtures("quick_ranks")
def test_several_processes_decode_each_picture_once(tmp_path: Path, decoded: list[str], size: int) -> None:
    rows = make_pictures(tmp_path / "raw", 20)
    shutil.copy(tmp_path / "raw/000.png", tmp_path / "raw/copy.png")
    rows.append({**rows[0], "path": "copy.png"})
    counts = share(tmp_path, rows, "together", size, come=size - 1)
    assert (counts.samples, counts.encoded) == (84, 80)
    assert sorted(decoded) == [f"{number:03}.png" for number in range(20)]
    stage(tmp_path, rows, "alone")
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")


@pytest.mark.usefixtures("quick_ranks")
def test_few_pictures_are_not_shared(tmp_path: Path, decoded: list[str]) -> None:
    rows = make_pictures(tmp_path / "raw", 5)
    assert share(tmp_path, rows, "a", 2, come=1).encoded == 20
    assert decoded == [f"{number:03}.png" for number in range(5)]


@pytest.mark.usefixtures("quick_ranks")
def test_what_another_process_does_not_bring_is_done_by_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = make_pictures(tmp_path / "raw", 20)
    counts = share(tmp_path, rows, "a", 3, come=1)
    assert (counts.samples, counts.encoded) == (80, 80)
    assert "new pictures: 1 other process has not done its share (nothing came for 1 s)" in capsys.readouterr().out


@pytest.mark.usefixtures("quick_ranks")
def test_the_first_names_the_damaged_ones_of_all_processes(tmp_path: Path) -> None:
    rows = make_pictures(tmp_path / "raw", 20)
    files = sorted((row["file_digest"], row["path"]) for row in rows)
    broken = [files[place][1] for place in (0, 1, 7)]  # the first of each share, and another
    for name in broken:
        (tmp_path / "raw" / name).write_bytes(b"no picture")
    with pytest.raises(DataError) as caught:
        share(tmp_path, rows, "a", 2, come=1)
    assert all(name in str(caught.value) for name in broken)
    assert len(PixelDigests(tmp_path / "store-a").known) == 17
