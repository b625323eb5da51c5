"""The encoding pipeline: the same bytes for any number of workers, errors that name the picture, bounded memory."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from eridiff.caching.fill import Resources
from eridiff.caching.latents.encode import cache_latents
from eridiff.caching.latents.plan import INDEX_COLUMNS, batch_by_bucket, common_key_fields, plan_samples
from eridiff.caching.latents.samples import Samples
from eridiff.core.errors import DataError
from eridiff.core.files import digest_file
from eridiff.formats.tables import read_table, write_table
from eridiff.models.precision import compile_fixed_shapes
from eridiff.params.latents import LatentParams
from eridiff.store.pixels import PixelDigests
from eridiff.store.reader import Cache
from eridiff.store.store import Store
from tests.support import processes
from tests.support.compiling import compiling_here

CPU = torch.device("cpu")
VAE = {"content": "c" * 64, "config": "d" * 64}


class MeanVae(nn.Module):
    """Latents are the means of 8 x 8 pixels: known without a model, and of other values for every crop."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.seconds = seconds

    def encode(self, pixels: Tensor) -> Any:
        time.sleep(self.seconds)
        mean = nn.functional.avg_pool2d(pixels, 8)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=mean.abs() + 1))


def make_pictures(folder: Path, count: int, size: tuple[int, int] = (96, 80)) -> list[dict[str, Any]]:
    """Pictures and their rows of buckets.parquet: two buckets."""
    folder.mkdir()
    rows = []
    for number in range(count):
        path = folder / f"{number:03d}.png"
        y, x = np.mgrid[0 : size[1], 0 : size[0]]
        pixels = np.stack([x * 2 + number * 7, y * 3 + number, (x * y) // (number + 3)], axis=-1) % 256
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        width, height = ((48, 48), (64, 32))[number % 2]
        row: dict[str, Any] = {"path": path.name, "file_digest": digest_file(path), "repeats": 1}
        row |= {"bucket_w": width, "bucket_h": height, "resize_w": 72, "resize_h": 60}
        rows.append(row | {"crop_left": 3, "crop_top": 2, "original_w": size[0], "original_h": size[1]})
    return rows


def plan(rows: list[dict[str, Any]], params: LatentParams, pictures: Path, store: Path) -> Samples:
    return plan_samples(rows, params, common_key_fields(params, VAE, 1), 16, pictures, PixelDigests(store))


def cache(
    folder: Path, rows: list[dict[str, Any]], params: LatentParams, name: str = "a", vae: Any = None, **given: Any
) -> list[dict[str, Any]]:
    samples = plan(rows, params, folder / "raw", folder / f"store-{name}")
    resources = Resources(root=folder / f"store-{name}", load=lambda: (vae or MeanVae(), CPU), **given)
    index, _ = cache_latents(samples, params, folder / "raw", resources, folder / name)
    return index


def test_workers_change_no_byte(tmp_path: Path) -> None:
    rows = make_pictures(tmp_path / "raw", 11)
    params = LatentParams(batch_size=3, flip=True)
    for workers in (0, 1, 2, 5):
        index = cache(tmp_path, rows, params, str(workers), workers=workers)
        write_table(tmp_path / str(workers) / "index.parquet", index, INDEX_COLUMNS)
    first = {path.name: path.read_bytes() for path in (tmp_path / "0").iterdir()}
    assert set(first) == {"shard-all.safetensors", "index.parquet"}
    for workers in ("1", "2", "5"):
        assert {path.name: path.read_bytes() for path in (tmp_path / workers).iterdir()} == first


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_changes_meanwhile_is_named_at_once(tmp_path: Path, workers: int) -> None:
    """Read by a worker while the encoder runs: its error ends the stage, what was encoded stays."""
    rows, params = make_pictures(tmp_path / "raw", 20), LatentParams(batch_size=2)
    samples = plan(rows, params, tmp_path / "raw", tmp_path / "store-a")
    wrong = batch_by_bucket(samples, 2)[3][1].path  # of the fourth batch
    (tmp_path / "raw" / wrong).write_bytes(b"no picture")
    resources = Resources(root=tmp_path / "store-a", load=lambda: (MeanVae(0.01), CPU), workers=workers)
    with pytest.raises(DataError, match=rf"{wrong}: changed since the captions stage ran"):
        cache_latents(samples, params, tmp_path / "raw", resources, tmp_path / "a")
    done = set(Store(tmp_path / "store-a", "latents").catalogue)
    assert len(done) <= 6
    assert done <= {sample.key for sample in samples}
    assert not (tmp_path / "a").exists()


def test_memory_is_bounded_by_the_batch(tmp_path: Path) -> None:
    """60 pictures through a slow encoder: no more are decoded than one batch and the workers hold."""
    rows, params = make_pictures(tmp_path / "raw", 60), LatentParams(batch_size=2)
    samples = plan(rows, params, tmp_path / "raw", tmp_path / "store-a")
    held: list[int] = []
    read, encoded = [0], [0]

    class Counting(MeanVae):
        def encode(self, pixels: Tensor) -> Any:
            encoded[0] += 2
            held.append(read[0] - encoded[0])
            return super().encode(pixels)

    from eridiff.caching.latents import encode as latentcache

    original = latentcache.load_pixels

    def counting(path: Path, digest: str | None = None) -> Any:
        read[0] += 1
        return original(path, digest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latentcache, "load_pixels", counting)
        resources = Resources(root=tmp_path / "store-a", load=lambda: (Counting(0.005), CPU), workers=2)
        cache_latents(samples, params, tmp_path / "raw", resources, tmp_path / "a")
    assert (read[0], encoded[0]) == (60, 60)
    assert max(held) <= 2 + 2 + 1


def test_the_index_carries_sizes(tmp_path: Path) -> None:
    """Original size, bucket, and the crop as seen: a mirrored one is seen from the other side."""
    rows = make_pictures(tmp_path / "raw", 1)
    params = LatentParams(batch_size=1, flip=True, crops=3, seed=5)
    index = cache(tmp_path, rows, params)
    write_table(tmp_path / "index.parquet", index, INDEX_COLUMNS)
    assert read_table(tmp_path / "index.parquet")[0] == index
    assert [(row["variant"], row["flip"]) for row in index] == [(v, f) for v in range(3) for f in (0, 1)]
    assert {(row["original_w"], row["original_h"], row["bucket_w"], row["bucket_h"]) for row in index} == {
        (96, 80, 48, 48)
    }
    assert (index[0]["crop_left"], index[0]["crop_top"]) == (3, 2)
    with Image.open(tmp_path / "raw" / "000.png") as image:
        resized = np.asarray(image.resize((72, 60), Image.Resampling.LANCZOS))
    latents = Cache(tmp_path / "a")
    for row in index:
        seen = resized[:, ::-1] if row["flip"] else resized
        left, top = row["crop_left"], row["crop_top"]
        crop = torch.from_numpy(seen[top : top + 48, left : left + 48].copy()).permute(2, 0, 1)[None].float()
        expected = nn.functional.avg_pool2d(crop / 127.5 - 1, 8)[0]
        assert torch.equal(latents.tensors(row["key"])["mean"], expected), row


def test_an_added_picture_changes_no_other_crop(tmp_path: Path) -> None:
    rows = make_pictures(tmp_path / "raw", 6)
    params = LatentParams(batch_size=2, crops=4, crop_zoom=1.3)
    fewer = {sample.key for sample in plan(rows[:5], params, tmp_path / "raw", tmp_path / "store")}
    more = {sample.key for sample in plan(rows, params, tmp_path / "raw", tmp_path / "store")}
    assert len(fewer) == 20
    assert fewer < more
    one = LatentParams(batch_size=2)
    assert {sample.key for sample in plan(rows[:5], one, tmp_path / "raw", tmp_path / "store")} < fewer


@pytest.mark.slow
def test_one_graph_for_each_shape_whatever_the_order() -> None:
    """Compiled for fixed shapes: as many graphs as shapes, none dynamic, also beyond torch's own limit of eight."""
    graphs: list[tuple[int, ...]] = []

    def backend(graph: Any, inputs: list[Any]) -> Any:
        shape = next(i.shape for i in inputs if isinstance(i, Tensor) and i.dim() == 4 and len(i) == 1)
        assert all(isinstance(side, int) for side in shape)
        graphs.append(tuple(shape))
        return graph

    shapes = [(1, 3, 8 * n, 16) for n in range(1, 13)]
    torch._dynamo.reset()

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3, padding=1)

        def forward(self, pixels: Tensor) -> Tensor:
            answer: Tensor = self.conv(pixels)
            return answer

    layer = Layer().eval()
    limits = ("recompile_limit", "accumulated_recompile_limit", "fail_on_recompile_limit_hit")
    # Not monkeypatch: what it takes back, torch's config no longer has.
    kept = torch._dynamo.config.patch({name: getattr(torch._dynamo.config, name) for name in limits})
    with kept, torch.inference_mode():
        compile_fixed_shapes([layer], backend=backend)  # type: ignore[arg-type]
        compile_fixed_shapes([layer], backend=backend)  # type: ignore[arg-type]  # once is enough
        for shape in [*shapes, *shapes[::-1]]:
            pixels = torch.rand(shape)
            assert torch.equal(layer(pixels), layer.conv(pixels))
    torch._dynamo.reset()
    assert graphs == shapes


SLOW = """
import signal
import sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it is ignored
from eridiff.core.errors import run_main
from tests.caching.latents.test_encode import MeanVae, cache, LatentParams, make_pictures
folder = Path(sys.argv[1])
rows = make_pictures(folder / "raw", 40)
print("begun", flush=True)
run_main(lambda: cache(folder, rows, LatentParams(batch_size=2), vae=MeanVae(0.1), workers=int(sys.argv[2])))
"""


@pytest.mark.e2e
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_stage_keeps_what_it_encoded(tmp_path: Path, number: int, workers: int) -> None:
    """It ends within seconds, with a code that is not 0; a second run encodes the rest, the bytes are equal."""
    process = processes.start(SLOW, tmp_path, workers)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    entries = tmp_path / "store-a" / "latents" / "entries"
    while len(list(entries.glob("*/*.safetensors"))) < 6:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    start = time.monotonic()
    process.communicate(timeout=20)
    assert time.monotonic() - start < 5
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[number]
    kept = len(Store(tmp_path / "store-a", "latents").catalogue)
    assert 6 <= kept < 40
    rows = [dict(row) for row in make_pictures(tmp_path / "again", 40)]
    (tmp_path / "again").rename(tmp_path / "old")
    params, vae = LatentParams(batch_size=2), MeanVae()
    cache(tmp_path, rows, params, vae=vae)
    cache(tmp_path, rows, params, "fresh")
    name = "shard-all.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()


def least_vae() -> Any:
    """A VAE of diffusers' with one block: each kernel takes seconds, and blocks repeat layers."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=(4,), latent_channels=2, norm_num_groups=2).eval()


@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own compiler
def test_a_compiled_vae_gives_the_same_numbers_but_for_rounding(tmp_path: Path) -> None:
    """Two buckets through the real compiler, in both orders: bit for bit the same, and near the plain ones."""
    rows = make_pictures(tmp_path / "raw", 4)
    plain, compiled = LatentParams(batch_size=2), LatentParams(batch_size=2, compile=True)
    found = {}
    with compiling_here():
        for name, params in (("plain", plain), ("compiled", compiled)):
            index = cache(tmp_path, rows, params, name, least_vae())
            found[name] = {row["path"]: Cache(tmp_path / name).tensors(row["key"])["mean"] for row in index}
        vae = least_vae()
        torch._dynamo.reset()
        for part in (rows[1::2], rows[0::2]):  # the other bucket first
            cache(tmp_path, part, compiled, "other", vae)
        index = cache(tmp_path, rows, compiled, "other", vae)
    for row in index:
        path = row["path"]
        assert torch.equal(Cache(tmp_path / "other").tensors(row["key"])["mean"], found["compiled"][path])
        torch.testing.assert_close(found["compiled"][path], found["plain"][path], rtol=1e-3, atol=1e-3)
        assert not torch.equal(found["compiled"][path], found["plain"][path])  # else nothing was compiled


@pytest.mark.e2e
def test_the_benchmark_runs_on_small_models(tmp_path: Path) -> None:
    """Every row has figures, none an error."""
    environment = {**os.environ, "TORCH_COMPILE_DISABLE": "1"}  # which takes minutes, and has its own tests
    command = [sys.executable, "-m", "benchmarks.encode", "--tiny", "--out", str(tmp_path)]
    subprocess.run(command, cwd=processes.ROOT, env=environment, check=True, capture_output=True, timeout=300)
    rows = json.loads((tmp_path / "encode.json").read_text("utf-8"))["rows"]
    assert len(rows) == 13
    for row in rows:
        assert "note" not in row, row
        assert (
            " ms" in str(row["device"])
            or "by batch" in row["name"]
            or all(row[name] > 0 for name in ("device", "pipeline", "end to end"))
        ), row
    assert (tmp_path / "encode.md").read_text("utf-8").count("| VAE ") == 9


@pytest.mark.e2e
def test_the_benchmark_of_several_processes_runs_on_small_models(tmp_path: Path) -> None:
    environment = {**os.environ, "TORCH_COMPILE_DISABLE": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "benchmarks.encode_ranks"]
    command += ["--tiny", "--folder", str(tmp_path / "work"), "--out", str(tmp_path)]
    subprocess.run(command, cwd=processes.ROOT, env=environment, check=True, capture_output=True, timeout=300)
    rows = json.loads((tmp_path / "encode_ranks.json").read_text("utf-8"))["rows"]
    assert [row["name"][:3] for row in rows] == ["VAE", "T5-", "VAE"]
    for row in rows:
        assert "note" not in row and 0 < row["share"] < 1, row
