"""Every sample that the stage `latents` wants, in about two hundred bytes each: made into an object when asked for."""

from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from operator import itemgetter
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from eridiff.caching.latents.crops import Crop, CropParams, Size, plan_crops
from eridiff.core.files import canonical_json
from eridiff.formats.tables import Row
from eridiff.store.entries import KeyFields
from eridiff.store.entry_table import KEY
from eridiff.store.sharding import Keys

DIGEST_BYTES = 32
NUMBERS = itemgetter(
    "original_w", "original_h", "bucket_w", "bucket_h", "resize_w", "resize_h", "crop_left", "crop_top"
)
Sizes = tuple[Size, Size, Crop]  # original, bucket, the bucket's own crop


class SampleParams(CropParams, Protocol):
    """What of the params decides which samples there are."""

    @property
    def flip(self) -> bool:
        """Whether every picture is there mirrored too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One crop to encode."""

    path: str
    flip: bool
    crop_number: int  # 0 is the bucket's own crop
    file_digest: str
    pixel_digest: str
    original: Size
    bucket: Size
    crop: Crop
    key: str
    common: KeyFields  # of the key's fields those that all samples share

    @property
    def key_fields(self) -> KeyFields:
        """Everything that the value depends on."""
        return _key_fields(self.common, self.pixel_digest, self.bucket, self.crop, self.flip)


def _key_fields(common: KeyFields, pixel_digest: str, bucket: Size, crop: Crop, flip: bool) -> KeyFields:
    return {**common, "pixels": pixel_digest, "crop": _geometry(bucket, crop, flip)}


def _geometry(bucket: Size, crop: Crop, flip: bool) -> KeyFields:
    return {"bucket": bucket, "resize": crop.resize, "at": crop.at, "flip": flip}


def geometry_text(bucket: Size, crop: Crop, flip: bool) -> str:
    """A key's part `crop`, as it stands in the text that is digested."""
    return canonical_json(_geometry(bucket, crop, flip))


class KeyMaker:
    """`entry_key` of a sample's key fields at a third of its time: what many samples share is made into text once."""

    def __init__(self, common: KeyFields) -> None:
        text = canonical_json({**common, "crop": "<crop>", "pixels": "<pixels>"})  # keys sorted: in this order
        self._head, rest = text.split('"<crop>"')
        self._middle, self._tail = rest.split("<pixels>")

    def key(self, geometry: str, pixel_digest: str) -> bytes:
        """The key's bytes. geometry: of `geometry_text`."""
        return sha256(f"{self._head}{geometry}{self._middle}{pixel_digest}{self._tail}".encode()).digest()


