"""Which latents there are: the params, and every picture's crops with the keys of their posteriors in the store."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eridiff.caching.latents.samples import Sample, Samples
from eridiff.caching.latents.tiles import TILING
from eridiff.core.errors import ConfigError, DataError, listing
from eridiff.core.progress import track
from eridiff.core.threads import MAX_READERS, ahead, available_cores
from eridiff.dataset.image.decode import keeps_its_numbers, load_pixels, pixel_digest
from eridiff.formats.tables import ColumnRows, Row
from eridiff.params.latents import IN_NO_KEY, LatentParams
from eridiff.store.entries import KeyFields
from eridiff.store.pixels import PixelDigests
from eridiff.versions import pixels_part

INDEX_COLUMNS = dict.fromkeys(("path", "file_digest", "pixel_digest", "key", "shard"), "str") | dict.fromkeys(
    ("flip", "variant", "bucket_w", "bucket_h", "crop_left", "crop_top", "original_w", "original_h"), "int"
)


def plan_samples(
    rows: Collection[Row],
    params: LatentParams,
    common: KeyFields,
    side_multiple: int,
    pictures: Path,
    pixels: PixelDigests,
) -> Samples:
    """Rows of buckets.parquet as samples with their keys; decodes only pictures that the store never saw.

    common: of their keys' fields those that all share (`common_key_fields`).
    Raises: ConfigError where a bucket's sides do not fit the family,
    DataError where a picture is gone, differs from its digest, or cannot be decoded.
    """
    samples = Samples(params, common)
    for row in rows:
        check_sides([row], side_multiple)
        if row["file_digest"] not in pixels.known:
            check_sides(rows, side_multiple)  # before anything is read
            learn_pixels(((row["path"], row["file_digest"]) for row in rows), pictures, pixels)  # all of them
        samples.add(row, pixels.known[row["file_digest"]])
    return samples


def check_sides(rows: Iterable[Row], side_multiple: int) -> None:
    """Check that the buckets fit the family.

    Raises: ConfigError.
    """
    for row in rows:
        if row["bucket_w"] % side_multiple or row["bucket_h"] % side_multiple:
            size = f"{row['bucket_w']} x {row['bucket_h']}"
            raise ConfigError(f"params.yaml: buckets.step gives {size}: sides must be multiples of {side_multiple}.")


def common_key_fields(params: LatentParams, vae: Mapping[str, str], version: int, drift_id: str = "") -> KeyFields:
    """The fields of a key that all samples of one run of the stage share.

    vae: digests of the VAE's tensors and config. version: the family's vae_encode.
    drift_id: of the VAE's numbers (eridiff/caching/drift_records.py); the first, empty, is in no key.
    """
    common: KeyFields = {"vae": dict(vae), "params": params.model_dump(exclude=IN_NO_KEY), "version": version}
    common |= {**pixels_part(), **({"probe": drift_id} if drift_id else {})}
    return common | ({"tiling": TILING} if params.tile is not None else {})


def learn_pixels(files: Iterable[tuple[str, str]], pictures: Path, pixels: PixelDigests) -> None:
    """Decode the pictures whose pixel digest is not known yet, on all cores, and remember it.

    Raises: DataError that names all pictures that cannot be decoded; the others are remembered.
    """
    files = list(files)
    take_over_pixels(files, pictures, pixels)
    unknown = list({digest: path for path, digest in files if digest not in pixels.known}.items())

    def read(file: tuple[str, str]) -> tuple[str, str | DataError]:
        digest, path = file
        try:
            return digest, pixel_digest(load_pixels(pictures / path, digest))
        except DataError as error:
            return digest, error

    threads = min(available_cores(), MAX_READERS)
    learned = ahead(unknown, read, threads=threads if len(unknown) > 1 else 0, depth=2 * threads)
    wrong: list[str] = []
    with pixels.learning() as learn:
        for digest, pixel in track(learned, what="reading pictures", total=len(unknown), unit="pictures"):
            if isinstance(pixel, DataError):
                wrong.append(str(pixel))
            else:
                learn(digest, pixel)
    refuse_unusable(wrong)


def take_over_pixels(files: Iterable[tuple[str, str]], pictures: Path, pixels: PixelDigests) -> None:
    """Remember what was known before colours were converted, of the pictures that this does not change.

    Of a picture that is not here it counts, for this run alone: nobody can tell.
    """
    wanted = {digest: path for path, digest in files if digest in pixels.before and digest not in pixels.known}
    gone = {digest for digest, path in wanted.items() if not (pictures / path).exists()}
    pixels.known |= {digest: pixels.before[digest] for digest in gone}
    wanted = {digest: path for digest, path in wanted.items() if digest not in gone}

    def look(file: tuple[str, str]) -> str | None:
        digest, path = file
        return digest if keeps_its_numbers(pictures / path, digest) else None

    threads = min(available_cores(), MAX_READERS) if len(wanted) > 1 else 0
    looked = ahead(list(wanted.items()), look, threads=threads, depth=2 * threads)
    with pixels.learning() as learn:
        for found in track(looked, what="colours of known pictures", total=len(wanted), unit="pictures"):
            if found:
                learn(found, pixels.before[found])


def refuse_unusable(wrong: Iterable[str]) -> None:
    """End where any picture cannot be decoded.

    Raises: DataError that names them all.
    """
    if wrong := sorted(wrong):
        raise DataError(f"pictures that cannot be used:{listing(wrong)}")


def batch_by_bucket(samples: Iterable[Sample], batch_size: int) -> list[list[Sample]]:
    """Samples of one bucket together, in the order of their keys, so that history decides nothing.

    Batches come in the order of their first keys: so a shard's entries, whose keys begin alike, come one after the
    other, whatever their buckets, and it can be written soon.
    """
    by_bucket: dict[tuple[int, int], list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.key):
        by_bucket.setdefault(sample.bucket, []).append(sample)
    batches = (some[at : at + batch_size] for some in by_bucket.values() for at in range(0, len(some), batch_size))
    return sorted(batches, key=lambda batch: batch[0].key)


def index_rows(samples: Samples, shards: Mapping[str, str]) -> Sequence[Row]:
    """Rows of the index, sorted: for each sample its key, its shard, and the sizes that a model may be told.

    crop_left, crop_top: where the crop lies in the scaled picture as seen, mirrored or not.
    """
    order = samples.order()

    def columns_of(places: range) -> dict[str, list[Any]]:
        columns = samples.columns(order[places.start : places.stop])
        return columns | {"shard": [shards[key] for key in columns["key"]]}

    return ColumnRows(len(samples), columns_of)
