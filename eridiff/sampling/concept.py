"""The concept's pictures: those of data/raw whose caption holds the trigger, cut as training sees them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eridiff.core.errors import DataError
from eridiff.dataset.image.decode import crop_picture, load_pixels
from eridiff.formats.tables import Row, read_table
from eridiff.params.trigger import holds_word
from eridiff.sampling.descriptors import at_measure

Array = np.ndarray[Any, np.dtype[Any]]
MAX_NAMED = 5


def open_concept(captions: Path, buckets: Path, pictures: Path) -> list[Array]:
    """The concept's pictures by path, RGB [H, W, 3] in 0..1 at the measure's area.

    captions, buckets: the tables of these stages. A picture that no bucket takes is left out, as in training.
    Raises: DataError where no caption holds the trigger, or a picture is gone or differs from its digest.
    """
    rows, facts = read_table(captions)
    trigger = facts.get("trigger")
    chosen = concept_rows(rows, read_table(buckets)[0], trigger)
    if not chosen:
        raise DataError(
            f"sample.measures compares with the pictures whose caption holds the trigger ({trigger!r}), and there are "
            "none. Name one with the trigger, or set sample.measures to false."
        )
    _refuse_missing([row["path"] for row in chosen], pictures)
    return [at_measure(_crop(row, pictures)) for row in chosen]


def concept_rows(captions: Iterable[Row], buckets: Iterable[Row], trigger: str | None) -> list[Row]:
    """Rows of buckets.parquet of the pictures whose clean caption holds the trigger, by path."""
    named = {row["path"] for row in captions if holds_word(row["clean"], trigger)}
    return sorted((row for row in buckets if row["path"] in named), key=lambda row: str(row["path"]))


def _refuse_missing(paths: Sequence[str], pictures: Path) -> None:
    missing = [path for path in paths if not (pictures / path).is_file()]
    if missing:
        names = ", ".join(missing[:MAX_NAMED]) + (", ..." if len(missing) > MAX_NAMED else "")
        raise DataError(
            f"sample.measures compares with the pictures whose caption holds the trigger, but {len(missing)} of "
            f"{len(paths)} are not in {pictures}: {names}. Fetch them (`dvc pull`), or set sample.measures to false."
        )


def _crop(row: Row, pictures: Path) -> Array:
    """A picture at its crop; what is transparent stands on white."""
    pixels_HWC = crop_picture(
        load_pixels(pictures / row["path"], row["file_digest"]),
        alpha="white",
        resample="lanczos",
        resize=(row["resize_w"], row["resize_h"]),
        crop=(row["crop_left"], row["crop_top"]),
        size=(row["bucket_w"], row["bucket_h"]),
        flip=False,
    )
    return pixels_HWC.astype(np.float32) / 255
