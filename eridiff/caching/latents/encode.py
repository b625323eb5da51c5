"""The VAE cache: missing latents are read, encoded and put as one overlapped pipeline; the shards are published."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from eridiff.caching.early_shards import EarlyShards, Puts
from eridiff.caching.fill import CacheCounts, Resources, fill
from eridiff.caching.latents.crops import Size
from eridiff.caching.latents.plan import batch_by_bucket, index_rows
from eridiff.caching.latents.samples import Sample, Samples
from eridiff.caching.pipeline import Transfers, entry_writer, reader_threads, with_finite
from eridiff.caching.processes import encode_together
from eridiff.core.errors import DataError
from eridiff.core.progress import track
from eridiff.core.threads import WriteBehind, batches_ahead
from eridiff.dataset.image.decode import crop_picture, load_pixels
from eridiff.formats.tables import Row
from eridiff.params.latents import LatentParams
from eridiff.store.store import Store
from eridiff.weights.nonfinite import blame

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor, nn


class BatchEncoder:
    """The VAE between copies to the device and the writer behind it: the device waits for neither.

    writer: of `entry_writer`.
    """

    def __init__(
        self, store: Puts, params: LatentParams, vae: "nn.Module", device: "torch.device", writer: WriteBehind
    ) -> None:
        from eridiff.caching.latents.vae import prepare_vae

        self.store, self.params, self.device = store, params, device
        self._vae, self._moves = prepare_vae(vae, params, device), Transfers(device)
        self._writer = writer

    def allocate(self, bucket: Size) -> "Tensor":
        """An empty batch of one bucket, always of the full size: uint8 [batch_size, H, W, 3]."""
        import torch

        shape = (self.params.batch_size, bucket[1], bucket[0], 3)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self._moves.pinned)

    def encode(self, batch: Sequence[Sample], bytes_BHWC: "Tensor") -> None:
        """Encode one batch; its entries are put by threads, the next may come meanwhile."""
        from eridiff.caching.latents.vae import encode, pixels_from_bytes

        bytes_BHWC[len(batch) :] = bytes_BHWC[len(batch) - 1]  # a short batch is padded with its last picture
        posterior = encode(self._vae, pixels_from_bytes(self._moves.upload(bytes_BHWC)), self.params)
        arrived = self._moves.download(with_finite(posterior))
        for place, sample in enumerate(batch):
            self._writer.submit(partial(put_sample, self.store, sample, place, arrived, self._why))

    def _why(self) -> str:
        """Why the VAE gave numbers that are not finite."""
        return blame({"vae": self._vae}, "latents.dtype", self.params.dtype)


def encode_batches(
    batches: Sequence[Sequence[Sample]],
    encoder: BatchEncoder,
    reader: "PictureReader",
    *,
    workers: int | None = None,
    what: str = "latents",
) -> None:
    """Read, encode and put whole batches, overlapped: reading runs ahead in `workers` threads, writing behind."""
    threads = reader_threads(encoder.device) if workers is None else workers
    read = batches_ahead(batches, lambda batch: encoder.allocate(batch[0].bucket), reader.fill, threads=threads)
    for batch, bytes_BHWC in track(read, what=what, total=len(batches), unit="batches"):
        encoder.encode(batch, bytes_BHWC)


class PictureReader:
    """Fills batches of bytes with the crops of samples, in any thread."""

    def __init__(self, params: LatentParams, pictures: Path) -> None:
        self.params, self.pictures = params, pictures

    def fill(self, bytes_BHWC: "Tensor", place: int, sample: Sample) -> None:
        """Put a sample's crop into its place.

        Raises: DataError that names the picture.
        """
        image = load_pixels(self.pictures / sample.path, sample.file_digest)
        bytes_BHWC.numpy()[place] = cut_sample(image, sample, self.params)


def cut_sample(image: "Image", sample: Sample, params: LatentParams) -> "NDArray[np.uint8]":
    """A sample's crop of its picture: uint8 HWC."""
    return crop_picture(
        image,
        alpha=params.alpha,
        resample=params.resample,
        resize=sample.crop.resize,
        crop=sample.crop.at,
        size=sample.bucket,
        flip=sample.flip,
    )


def put_sample(
    store: Puts, sample: Sample, place: int, arrived: "Callable[[], dict[str, Tensor]]", why: Callable[[], str]
) -> None:
    """Put one sample of an encoded batch. why: says why numbers are not finite.

    Raises: DataError that names the picture where its numbers are not finite.
    """
    from eridiff.formats.safetensors import raw_tensors

    posterior = {name: tensor[place] for name, tensor in arrived().items()}
    if not posterior.pop("finite"):
        raise DataError(f"{sample.path}: the VAE gave numbers that are not finite. {why()}")
    store.put(sample.key, sample.key_fields, raw_tensors(posterior))


def cache_latents(
    samples: Samples, params: LatentParams, pictures: Path, resources: Resources, out: Path
) -> tuple[Sequence[Row], CacheCounts]:
    """Look up, import, encode what is missing, publish the shards into `out`; returns the index's rows.

    Of several processes this is the first: `help_latents` is what the others do.
    """
    store = Store(resources.root, "latents")

    def encode() -> int:
        return _encode(samples, store, params, pictures, resources)

    shards, counts = fill(store, samples.keys, resources.earlier, encode, out, what="latents")
    return index_rows(samples, shards), counts


def help_latents(samples: Samples, params: LatentParams, pictures: Path, resources: Resources) -> int:
    """What a process other than the first does: encode its share into the store; returns how many it encoded."""
    return _encode(samples, Store(resources.root, "latents"), params, pictures, resources)


def _encode(samples: Samples, store: Store, params: LatentParams, pictures: Path, resources: Resources) -> int:
    """Encode what is missing, alone or together with others."""
    ranks = resources.ranks

    def form(keys: set[str]) -> list[list[Sample]]:
        wanted = {sample.key: sample for sample in samples.having(keys)}  # equal pictures share a key
        return batch_by_bucket(wanted.values(), params.batch_size)

    def encode(batches: Sequence[Sequence[Sample]]) -> None:
        if not batches:
            return
        vae, device = resources.load()
        own = {sample.key for batch in batches for sample in batch}
        with EarlyShards(store, samples.keys, samples.areas, own, device) as shards:
            puts = store if ranks.index else shards  # the first process alone writes shards
            with entry_writer(device, params.batch_size) as writer:
                encoder = BatchEncoder(puts, params, vae, device, writer)
                reader = PictureReader(params, pictures)
                encode_batches(batches, encoder, reader, workers=resources.workers, what=f"latents{ranks.label}")

    return encode_together(ranks, store, samples.keys, form, encode, "latents")
