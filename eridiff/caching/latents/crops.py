"""Further crops of a picture: moved and magnified at random, planned from the seed and the picture's own pixels.

All sizes are (width, height) in pixels. A plan is a function of the picture, its bucket and the params alone: a
picture that is added, renamed or re-saved with other metadata changes no other plan, and more crops keep those before.
"""

import random
from dataclasses import dataclass
from typing import Protocol

from eridiff.core.files import digest_json

Size = tuple[int, int]
DRAWS = 50  # of each crop that is wanted, where a picture has few different ones


@dataclass(frozen=True)
class Crop:
    """How a picture is cut: scaled to `resize`, then the bucket's size taken at `at` (left, top)."""

    resize: Size
    at: tuple[int, int]

    def seen_at(self, bucket: Size, flip: bool) -> tuple[int, int]:
        """Where the crop lies in the scaled picture as a model sees it: in a mirrored one, from the other side."""
        left, top = self.at
        return (self.resize[0] - left - bucket[0] if flip else left), top


class CropParams(Protocol):
    """What of the params decides crops."""

    @property
    def crops(self) -> int:
        """Crops of each picture."""

    @property
    def crop_zoom(self) -> float:
        """Largest magnification."""

    @property
    def seed(self) -> int:
        """Seed of the draws."""


def plan_crops(first: Crop, original: Size, bucket: Size, params: CropParams, identity: str) -> list[Crop]:
    """The bucket's own crop and up to `params.crops - 1` others; fewer where a picture has no more different ones.

    identity: of the picture, its pixel digest. No picture is enlarged beyond its own size for the sake of a crop.
    """
    if params.crops == 1:
        return [first]
    found = {first: None}
    generator = random.Random(int(digest_json([params.seed, identity, bucket]), 16))
    most = [round(params.crop_zoom * 1000), *(1000 * o // r for o, r in zip(original, first.resize, strict=True))]
    for _ in range(DRAWS * (params.crops - 1)):
        if len(found) == params.crops:
            break
        thousandths = 1000 + _below(generator, max(min(most) - 1000, 0) + 1)
        width, height = ((side * thousandths + 500) // 1000 for side in first.resize)
        left, top = _below(generator, width - bucket[0] + 1), _below(generator, height - bucket[1] + 1)
        found[Crop((width, height), (left, top))] = None
    return list(found)


def _below(generator: random.Random, limit: int) -> int:
    """A whole number in [0, limit); random() is what Python keeps stable."""
    return int(generator.random() * limit)
