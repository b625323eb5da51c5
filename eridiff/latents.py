"""The VAE cache: every picture's raw posterior (mean, std), encoded once for everything that it depends on."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from eridiff.caching import CacheCounts, fill
from eridiff.config import Section
from eridiff.errors import ConfigError, DataError
from eridiff.images import crop_picture, load_pixels, pixel_digest
from eridiff.progress import track
from eridiff.store import Parts, PixelDigests, Store, entry_key
from eridiff.tables import Row

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

INDEX_COLUMNS = dict.fromkeys(("path", "file_digest", "pixel_digest", "key", "shard"), "str") | {"flip": "int"}
Load = Callable[[], "tuple[nn.Module, torch.device]"]


class LatentParams(Section):
    """How pictures become latents. Every key here is part of a latent's key in the store."""

    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the VAE. In fp16 the VAEs of some bases overflow; that is an error, not a black picture."""
    batch_size: Annotated[int, Field(ge=1)] = 4
    """Pictures encoded together. Fixed, so that free memory never decides a bit; the last batch is padded."""
    keep: Literal["mean_std", "mean"] = "mean_std"
    """Keep the posterior's mean and std, drawn afresh each step; or the mean alone, half the size."""
    flip: bool = False
    """Also cache every picture mirrored; training draws one of the two."""
    alpha: Literal["white", "black", "grey"] = "white"
    """What stands behind transparent pixels."""
    resample: Literal["lanczos", "bicubic", "area"] = "lanczos"
    """Filter by which pictures are made smaller."""
    tf32: bool = False
    """Let fp32 products on CUDA use TF32: faster, rounded."""
    channels_last: bool = False
    """Memory format of the VAE on CUDA: faster with bf16, rounded."""
    compile: bool = False
    """Compile the VAE with torch.compile: faster for many pictures, rounded."""
    tile: Annotated[int, Field(ge=64)] | None = None
    """Encode pictures larger than this many pixels a side in overlapping tiles: less memory, visible in numbers."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One crop to encode."""

    path: str
    flip: bool
    file_digest: str
    pixel_digest: str
    bucket: tuple[int, int]
    resize: tuple[int, int]
    crop: tuple[int, int]
    key: str
    parts: Parts


def plan_samples(
    rows: Iterable[Row],
    params: LatentParams,
    vae: Mapping[str, str],
    version: int,
    side_multiple: int,
    pictures: Path,
    pixels: PixelDigests,
    generation: str = "",
) -> list[Sample]:
    """Rows of buckets.parquet as samples with their keys; decodes only pictures that the store never saw.

    vae: digests of the VAE's tensors and config. version: the family's VAE_ENCODE.
    generation: of the VAE's numbers (eridiff/probe.py); the first is in no key.
    Raises: ConfigError where a bucket's sides do not fit the family,
    DataError where a picture is gone, differs from its digest, or cannot be decoded.
    """
    rows = list(rows)
    odd = next((row for row in rows if row["bucket_w"] % side_multiple or row["bucket_h"] % side_multiple), None)
    if odd is not None:
        size = f"{odd['bucket_w']} x {odd['bucket_h']}"
        raise ConfigError(f"params.yaml: buckets.step gives {size}: sides must be multiples of {side_multiple}.")
    learn_pixels([(row["path"], row["file_digest"]) for row in rows], pictures, pixels)
    common: Parts = {"vae": dict(vae), "params": params.model_dump(exclude={"flip"}), "version": version}
    common |= {"probe": generation} if generation else {}
    flips = (False, True) if params.flip else (False,)
    return [_sample(row, flip, pixels.known[row["file_digest"]], common) for row in rows for flip in flips]


def _sample(row: Row, flip: bool, pixel_digest: str, common: Parts) -> Sample:
    """One row of buckets.parquet, mirrored or not, with its key: what is common to all, the pixels, the crop."""
    bucket, resize = (row["bucket_w"], row["bucket_h"]), (row["resize_w"], row["resize_h"])
    crop = (row["crop_left"], row["crop_top"])
    geometry = {"bucket": bucket, "resize": resize, "at": crop, "flip": flip}
    parts = {**common, "pixels": pixel_digest, "crop": geometry}
    return Sample(
        path=row["path"],
        flip=flip,
        file_digest=row["file_digest"],
        pixel_digest=pixel_digest,
        bucket=bucket,
        resize=resize,
        crop=crop,
        key=entry_key(parts),
        parts=parts,
    )


def learn_pixels(files: list[tuple[str, str]], pictures: Path, pixels: PixelDigests) -> None:
    """Decode the pictures whose pixel digest is not known yet, and remember it."""
    unknown = [(path, digest) for path, digest in files if digest not in pixels.known]
    learned = {}
    for path, digest in track(unknown, what="reading pictures", total=len(unknown), unit="pictures"):
        learned[digest] = pixel_digest(load_pixels(pictures / path, digest))
    pixels.learn(learned)


