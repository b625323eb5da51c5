"""The VAE cache: what the store lacks is read, encoded and put as one overlapped pipeline; the shards are published."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from eridiff.caching import CacheCounts, fill
from eridiff.encodepipe import (
    BATCHES_BEHIND,
    Transfers,
    WriteBehind,
    batches_ahead,
    reader_threads,
    with_finite,
    writer_threads,
)
from eridiff.errors import DataError
from eridiff.images import crop_picture, load_pixels
from eridiff.latents import LatentParams, batch_by_bucket, index_rows
from eridiff.progress import track
from eridiff.ranks import Ranks, encode_together
from eridiff.samples import Sample, Samples
from eridiff.store import Store
from eridiff.tables import Row

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Load = Callable[[], "tuple[nn.Module, torch.device]"]


def encode_batches(
    batches: Sequence[Sequence[Sample]],
    store: Store,
    params: LatentParams,
    vae: "nn.Module",
    device: "torch.device",
    pictures: Path,
    *,
    workers: int | None = None,
    what: str = "latents",
) -> None:
    """Read, encode and put whole batches, overlapped: reading runs ahead in `workers` threads, writing behind.

    The device never waits for the host. Stopped in any way, this loses at most the batch in the encoder and those not
    yet written (encodepipe.BATCHES_BEHIND).
    """
    from eridiff.vae import encode, pixels_from_bytes, prepare_vae

    vae = prepare_vae(vae, params, device)
    moves = Transfers(device)
    threads = reader_threads(device) if workers is None else workers
    reader = PictureReader(params, pictures, pinned=moves.pinned)
    read = batches_ahead(batches, reader.allocate, reader.fill, threads=threads)
    with WriteBehind(threads=writer_threads(device), depth=BATCHES_BEHIND) as writer:
        for batch, bytes_BHWC in track(read, what=what, total=len(batches), unit="batches"):
            bytes_BHWC[len(batch) :] = bytes_BHWC[len(batch) - 1]  # a short batch is padded with its last picture
            posterior = encode(vae, pixels_from_bytes(moves.upload(bytes_BHWC)), params)
            writer.submit(partial(put_batch, store, batch, moves.download(with_finite(posterior))))


class PictureReader:
    """Fills batches of bytes with the crops of samples, in any thread."""

    def __init__(self, params: LatentParams, pictures: Path, *, pinned: bool) -> None:
        self.params, self.pictures, self.pinned = params, pictures, pinned

    def allocate(self, batch: Sequence[Sample]) -> "Tensor":
        """An empty batch of one bucket, always of the full size: uint8 [batch_size, H, W, 3]."""
        import torch

        width, height = batch[0].bucket
        shape = (self.params.batch_size, height, width, 3)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self.pinned)

    def fill(self, bytes_BHWC: "Tensor", place: int, sample: Sample) -> None:
        """Put a sample's crop into its place.

        Raises: DataError that names the picture.
        """
        image = load_pixels(self.pictures / sample.path, sample.file_digest)
        bytes_BHWC.numpy()[place] = crop_picture(
            image,
            alpha=self.params.alpha,
            resample=self.params.resample,
            resize=sample.crop.resize,
            crop=sample.crop.at,
            size=sample.bucket,
            flip=sample.flip,
        )


def put_batch(store: Store, batch: Sequence[Sample], arrived: "Callable[[], dict[str, Tensor]]") -> None:
    """Put each sample of an encoded batch.

    Raises: DataError that names a picture whose numbers are not finite; those before it are put.
    """
    from eridiff.tensorfile import raw_tensors

    posterior = dict(arrived())
    finite = posterior.pop("finite").tolist()
    for index, sample in enumerate(batch):
        if not finite[index]:
            raise DataError(
                f"{sample.path}: the VAE gave numbers that are not finite. With latents.dtype fp16 some VAEs "
                "overflow: use bf16 or fp32."
            )
        store.put(sample.key, sample.parts, raw_tensors({name: t[index] for name, t in posterior.items()}))


def cache_latents(
    samples: Samples,
    params: LatentParams,
    load: Load,
    store_root: Path,
    earlier: Callable[[], Iterable[Path]],
    pictures: Path,
    out: Path,
    *,
    workers: int | None = None,
    ranks: Ranks | None = None,
) -> tuple[Sequence[Row], CacheCounts]:
    """Look up, import, encode what is missing, publish the shards into `out`; returns the index's rows.

    load() gives the VAE and its device and is called only where something has to be encoded; earlier() gives the
    shards of this stage's own last output, read only where the store lacks a key. ranks: the processes that share
    the encoding, of which this is the first: `help_latents` is what the others do.
    """
    store, ranks = Store(store_root, "latents"), ranks or Ranks()

    def encode() -> int:
        return _encode(samples, store, params, load, pictures, workers, ranks)

    shards, counts = fill(store, samples.keys, earlier, encode, out, what="latents")
    if not ranks.planned:
        ranks.announce([], 0)
    return index_rows(samples, shards), counts


def help_latents(
    samples: Samples,
    params: LatentParams,
    load: Load,
    store_root: Path,
    pictures: Path,
    ranks: Ranks,
    *,
    workers: int | None = None,
) -> int:
    """What a process other than the first does: encode its share into the store; returns how many it encoded."""
    return _encode(samples, Store(store_root, "latents"), params, load, pictures, workers, ranks)


def _encode(
    samples: Samples,
    store: Store,
    params: LatentParams,
    load: Load,
    pictures: Path,
    workers: int | None,
    ranks: Ranks,
) -> int:
    """Encode what is missing, alone or together with others."""

    def form(keys: set[str]) -> list[list[Sample]]:
        wanted = {sample.key: sample for sample in samples if sample.key in keys}  # equal pictures share a key
        return list(batch_by_bucket(wanted.values(), params.batch_size))

    def encode(batches: Sequence[Sequence[Sample]]) -> None:
        if batches:
            encode_batches(batches, store, params, *load(), pictures, workers=workers, what=f"latents{ranks.label}")

    return encode_together(ranks, store, samples.keys, form, encode, "latents")
