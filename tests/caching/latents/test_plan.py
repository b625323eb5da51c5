"""The VAE cache: equal to the VAE itself, each sample once, keyed by everything that it depends on."""

import pickle
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eridiff.caching.fill import Resources
from eridiff.caching.latents.encode import BatchEncoder, PictureReader, cache_latents, encode_batches
from eridiff.caching.latents.plan import common_key_fields, learn_pixels, plan_samples
from eridiff.caching.latents.samples import Samples
from eridiff.caching.latents.vae import encode, pixels_from_bytes
from eridiff.caching.pipeline import entry_writer
from eridiff.core.errors import ConfigError, DataError
from eridiff.core.files import digest_file
from eridiff.family import load_family
from eridiff.formats.safetensors import TensorFile
from eridiff.models.load import load_vae
from eridiff.params.latents import IN_NO_KEY, LatentParams
from eridiff.store.pixels import PixelDigests
from eridiff.store.store import Store
from tests.support import processes
from tests.support.bases import FAMILIES, source

CPU, FAMILY = torch.device("cpu"), FAMILIES[0]
VAE = {"content": "c" * 64, "config": "d" * 64}


@cache
def vae(dtype: torch.dtype = torch.float32) -> Any:
    return load_vae(load_family(FAMILY), source(FAMILY), dtype)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(7):
        draw(folder / f"{number}.png", number)
    return folder


