"""Whatever was added, removed, renamed, edited, reordered, lost or interrupted on the way: equal sets, equal bytes."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from eridiff.caching.fill import Resources
from eridiff.caching.latents import encode as latentcache
from eridiff.caching.latents.encode import cache_latents
from eridiff.caching.latents.plan import INDEX_COLUMNS, common_key_fields, plan_samples
from eridiff.caching.latents.samples import Sample
from eridiff.core.files import digest_json
from eridiff.formats.tables import Row, write_table
from eridiff.params.latents import LatentParams
from eridiff.store import sharding as placement
from eridiff.store import store
from eridiff.store.pixels import PixelDigests
from tests.support.entries import contents

CPU = torch.device("cpu")
PARAMS = LatentParams(batch_size=3)
Pictures = dict[str, int]  # name -> what is in it


class Interrupted(BaseException):
    """In place of Ctrl-C."""


class FakeVae(nn.Module):
    """Numbers that depend on the picture alone; stops at a call if told to."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.left = stop_at

    def encode(self, pixels: Tensor) -> Any:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Interrupted
        mean = pixels[:, :, ::8, ::8]
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=mean.abs()))


def fill_picture(reader: Any, buffer: Tensor, place: int, sample: Sample) -> None:
    """In place of decoding: the bytes follow from the pixel digest."""
    buffer[place] = int(sample.pixel_digest[:2], 16)


def row_of(path: str, content: int) -> Row:
    side = 16 if content % 3 else 32  # two buckets
    sizes = {"bucket_w": side, "bucket_h": 16, "resize_w": side, "resize_h": 16, "crop_left": 0, "crop_top": 0}
    return {**sizes, "path": path, "file_digest": digest_json(content), "original_w": side, "original_h": 16}


class Project:
    """A folder whose stage `latents` runs over made-up pictures."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.out, self.root = folder / "out", root

    def run(self, pictures: Pictures, *, workers: int = 0, backwards: bool = False, vae: FakeVae | None = None) -> None:
        """The stage, as DVC starts it: the last output is in DVC's cache, its folder empty."""
        cached = self.out.with_name("cached")
        if self.out.exists():
            shutil.rmtree(cached, ignore_errors=True)
            self.out.rename(cached)
        rows = [row_of(path, content) for path, content in pictures.items()]
        pixels = PixelDigests(self.root)
        pixels.learn({row["file_digest"]: row["file_digest"] for row in rows})
        common = common_key_fields(PARAMS, {"content": "c", "config": "d"}, 1)
        samples = plan_samples(rows[::-1] if backwards else rows, PARAMS, common, 8, self.out, pixels)
        resources = Resources(
            root=self.root,
            load=lambda: (vae or FakeVae(), CPU),
            earlier=lambda: sorted(cached.glob("shard-*.safetensors")),
            workers=workers,
        )
        index, _ = cache_latents(samples, PARAMS, self.out, resources, self.out)
        write_table(self.out / "index.parquet", index, INDEX_COLUMNS)


NAMES = st.sampled_from([f"{letter}.png" for letter in "abcdefghij"])
CONTENTS = st.integers(0, 30)
STEPS = st.one_of(
    st.tuples(st.just("put"), NAMES, CONTENTS),  # added, or edited
    st.tuples(st.just("remove"), NAMES),
    st.tuples(st.just("rename"), NAMES, NAMES),
    st.tuples(st.just("run"), st.integers(0, 2), st.booleans()),  # reading threads, order
    st.tuples(st.just("interrupt in encoder"), st.integers(0, 3)),
    st.tuples(st.just("interrupt in writing"), st.integers(0, 6)),
    st.tuples(st.just("lose store")),
    st.tuples(st.just("other project"), st.dictionaries(NAMES, CONTENTS, max_size=6)),
)


def take_step(step: tuple[Any, ...], pictures: Pictures, project: Project, patch: pytest.MonkeyPatch) -> None:
    """One step of a history."""
    kind, *values = step
    if kind == "put":
        pictures[values[0]] = values[1]
    elif kind == "remove":
        pictures.pop(values[0], None)
    elif kind == "rename" and values[0] in pictures:
        pictures[values[1]] = pictures.pop(values[0])
    elif kind == "run":
        project.run(pictures, workers=values[0], backwards=values[1])
    elif kind == "lose store":
        shutil.rmtree(project.root, ignore_errors=True)
    elif kind == "other project":
        Project(project.root.parent / "other", project.root).run(values[0])
    elif kind == "interrupt in encoder":
        stopped(lambda: project.run(pictures, vae=FakeVae(stop_at=values[0])))
    elif kind == "interrupt in writing":
        with patch.context() as patched:
            patched.setattr(store, "write_tensors", stopping_at(values[0]))
            stopped(lambda: project.run(pictures))


def stopped(work: Callable[[], None]) -> None:
    """Run until it is interrupted, or to its end where less was to be done."""
    with contextlib.suppress(Interrupted):
        work()


def stopping_at(count: int) -> Callable[..., None]:
    """write_tensors that stops half-way through its n-th file."""
    write, left = store.write_tensors, [count]

    def wrapped(path: Path, *arguments: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Interrupted
        write(path, *arguments)

    return wrapped


@given(steps=st.lists(STEPS, min_size=3, max_size=14))
@settings(max_examples=30, deadline=None)
@pytest.mark.slow
def test_bytes_follow_from_the_set_alone(steps: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("history")
    pictures: Pictures = {"a.png": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "SHARD_BYTES", 300)  # several shards, of several depths
        patch.setattr(latentcache.PictureReader, "fill", fill_picture)
        project = Project(folder, folder / "store")
        for step in steps:
            take_step(step, pictures, project, patch)
        project.run(pictures)
        alone = Project(folder / "alone", folder / "alone/store")
        alone.run(dict(sorted(pictures.items())))
        assert contents(project.out) == contents(alone.out)
