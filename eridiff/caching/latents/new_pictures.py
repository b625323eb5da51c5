"""Pictures that the store never saw: decoded once, for the digest that their keys need and for the encoder at once.

    read (threads): decode, digest => key; where it is missing: crop => a batch of its bucket => encode => write

Batches are made as pictures come, since a key is known only once its picture is decoded; the rest of a batch changes no
byte. What this leaves (a picture seen before that is no longer in the store, an interruption) the stage finds missing
after it, as in any run.

Several processes share the pictures out, each decodes its own (eridiff/caching/processes.py).
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eridiff.caching.fill import Resources, Work
from eridiff.caching.latents.crops import Size
from eridiff.caching.latents.encode import BatchEncoder, cut_sample
from eridiff.caching.latents.plan import check_sides, refuse_unusable, take_over_pixels
from eridiff.caching.latents.samples import Sample, Samples
from eridiff.caching.pipeline import entry_writer, readers_in_memory
from eridiff.core.errors import DataError
from eridiff.core.progress import track
from eridiff.core.threads import MAX_READERS, ahead, shared_cores
from eridiff.dataset.image.decode import load_pixels, pixel_digest
from eridiff.formats.tables import Row
from eridiff.params.latents import LatentParams
from eridiff.store.catalogue import list_loose
from eridiff.store.entries import KeyFields
from eridiff.store.pixels import PixelDigests
from eridiff.store.store import Store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Read:
    """A picture that was read, and the crops [H, W, 3] of those of its samples that the store lacked then."""

    file_digest: str
    pixel_digest: str
    crops: "list[tuple[Sample, NDArray[np.uint8]]]"


class NewPictures:
    """Pictures of buckets.parquet whose pixels nothing remembers."""

    def __init__(
        self, rows: Iterable[Row], params: LatentParams, side_multiple: int, pictures: Path, pixels: PixelDigests
    ) -> None:
        """rows: of buckets.parquet; of pixels.wanted those are new that are not known."""
        self.rows, self.params, self.side_multiple = rows, params, side_multiple
        self.pictures, self.pixels = pictures, pixels

    def _rows_of(self, files: set[str]) -> Iterator[list[Row]]:
        """The rows of each file, those of several resolutions together; a copy that stands elsewhere is left out."""
        left = set(files)
        rows_of = groupby(self.rows, key=lambda row: row["file_digest"]) if left else ()
        for digest, rows in rows_of:
            if digest in left:
                left.remove(digest)
                yield list(rows)

    def _take_over(self) -> None:
        """Learn what the rules of before gave and those of now give too: the others are new."""
        if self.pixels.before:
            files = ((row["path"], row["file_digest"]) for row in self.rows)
            take_over_pixels(files, self.pictures, self.pixels)

    def first_keys(self, common: KeyFields) -> list[str]:
        """The keys of the first one's samples: mostly enough to know that something is missing.

        [] where there is none, or it cannot be decoded: it is named with the others when all are read.
        """
        self._take_over()
        rows = next(self._rows_of(self.pixels.unknown), None)
        if rows is None:
            return []
        check_sides(self.rows, self.side_multiple)
        try:
            pixels = self._decode(rows)[1]
        except DataError:
            return []
        return [sample.key for sample in self._samples(rows, pixels, common)]

    def encode(self, common: KeyFields, resources: Resources) -> Work:
        """Read all, remember their pixels, and encode what is neither in the store nor in the stage's last output.

        Of several processes that share the pictures the first one counts and waits for all.
        Memory: a batch of each bucket, and a batch and a picture a thread ahead.
        Raises: as `plan_samples`. After a picture that cannot be decoded nothing is encoded, but the others are read
        and remembered, so that all such pictures are named at once: of several processes by the first.
        """
        began, ranks, store = time.monotonic(), resources.ranks, Store(resources.root, "latents")
        if ranks.index:
            share = set(ranks.read(ranks.new_path)[ranks.index :: ranks.size])
            encoded, _ = self._encode(share, common, store, resources) if share else (set(), [])
            ranks.tell_done(encoded)
            return Work(encoded=len(encoded), seconds=time.monotonic() - began)
        self._take_over()
        files = sorted(self.pixels.unknown)
        if files:
            check_sides(self.rows, self.side_multiple)
            store.adopt(resources.earlier())
        shared = ranks.announce_new(files, len(files) // self.params.batch_size)
        if not files:
            return Work()
        share = set(files[0 :: ranks.size] if shared else files)
        encoded, wrong = self._encode(share, common, store, resources)
        if shared:
            encoded |= ranks.wait_for_shares(lambda: self._progress(store))
            self.pixels.look_again()
        else:
            refuse_unusable(wrong)
        return Work(encoded=len(encoded), seconds=time.monotonic() - began)

    def _progress(self, store: Store) -> int:
        """A number that changes while other processes read and encode."""
        return sum(1 for _ in list_loose(store.folder / "entries")) + sum(1 for _ in self.pixels.folder.glob("*.tsv"))

    def _encode(
        self, files: set[str], common: KeyFields, store: Store, resources: Resources
    ) -> tuple[set[str], list[str]]:
        """Read some, encode what is missing; the keys that were encoded, and what is wrong with pictures."""
        threads = min(shared_cores(), MAX_READERS) if resources.workers is None else resources.workers
        sizes = (row["original_w"] * row["original_h"] for row in self.rows if row["file_digest"] in files)
        threads = readers_in_memory(threads, max(sizes, default=1))

        def read(rows: Sequence[Row]) -> Read | DataError:
            try:
                return self._read(rows, common, store)
            except DataError as error:
                return error

        with ExitStack() as stack:
            depth = threads + -(-self.params.batch_size // self.params.per_picture)
            pictures = ahead(self._rows_of(files), read, threads=threads, depth=depth)
            stack.callback(pictures.close)  # type: ignore[attr-defined]
            learn = stack.enter_context(self.pixels.learning())
            forming = FormingBatches(store, self.params, resources.load, stack)
            wrong: list[str] = []
            for picture in track(
                pictures, what=f"new pictures{resources.ranks.label}", total=len(files), unit="pictures"
            ):
                if isinstance(picture, DataError):
                    wrong.append(str(picture))
                    continue
                for sample, crop in picture.crops if not wrong else ():
                    forming.add(sample, crop)
                learn(picture.file_digest, picture.pixel_digest)
            if not wrong:
                forming.finish()
        return forming.encoded, wrong

    def _read(self, rows: Sequence[Row], common: KeyFields, store: Store) -> Read:
        image, pixels = self._decode(rows)
        lacking = [sample for sample in self._samples(rows, pixels, common) if sample.key not in store.catalogue]
        crops = [(sample, cut_sample(image, sample, self.params)) for sample in lacking]
        return Read(file_digest=rows[0]["file_digest"], pixel_digest=pixels, crops=crops)

    def _decode(self, rows: Sequence[Row]) -> "tuple[Image, str]":
        image = load_pixels(self.pictures / rows[0]["path"], rows[0]["file_digest"])
        return image, pixel_digest(image)

    def _samples(self, rows: Sequence[Row], pixels: str, common: KeyFields) -> Samples:
        samples = Samples(self.params, common)
        for row in rows:
            samples.add(row, pixels)
        return samples


class FormingBatches:
    """Batches in the making, one of each bucket; the VAE is loaded for the first."""

    def __init__(self, store: Store, params: LatentParams, load: Callable[[], Any], stack: ExitStack) -> None:
        self.begun: set[str] = set()  # keys: equal pictures have one
        self._store, self._params, self._load, self._stack = store, params, load, stack
        self._encoder: BatchEncoder | None = None
        self._open: dict[Size, tuple[list[Sample], Tensor]] = {}

    @property
    def encoded(self) -> set[str]:
        """Those whose batch was full, or finished."""
        return self.begun.difference(sample.key for batch, _ in self._open.values() for sample in batch)

    def add(self, sample: Sample, crop: "NDArray[np.uint8]") -> None:
        """Take in a sample; where it fills a batch, that is encoded."""
        if sample.key in self.begun:
            return
        self.begun.add(sample.key)
        if self._encoder is None:
            vae, device = self._load()
            writer = self._stack.enter_context(entry_writer(device, self._params.batch_size))
            self._encoder = BatchEncoder(self._store, self._params, vae, device, writer)
        if sample.bucket not in self._open:
            self._open[sample.bucket] = [], self._encoder.allocate(sample.bucket)
        batch, bytes_BHWC = self._open[sample.bucket]
        bytes_BHWC.numpy()[len(batch)] = crop
        batch.append(sample)
        if len(batch) == self._params.batch_size:
            self._encoder.encode(*self._open.pop(sample.bucket))

    def finish(self) -> None:
        """Encode what is left, in short batches."""
        for _, (batch, bytes_BHWC) in sorted(self._open.items()):
            assert self._encoder is not None
            self._encoder.encode(batch, bytes_BHWC)
        self._open.clear()