def encode_missing(
    samples: list[Sample],
    store: Store,
    params: LatentParams,
    vae: "nn.Module",
    device: "torch.device",
    pictures: Path,
) -> int:
    """Encode every sample that the store lacks, batch by batch, each put at once; returns how many."""
    missing = set(store.missing(sample.key for sample in samples))
    todo = {sample.key: sample for sample in samples if sample.key in missing}
    batches = list(batch_by_bucket(list(todo.values()), params.batch_size))
    vae = prepare_vae(vae, params, device)
    for batch in track(batches, what="latents", total=len(batches), unit="batches"):
        pixels_BCHW = load_batch(batch, params, pictures)
        posterior = encode(vae, pixels_BCHW.to(device), params)
        for index, sample in enumerate(batch):
            tensors = {name: tensor[index] for name, tensor in posterior.items()}
            _put(store, sample, tensors)
    return len(todo)


def batch_by_bucket(samples: list[Sample], batch_size: int) -> Iterator[list[Sample]]:
    """Samples of one bucket at a time, in the order of their keys, so that history decides nothing."""
    by_bucket: dict[tuple[int, int], list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.key):
        by_bucket.setdefault(sample.bucket, []).append(sample)
    for _, members in sorted(by_bucket.items()):
        for start in range(0, len(members), batch_size):
            yield members[start : start + batch_size]


def load_batch(batch: list[Sample], params: LatentParams, pictures: Path) -> "Tensor":
    """Pixels [batch_size, 3, H, W] in [-1, 1], fp32; a short batch is padded with its last picture."""
    import numpy as np
    import torch

    crops = []
    for sample in batch:
        image = load_pixels(pictures / sample.path, sample.file_digest)
        crops.append(
            crop_picture(
                image,
                alpha=params.alpha,
                resample=params.resample,
                resize=sample.resize,
                crop=sample.crop,
                size=sample.bucket,
                flip=sample.flip,
            )
        )
    crops += [crops[-1]] * (params.batch_size - len(crops))
    pixels_BHWC = torch.from_numpy(np.stack(crops))  # uint8
    return pixels_BHWC.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1  # else strides are channels_last


def prepare_vae(vae: "nn.Module", params: LatentParams, device: "torch.device") -> "nn.Module":
    """Move the VAE to the device and set what the params ask for."""
    import torch

    from eridiff.precision import fix_threads, use_tf32

    fix_threads(device)
    use_tf32(params.tf32)
    vae = vae.to(device)
    if params.channels_last:
        vae = vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if params.tile is not None:
        set_tiling(vae, params.tile)
    if params.compile:
        vae.encode = torch.compile(vae.encode)  # type: ignore[assignment, arg-type]
    return vae


def set_tiling(vae: Any, side: int) -> None:
    """Make an AutoencoderKL encode pictures larger than `side` pixels in tiles of that side."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    vae.enable_tiling()
    vae.tile_sample_min_size = side
    vae.tile_latent_min_size = side // factor


def encode(vae: Any, pixels_BCHW: "Tensor", params: LatentParams) -> "dict[str, Tensor]":
    """Raw pixels => raw posterior: mean and std [B, C, H/8, W/8] in the params' number format.

    An autoencoder without a posterior (AutoencoderTiny) has std 0.
    """
    import torch

    from eridiff.precision import DTYPES

    with torch.inference_mode():
        encoded = vae.encode(pixels_BCHW.to(DTYPES[params.dtype]))
        if hasattr(encoded, "latent_dist"):
            mean, std = encoded.latent_dist.mean, encoded.latent_dist.std
        else:
            mean, std = encoded.latents, torch.zeros_like(encoded.latents)
    return {"mean": mean} if params.keep == "mean" else {"mean": mean, "std": std}


def _put(store: Store, sample: Sample, tensors: "dict[str, Tensor]") -> None:
    from eridiff.tensorfile import raw_tensors

    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise DataError(
            f"{sample.path}: the VAE gave numbers that are not finite. With latents.dtype fp16 some VAEs overflow: "
            "use bf16 or fp32."
        )
    store.put(sample.key, sample.parts, raw_tensors(tensors))


def cache_latents(
    samples: list[Sample],
    params: LatentParams,
    load: Load,
    store_root: Path,
    earlier: Callable[[], Iterable[Path]],
    pictures: Path,
    out: Path,
) -> tuple[list[Row], CacheCounts]:
    """Look up, import, encode what is missing, publish the shards into `out`; returns the index's rows.

    load() gives the VAE and its device and is called only where something has to be encoded; earlier() gives the
    shards of this stage's own last output, read only where the store lacks a key.
    """
    store = Store(store_root, "latents")
    keys = [sample.key for sample in samples]
    shards, counts = fill(
        store, keys, earlier, lambda: encode_missing(samples, store, params, *load(), pictures), out, what="latents"
    )
    index = [
        {
            "path": sample.path,
            "flip": int(sample.flip),
            "file_digest": sample.file_digest,
            "pixel_digest": sample.pixel_digest,
            "key": sample.key,
            "shard": shards[sample.key],
        }
        for sample in sorted(samples, key=lambda sample: (sample.path, sample.flip))
    ]
    return index, counts