def draw(path: Path, number: int, size: tuple[int, int] = (90, 70)) -> None:
    """A picture with no symmetry."""
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    pixels = np.stack([columns * 2 + number * 9, rows * 3, (columns * rows) // (number + 3)], axis=-1) % 256
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def row(pictures: Path, number: int, **changes: Any) -> dict[str, Any]:
    """A row of buckets.parquet: the first four pictures are square, the others wide."""
    path = pictures / f"{number}.png"
    bucket = (48, 48) if number < 4 else (64, 32)
    return {
        "path": path.name,
        "file_digest": digest_file(path) if path.exists() else "0" * 64,
        **dict(zip(("bucket_w", "bucket_h"), bucket, strict=True)),
        **dict(zip(("resize_w", "resize_h"), (72, 56), strict=True)),
        **dict(zip(("original_w", "original_h"), (90, 70), strict=True)),
        "crop_left": number,
        "crop_top": 2,
        **changes,
    }


def plan(pictures: Path, params: LatentParams, rows: Iterable[dict[str, Any]] | None = None, **changes: Any) -> Samples:
    pixels = PixelDigests(pictures.parent / "store")
    given = {"vae": VAE, "version": 1, **changes}
    side = given.pop("side_multiple", 16)
    rows = [row(pictures, number) for number in range(7)] if rows is None else rows
    return plan_samples(rows, params, common_key_fields(params, **given), side, pictures, pixels)


def run(
    pictures: Path,
    params: LatentParams,
    samples: Samples,
    out: str = "latents",
    model: Any = None,
    store: str = "store",
) -> tuple[list[dict[str, Any]], int]:
    def load() -> Any:
        return model or vae(), CPU

    folder = pictures.parent
    index, counts = cache_latents(samples, params, pictures, Resources(root=folder / store, load=load), folder / out)
    assert counts.samples == len(samples)
    return index, counts.encoded


def read(folder: Path, index: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, torch.Tensor]]:
    """(path, flip) -> tensors, from the out's shards."""
    found = {}
    for line in index:
        file = TensorFile(folder / line["shard"])
        names = [name for name in file.names if name.startswith(line["key"])]
        found[line["path"], line["flip"]] = {name.split(".")[1]: file.raw(name).torch() for name in names}
    return found


def pixels_of(pictures: Path, number: int, flip: bool = False) -> torch.Tensor:
    """The crop of a row, resized by Pillow itself, [1, 3, H, W] in [-1, 1]."""
    width, height = (48, 48) if number < 4 else (64, 32)
    with Image.open(pictures / f"{number}.png") as image:
        resized = image.resize((72, 56), Image.Resampling.LANCZOS)
    crop = np.asarray(resized.crop((number, 2, number + width, 2 + height)))
    crop = crop[:, ::-1] if flip else crop
    return torch.from_numpy(crop.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def test_latents_equal_the_vae(pictures: Path) -> None:
    """Mean and std of every picture equal vae.encode's own posterior, mirrored or not, in every batch."""
    params = LatentParams(batch_size=3, flip=True)
    index, encoded = run(pictures, params, plan(pictures, params))
    assert encoded == len(index) == 14
    assert [(line["path"], line["flip"]) for line in index] == [(f"{n}.png", flip) for n in range(7) for flip in (0, 1)]
    found = read(pictures.parent / "latents", index)
    with torch.inference_mode():
        for (path, flip), tensors in found.items():
            pixels = pixels_of(pictures, int(path[0]), bool(flip)).repeat(3, 1, 1, 1)  # the same batch shape
            posterior = vae().encode(pixels).latent_dist
            assert set(tensors) == {"mean", "std"}
            assert torch.equal(tensors["mean"], posterior.mean[0])
            assert torch.equal(tensors["std"], posterior.std[0])
    assert not torch.equal(found["0.png", 0]["mean"], found["0.png", 1]["mean"])


def test_a_padded_batch_gives_the_same_bits(pictures: Path) -> None:
    """Sample by sample into a fresh store, each in a padded batch; and all at once: the same shards."""
    params = LatentParams(batch_size=4)
    samples = plan(pictures, params)
    run(pictures, params, samples)
    for sample in samples:
        store = Store(pictures.parent / "alone", "latents")
        with entry_writer(CPU, params.batch_size) as writer:
            encoder = BatchEncoder(store, params, vae(), CPU, writer)
            encode_batches([[sample]], encoder, PictureReader(params, pictures))
    _, encoded = run(pictures, params, samples, out="again", store="alone")
    assert encoded == 0
    assert shards(pictures.parent / "latents") == shards(pictures.parent / "again")
    bytes_BHWC = encoder.allocate((48, 48))
    assert bytes_BHWC.shape == (4, 48, 48, 3)
    assert pixels_from_bytes(bytes_BHWC).is_contiguous()  # channels_last is a param


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


AGAIN = """
import pickle, sys
from pathlib import Path
from eridiff.caching.fill import Resources
from eridiff.caching.latents.encode import cache_latents
from eridiff.caching.latents.plan import common_key_fields, plan_samples
from eridiff.params.latents import LatentParams
from eridiff.store.pixels import PixelDigests
folder = Path(sys.argv[1])
rows, vae = pickle.loads((folder / "rows.pickle").read_bytes())
params = LatentParams(batch_size=4)
common = common_key_fields(params, vae, 1)
samples = plan_samples(rows, params, common, 16, folder / "raw", PixelDigests(folder / "store"))
def load():
    raise AssertionError("nothing has to be encoded")
resources = Resources(root=folder / "store", load=load, earlier=load)
index, counts = cache_latents(samples, params, folder / "raw", resources, folder / "again")
print(counts.line().rsplit(",", 1)[0])
print(sorted({"torch", "diffusers", "transformers", "peft"} & set(sys.modules)))
"""


def test_a_second_run_encodes_nothing_and_loads_nothing(pictures: Path) -> None:
    """Not even torch; nor does it read a picture, so they may be gone."""
    params = LatentParams(batch_size=4)
    run(pictures, params, plan(pictures, params))
    rows = [row(pictures, number) for number in range(7)]
    (pictures.parent / "rows.pickle").write_bytes(pickle.dumps((rows, VAE)))
    for path in pictures.iterdir():
        path.unlink()
    out = processes.run(AGAIN, pictures.parent)
    assert out == "latents: 7 samples, 0 encoded, 7 reused, 0 shards written\n[]\n"
    assert shards(pictures.parent / "latents") == shards(pictures.parent / "again")


def test_only_what_changed_is_encoded(pictures: Path) -> None:
    params = LatentParams()
    run(pictures, params, plan(pictures, params))
    draw(pictures / "3.png", 99)
    (pictures / "6.png").rename(pictures / "x.png")
    rows = [*(row(pictures, number) for number in range(5)), {**row(pictures, 6), "path": "x.png"}]
    rows[5]["file_digest"] = digest_file(pictures / "x.png")
    rows[1]["crop_top"] = 3
    _, encoded = run(pictures, params, plan(pictures, params, rows))
    assert encoded == 2


def test_equal_pictures_are_encoded_once(pictures: Path) -> None:
    (pictures / "copy.png").write_bytes((pictures / "0.png").read_bytes())
    rows = [row(pictures, 0), {**row(pictures, 0), "path": "copy.png"}]
    index, encoded = run(pictures, LatentParams(), plan(pictures, LatentParams(), rows))
    assert (encoded, len({line["key"] for line in index})) == (1, 1)


def test_every_part_counts_in_the_key(pictures: Path) -> None:
    """Change anything that the value depends on, and the key is another; change a name or the order, and it is not."""
    rows = [row(pictures, 0)]

    def key(params: dict[str, Any] | None = None, changes: dict[str, Any] | None = None, **given: Any) -> str:
        (sample,) = plan(pictures, LatentParams(**(params or {})), [{**rows[0], **(changes or {})}], **given)
        return sample.key

    same = key()
    no_part = ("path", "file_digest", "original_w", "original_h")
    (pictures / "other name.png").write_bytes((pictures / "0.png").read_bytes())
    assert key(changes={"path": "other name.png"}) == same
    variants = [key(changes={name: rows[0][name] + 16}) for name in rows[0] if name not in no_part]
    variants += [key(changes={"path": "1.png", "file_digest": digest_file(pictures / "1.png")})]
    variants += [key(vae={**VAE, part: "e" * 64}) for part in VAE]
    variants += [key(version=2)]
    others: dict[str, Any] = {"dtype": "bf16", "batch_size": 5, "keep": "mean", "alpha": "black", "resample": "area"}
    others |= {"tf32": True, "channels_last": True, "compile": True, "tile": 64}
    assert set(others) == set(LatentParams.model_fields) - IN_NO_KEY
    variants += [key({name: value}) for name, value in others.items()]
    assert len({same, *variants}) == 1 + len(variants)
    mirrored = plan(pictures, LatentParams(flip=True), rows)
    assert [sample.flip for sample in mirrored] == [False, True]
    assert mirrored[0].key == same != mirrored[1].key
    straight = [sample.key for sample in plan(pictures, LatentParams())]
    backwards = [row(pictures, number) for number in reversed(range(7))]
    assert [sample.key for sample in plan(pictures, LatentParams(), backwards)] == straight[::-1]


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_number_formats_are_kept(pictures: Path, name: Any, dtype: torch.dtype) -> None:
    params = LatentParams(dtype=name)
    index, _ = run(pictures, params, plan(pictures, params, [row(pictures, 0), row(pictures, 1)]), model=vae(dtype))
    for path, tensors in read(pictures.parent / "latents", index).items():
        exact = vae().encode(pixels_of(pictures, int(path[0][0]))).latent_dist.mean[0]
        assert tensors["mean"].dtype == tensors["std"].dtype == dtype
        assert torch.allclose(tensors["mean"].float(), exact, atol=0.3)
        assert not torch.equal(tensors["mean"].float(), exact)


def test_the_mean_alone(pictures: Path) -> None:
    params = LatentParams(keep="mean")
    index, _ = run(pictures, params, plan(pictures, params))
    assert {frozenset(tensors) for tensors in read(pictures.parent / "latents", index).values()} == {
        frozenset({"mean"})
    }


def test_numbers_that_are_not_finite_are_refused(pictures: Path) -> None:
    class Overflowing(torch.nn.Module):
        def encode(self, pixels: torch.Tensor) -> Any:
            encoded = vae().encode(pixels)
            encoded.latent_dist.mean[-1] *= float("inf")
            return encoded

    params = LatentParams(batch_size=2)
    with pytest.raises(
        DataError,
        match=r"\d\.png: the VAE gave numbers .*All weights are finite\. latents\.dtype is fp32",
    ):
        run(pictures, params, plan(pictures, params, [row(pictures, 0), row(pictures, 1)]), model=Overflowing())
    assert len(Store(pictures.parent / "store", "latents").catalogue) == 1  # the other sample of the batch is kept


def test_an_autoencoder_without_a_posterior_has_std_zero() -> None:
    from diffusers import AutoencoderTiny

    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_decoder_blocks=(1, 1, 1, 1),
    ).eval()
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1
    found = encode(tiny, pixels, LatentParams())
    assert torch.equal(found["mean"], tiny.encode(pixels).latents)
    assert torch.equal(found["std"], torch.zeros(2, 4, 4, 6))


def test_tiles_differ_little() -> None:
    """A texture of 512 px in tiles of 256: 5 % of the mean's spread on average (a random VAE has no less)."""
    waves = torch.arange(512) * 2 * torch.pi / 32
    pixels = torch.stack(
        [waves.sin()[:, None] + 0 * waves, waves.cos() + 0 * waves[:, None], (waves[:, None] + waves).sin()]
    )[None]
    whole, tiled = LatentParams(), LatentParams(tile=256)
    expected, found = (encode(vae(), pixels, params)["mean"] for params in (whole, tiled))
    assert found.shape == expected.shape == (1, 16, 64, 64)
    difference = (found - expected).abs().mean() / expected.std()
    assert 0 < difference < 0.05
    small = pixels[..., :256, :256]
    assert torch.equal(encode(vae(), small, tiled)["mean"], encode(vae(), small, whole)["mean"])


def test_all_damaged_pictures_are_named_at_once(pictures: Path) -> None:
    rows = [row(pictures, number) for number in range(3)]
    for one in rows[1:]:
        path = pictures / one["path"]
        path.write_bytes(path.read_bytes()[:200])
        one["file_digest"] = digest_file(path)
    pixels = PixelDigests(pictures.parent / "store")
    with pytest.raises(DataError) as caught:
        learn_pixels([(one["path"], one["file_digest"]) for one in rows], pictures, pixels)
    first, *named = str(caught.value).splitlines()
    assert first == "pictures that cannot be used:"
    assert [line.split(": damaged picture (")[0].strip() for line in named] == [
        str(pictures / one["path"]) for one in rows[1:]
    ]
    assert set(pixels.known) == {rows[0]["file_digest"]}  # what could be read is not read again


def test_what_cannot_be_encoded_is_named(pictures: Path) -> None:
    with pytest.raises(ConfigError, match=r"buckets\.step gives 48 x 40: sides must be multiples of 16"):
        plan(pictures, LatentParams(), [row(pictures, 0, bucket_h=40)])
    with pytest.raises(DataError, match=r"0\.png"):
        plan(pictures, LatentParams(), [row(pictures, 0, file_digest="1" * 64)])
    with pytest.raises(DataError, match=r"9\.png"):
        plan(pictures, LatentParams(), [row(pictures, 9)])


def test_bytes_become_the_same_pixels_by_table_and_by_division() -> None:
    """A device looks the values up: the table has the bits that a CPU computes."""
    values = torch.arange(256, dtype=torch.uint8)
    pixels = pixels_from_bytes(values.reshape(1, 16, 16, 1).expand(1, 16, 16, 3).contiguous())
    assert pixels.shape == (1, 3, 16, 16)
    assert torch.equal(
        pixels[0, 1].flatten(), torch.from_numpy(np.arange(256, dtype=np.float32) / np.float32(127.5) - 1)
    )
    table = torch.arange(256, dtype=torch.float32) / 127.5 - 1
    assert torch.equal(pixels[0, 2].flatten(), table[values.int()])
    assert (pixels.min(), pixels.max()) == (-1, 1)


def test_samples_by_their_keys(pictures: Path) -> None:
    samples = plan(pictures, LatentParams())
    chosen = [samples[5], samples[2]]
    assert samples.having({sample.key for sample in chosen}) == chosen[::-1]
    assert samples.having(set()) == []
    assert samples.having({"0" * 64}) == []
