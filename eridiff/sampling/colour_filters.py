"""The best that a filter could do: global colour transforms that bring pictures' texture towards a concept's.

A LoRA that only recolours is no better than these. Each transform maps colours alone, whatever their place:

- identity;
- per-channel histogram matching to the concept's colours (Gonzalez and Woods, "Digital Image Processing", 3.3.2);
- linear Monge-Kantorovich transport, which matches mean and covariance (Pitie and Kokaram, CVMP 2007);
- both after inversion;
- solarising curves, then matching: a fold at 0.3, 0.5 or 0.7, of the intensity or of each channel, that makes the
  fold the brightest or the darkest value. Edges pass through the fold, so such a curve draws outlines. Matching
  makes its exact form irrelevant: any curve with one extreme there gives the same order of values, and so nearly the
  same picture.

Each is fitted once to all pictures together, and once to every picture by itself; the concept is always the whole set.
Pictures are RGB [H, W, 3] in 0..1.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from eridiff.sampling.descriptors import distance, texture

Array = np.ndarray[Any, np.dtype[Any]]
Change = Callable[[Array], Array]

FOLDS = (0.3, 0.5, 0.7)
LEVELS = 256
LEAST_VARIANCE = 1e-4  # of colours: keeps the transport of a grey picture finite


@dataclass(frozen=True)
class BestFilter:
    """The transform that came nearest, and how near."""

    name: str
    distance: float


def best_colour_filter(pictures: Sequence[Array], concept: Sequence[Array]) -> BestFilter:
    """The smallest texture distance to the concept that any transform of the family reaches.

    Pictures and concept are at the measure's area already (measure.at_measure).
    """
    wanted = texture(concept)
    found = [BestFilter(name, distance(texture(made), wanted)) for name, made in filtered(pictures, concept)]
    return min(found, key=lambda filter: filter.distance)


def filtered(pictures: Sequence[Array], concept: Sequence[Array]) -> Iterator[tuple[str, list[Array]]]:
    """Every transform by name, and the pictures that it makes."""
    yield "identity", list(pictures)
    target = _colours(concept)
    curves, gauss = _quantiles(target), _moments(target)
    for (name, change), each in product(CHANGES.items(), (False, True)):
        changed = [change(picture) for picture in pictures]
        groups = [[picture] for picture in changed] if each else [changed]
        end = ", each picture" if each else ""
        yield f"{name}matched{end}", [made for group in groups for made in _match(group, curves)]
        if name in ("", "inverted, "):
            yield f"{name}transported{end}", [made for group in groups for made in _transport(group, gauss)]


def _fold_intensity(at: float, sign: int, pixels: Array) -> Array:
    folded = _fold(at, sign, pixels.mean(axis=-1, keepdims=True))
    return np.repeat(folded, 3, axis=-1)


def _fold(at: float, sign: int, values: Array) -> Array:
    """A curve with its extreme at a value: 1 there for sign +1, 0 there for -1."""
    away = np.abs(values - at) / max(at, 1 - at)
    return 1 - away if sign > 0 else away


def _changes() -> dict[str, Change]:
    changes: dict[str, Change] = {"": lambda pixels: pixels, "inverted, ": lambda pixels: 1 - pixels}
    for at, (sign, word) in product(FOLDS, ((1, "peak"), (-1, "valley"))):
        changes[f"{word} at {at}, "] = partial(_fold, at, sign)
        changes[f"intensity's {word} at {at}, "] = partial(_fold_intensity, at, sign)
    return changes


CHANGES = _changes()


def _colours(pictures: Sequence[Array]) -> Array:
    """All pixels of all pictures [N, 3]; every picture has about the same number."""
    return np.concatenate([picture.reshape(-1, 3) for picture in pictures]).astype(np.float64)


def _quantiles(colours_N3: Array) -> Array:
    """[LEVELS, 3]: each channel's values at the middles of LEVELS equal shares."""
    return np.quantile(colours_N3, (np.arange(LEVELS) + 0.5) / LEVELS, axis=0)


def _match(pictures: Sequence[Array], curves: Array) -> list[Array]:
    """Per-channel histogram matching: a value's mean rank among all pictures picks the concept's value of that rank."""
    levels = [np.clip(np.rint(picture * (LEVELS - 1)), 0, LEVELS - 1).astype(np.int64) for picture in pictures]
    tables = []
    for channel in range(3):
        counts = np.bincount(np.concatenate([level[..., channel].ravel() for level in levels]), minlength=LEVELS)
        ranks = (np.cumsum(counts) - counts / 2) / counts.sum()
        tables.append(np.interp(ranks, (np.arange(LEVELS) + 0.5) / LEVELS, curves[:, channel]))
    return [np.stack([tables[c][level[..., c]] for c in range(3)], axis=-1) for level in levels]


def _moments(colours_N3: Array) -> tuple[Array, Array]:
    """Mean [3] and covariance [3, 3], never singular."""
    return colours_N3.mean(axis=0), np.cov(colours_N3, rowvar=False) + LEAST_VARIANCE * np.eye(3)


def _transport(pictures: Sequence[Array], target: tuple[Array, Array]) -> list[Array]:
    """x -> A (x - mean) + target mean, A = S^-1/2 (S^1/2 T S^1/2)^1/2 S^-1/2; clipped to 0..1."""
    (mean, own), (target_mean, wanted) = _moments(_colours(pictures)), target
    root = _power(own, 0.5)
    back = _power(own, -0.5)
    matrix = back @ _power(root @ wanted @ root, 0.5) @ back
    return [np.clip((picture - mean) @ matrix + target_mean, 0, 1) for picture in pictures]


def _power(matrix: Array, exponent: float) -> Array:
    """A power of a symmetric positive matrix."""
    values, vectors = np.linalg.eigh(matrix)
    power: Array = (vectors * np.maximum(values, 1e-12) ** exponent) @ vectors.T
    return power