class Samples(Sequence[Sample]):
    """Samples in the order in which their pictures were added."""

    def __init__(self, params: SampleParams, common: KeyFields) -> None:
        """common: the fields of keys that all samples share."""
        self.params, self.common, self._maker = params, common, KeyMaker(common)
        self._paths: list[str] = []
        self._sizes: list[Sizes] = []  # of a picture
        self._same: dict[tuple[int, ...], tuple[Sizes, list[str]]] = {}  # many pictures have one size and one crop
        self._files, self._pixels = bytearray(), bytearray()  # digests
        self._keys = bytearray()
        self._pictures, self._crop_numbers, self._flips = array("L"), array("H"), bytearray()  # of a sample

    def add(self, row: Row, pixel_digest: str) -> None:
        """The crops of one row of buckets.parquet, each with its key: of what is common, the pixels and the crop."""
        numbers = NUMBERS(row)
        sizes, geometries = self._same.get(numbers) or self._same.setdefault(numbers, self._shared(numbers))
        for flip, geometry in enumerate(geometries):
            self._add(self._maker.key(geometry, pixel_digest), 0, flip)
        if self.params.crops > 1:
            original, bucket, first = sizes
            for crop_number, crop in enumerate(plan_crops(first, original, bucket, self.params, pixel_digest)[1:], 1):
                for flip, geometry in enumerate(self._geometries(bucket, crop)):
                    self._add(self._maker.key(geometry, pixel_digest), crop_number, flip)
        self._paths.append(row["path"])
        self._sizes.append(sizes)
        self._files += bytes.fromhex(row["file_digest"])
        self._pixels += bytes.fromhex(pixel_digest)

    def _add(self, key: bytes, crop_number: int, flip: int) -> None:
        self._keys += key
        self._pictures.append(len(self._paths))
        self._crop_numbers.append(crop_number)
        self._flips.append(flip)

    def _shared(self, numbers: tuple[int, ...]) -> "tuple[Sizes, list[str]]":
        """What all pictures of some numbers share: their sizes, and their own crop as text."""
        original, bucket, resize, at = (numbers[place : place + 2] for place in range(0, 8, 2))
        first = Crop(resize, at)  # type: ignore[arg-type]  # pairs
        return (original, bucket, first), self._geometries(bucket, first)  # type: ignore[return-value, arg-type]

    def _geometries(self, bucket: Size, crop: Crop) -> list[str]:
        """Of a crop as it is, and mirrored where the params say so."""
        return [geometry_text(bucket, crop, flip) for flip in ((False, True) if self.params.flip else (False,))]

    @property
    def keys(self) -> Keys:
        """The key of each sample."""
        return np.frombuffer(self._keys.hex().encode(), KEY)

    def having(self, keys: Collection[str]) -> list[Sample]:
        """Those whose key is one of some."""
        wanted = np.array(list(keys), KEY)
        return [self[int(place)] for place in np.flatnonzero(np.isin(self.keys, wanted))]

    @property
    def areas(self) -> NDArray[np.int64]:
        """Pixels of each sample."""
        of_pictures = np.array([bucket[0] * bucket[1] for _, bucket, _ in self._sizes], np.int64)
        return of_pictures[np.frombuffer(self._pictures, np.dtype("L"))]

    @property
    def mean_area(self) -> float:
        """Pixels of a sample, on average."""
        return float(self.areas.mean()) if len(self) else 0.0

    def order(self) -> Sequence[int]:
        """Places of the samples by path, bucket, crop and mirror: as they stand, for those of a sorted table."""
        pictures = list(zip(self._paths, (bucket for _, bucket, _ in self._sizes), strict=True))
        if all(one < other for one, other in pairwise(pictures)):
            return range(len(self))

        def rank(place: int) -> Any:
            return pictures[self._pictures[place]], self._crop_numbers[place], self._flips[place]

        return sorted(range(len(self)), key=rank)

    def columns(self, places: Sequence[int]) -> dict[str, list[Any]]:
        """What an index says of the samples at some places."""
        pictures = [self._pictures[place] for place in places]
        sizes = [self._sizes[picture] for picture in pictures]
        flips, crop_numbers = [self._flips[place] for place in places], [self._crop_numbers[place] for place in places]
        crops = [
            self[place].crop if crop_number else size[2]
            for place, crop_number, size in zip(places, crop_numbers, sizes, strict=True)
        ]
        seen = [crop.seen_at(size[1], bool(flip)) for crop, size, flip in zip(crops, sizes, flips, strict=True)]
        return {
            "path": [self._paths[picture] for picture in pictures],
            "file_digest": [_digest(self._files, picture) for picture in pictures],
            "pixel_digest": [_digest(self._pixels, picture) for picture in pictures],
            "key": [_digest(self._keys, place) for place in places],
            "variant": crop_numbers,
            "flip": flips,
            "bucket_w": [bucket[0] for _, bucket, _ in sizes],
            "bucket_h": [bucket[1] for _, bucket, _ in sizes],
            "crop_left": [left for left, _ in seen],
            "crop_top": [top for _, top in seen],
            "original_w": [original[0] for original, _, _ in sizes],
            "original_h": [original[1] for original, _, _ in sizes],
        }

    def __len__(self) -> int:
        return len(self._pictures)

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice) -> list[Sample]: ...
    def __getitem__(self, place: int | slice) -> Sample | list[Sample]:
        """One sample, or some."""
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        picture, crop_number = self._pictures[place], self._crop_numbers[place]
        original, bucket, first = self._sizes[picture]
        pixel_digest = _digest(self._pixels, picture)
        crops = plan_crops(first, original, bucket, self.params, pixel_digest) if crop_number else [first]
        return Sample(
            path=self._paths[picture],
            flip=bool(self._flips[place]),
            crop_number=crop_number,
            file_digest=_digest(self._files, picture),
            pixel_digest=pixel_digest,
            original=original,
            bucket=bucket,
            crop=crops[crop_number],
            key=_digest(self._keys, place),
            common=self.common,
        )


def _digest(digests: bytearray, place: int) -> str:
    return digests[place * DIGEST_BYTES : (place + 1) * DIGEST_BYTES].hex()
