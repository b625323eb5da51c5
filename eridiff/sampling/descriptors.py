"""Descriptors of pictures: histograms of texture, descriptors of shape, and distances between pictures.

Pictures are float32 RGB [H, W, 3] in 0..1, [N, H, W, 3] where all have one size. Plain numpy; every value is a
function of the pixels.

Texture: scale-normalised derivatives of the intensity I = (R + G + B) / 3 (Lindeberg, "Feature detection
with automatic scale selection", IJCV 30, 1998), at s = 1, 2 and 4 pixels of a picture scaled to the area 128 x 128:

    edges   s |grad (G_s * I)| / c            steps and lines
    ridges  s^2 k / c                         k: the eigenvalue of the Hessian of G_s * I with the larger |k|

G_s is a Gaussian of that deviation, c the contrast: the standard deviation of I, at least 0.02. Bright lines have
negative k, dark ones positive; a step has both, a flat area neither. The distance of two sets of pictures is the mean,
over the six features, of the 1-Wasserstein distance of their pooled histograms (the area between the cumulative
histograms: Rubner, Tomasi and Guibas, "The earth mover's distance", IJCV 40, 2000).

Shape is a histogram of oriented gradients (Dalal and Triggs, CVPR 2005) of the picture at 64 x 64: at each pixel the
channel with the steepest gradient, orientations without sign, 9 of them, cells of 8 x 8 pixels, blocks of 2 x 2 cells
normalised with clipping at 0.2.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

Array = np.ndarray[Any, np.dtype[Any]]

AREA_SIDE = 128  # texture is measured at the area of a square of this side
SCALES = (1.0, 2.0, 4.0)  # pixels, at that area
LEAST_CONTRAST = 0.02  # of a picture that is one grey all over, but for noise
MARGIN = 16  # mirrored pixels around a picture: 4 deviations of the widest Gaussian
RANGES = ((0.0, 3.0), (-3.0, 3.0))  # of edges and ridges, in contrasts; what lies beyond counts at the end
BINS_PER_UNIT = 64
SHAPE_SIDE = 64
CELL = 8
ORIENTATIONS = 9
CLIP = 0.2  # of a block's strongest votes
FAINT = 0.15  # of the mean strength of a picture's blocks: below it lies noise, which must not count as shape


def pixels_of(image: "Image") -> Array:
    """A PIL image as [H, W, 3] in 0..1."""
    pixels_HWC: Array = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    return pixels_HWC


def resized(pixels_HWC: Array, size: tuple[int, int]) -> Array:
    """A picture at (width, height), by a Lanczos filter; clipped to 0..1, not rounded."""
    from PIL import Image

    height, width = pixels_HWC.shape[:2]
    if (width, height) == size:
        return pixels_HWC
    channels = [Image.fromarray(np.ascontiguousarray(pixels_HWC[..., c])) for c in range(3)]
    scaled = [np.asarray(channel.resize(size, Image.Resampling.LANCZOS)) for channel in channels]
    clipped: Array = np.clip(np.stack(scaled, axis=-1), 0, 1)
    return clipped


def at_measure(pixels_HWC: Array) -> Array:
    """A picture scaled so that its area is that of a square of AREA_SIDE, whatever its shape."""
    height, width = pixels_HWC.shape[:2]
    scale = AREA_SIDE / (height * width) ** 0.5
    return resized(pixels_HWC, (max(1, round(width * scale)), max(1, round(height * scale))))


def texture(pictures: Iterable[Array]) -> list[Array]:
    """Pooled histograms of the six features, each of sum 1; pictures are at the measure's area already."""
    totals: list[Array] = []
    count = 0
    for pixels_HWC in pictures:
        histograms = _texture_histograms(pixels_HWC)
        totals = [total + new for total, new in zip(totals, histograms, strict=True)] if count else histograms
        count += 1
    return [total / count for total in totals]


def distance(one: Sequence[Array], other: Sequence[Array]) -> float:
    """Mean 1-Wasserstein distance of two sets of histograms, in contrasts."""
    areas = [np.abs(np.cumsum(a - b)).sum() / BINS_PER_UNIT for a, b in zip(one, other, strict=True)]
    return float(np.mean(areas))


def _texture_histograms(pixels_HWC: Array) -> list[Array]:
    """One picture's histograms: edges and ridges at each scale."""
    intensity = pixels_HWC.astype(np.float32).mean(axis=-1)
    contrast = max(float(intensity.std()), LEAST_CONTRAST)
    histograms = []
    for scale, (x, y, xx, xy, yy) in zip(SCALES, _derivatives(intensity), strict=True):
        edges = scale * np.hypot(x, y) / contrast
        middle, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
        ridges = scale**2 * np.where(middle > 0, middle + spread, middle - spread) / contrast
        histograms += [_histogram(edges, RANGES[0]), _histogram(ridges, RANGES[1])]
    return histograms


def _histogram(values: Array, span: tuple[float, float]) -> Array:
    """Shares of bins whose middles are k / BINS_PER_UNIT, so that the last bit of a 0 decides no bin."""
    last = round((span[1] - span[0]) * BINS_PER_UNIT)
    places = np.clip(np.rint((values - span[0]) * BINS_PER_UNIT), 0, last).astype(np.int64)
    shares: Array = np.bincount(places.ravel(), minlength=last + 1) / values.size
    return shares


def _derivatives(intensity_HW: Array) -> Array:
    """[scale, (x, y, xx, xy, yy), H, W]: derivatives of the smoothed intensity, by its spectrum; edges mirrored."""
    height, width = intensity_HW.shape
    margins = [(min(MARGIN, side - 1),) * 2 for side in (height, width)]
    padded = np.pad(intensity_HW, margins, mode="reflect")
    spectrum = np.fft.rfft2(padded)
    fields: Array = np.fft.irfft2(spectrum * _transfer(padded.shape), s=padded.shape)
    (top, _), (left, _) = margins
    return fields[..., top : top + height, left : left + width]


@cache
def _transfer(shape: tuple[int, int]) -> Array:
    """Spectra of the Gaussians' derivatives for pictures of a shape [H, W], in single precision."""
    v = 2 * np.pi * np.fft.fftfreq(shape[0])[:, None]
    u = 2 * np.pi * np.fft.rfftfreq(shape[1])[None, :]
    orders = np.stack([1j * u + 0 * v, 1j * v + 0 * u, -u * u + 0 * v, -u * v, -v * v + 0 * u])
    gaussians = np.stack([np.exp(-(scale**2) * (u * u + v * v) / 2) for scale in SCALES])
    spectra: Array = (gaussians[:, None] * orders).astype(np.complex64)
    return spectra


def shape_of(pixels_HWC: Array) -> Array:
    """A picture's shape descriptor, of length 1: what it outlines, hardly in which style."""
    pixels = _blurred(resized(pixels_HWC, (SHAPE_SIDE, SHAPE_SIDE)).astype(np.float64))
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    x, y = padded[1:-1, 2:] - padded[1:-1, :-2], padded[2:, 1:-1] - padded[:-2, 1:-1]
    strength = np.hypot(x, y)
    steepest = strength.argmax(axis=-1)[..., None]
    x, y, strength = (np.take_along_axis(field, steepest, axis=-1)[..., 0] for field in (x, y, strength))
    turn = np.arctan2(y, x) % np.pi / np.pi * ORIENTATIONS  # 0..9, shared between the two nearest orientations
    lower = np.floor(turn)
    share = turn - lower
    votes = np.zeros((SHAPE_SIDE, SHAPE_SIDE, ORIENTATIONS))
    rows, columns = np.indices(strength.shape)
    votes[rows, columns, lower.astype(int) % ORIENTATIONS] += strength * (1 - share)
    votes[rows, columns, (lower.astype(int) + 1) % ORIENTATIONS] += strength * share
    cells = votes.reshape(SHAPE_SIDE // CELL, CELL, SHAPE_SIDE // CELL, CELL, ORIENTATIONS).sum(axis=(1, 3))
    return _blocks(cells)


def _blurred(pixels: Array) -> Array:
    """By the binomial 1 4 6 4 1 in both directions: a Gaussian of deviation 1."""
    for axis in (0, 1):
        spans = [(2, 2) if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(pixels, spans, mode="edge")
        length = pixels.shape[axis]
        taps = ((0, 1), (1, 4), (2, 6), (3, 4), (4, 1))
        pixels = np.sum([w * np.take(padded, range(k, k + length), axis=axis) for k, w in taps], axis=0) / 16
    return pixels


def _blocks(cells: Array) -> Array:
    """Blocks of 2 x 2 cells, normalised, clipped, normalised again => one vector; faint blocks stay faint."""
    blocks = np.concatenate([cells[:-1, :-1], cells[:-1, 1:], cells[1:, :-1], cells[1:, 1:]], axis=-1)
    strengths = np.linalg.norm(blocks, axis=-1, keepdims=True)
    floor = FAINT * float(strengths.mean()) + 1e-12
    blocks = np.minimum(blocks / np.hypot(strengths, floor), CLIP)
    blocks = blocks / np.hypot(np.linalg.norm(blocks, axis=-1, keepdims=True), FAINT)
    return _unit(blocks.ravel())


def _unit(vector: Array) -> Array:
    unit: Array = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return unit


@dataclass(frozen=True)
class Drawn:
    """A picture's shape, what it was asked to show, and which draw it is (equal for equal seed and prompt)."""

    shape: Array
    subject: str
    draw: Hashable


def subject_accuracy(samples: Sequence[Drawn], bank: Sequence[Drawn]) -> float:
    """Share of samples whose nearest shape in the bank, less their own draw, is of their subject."""
    if not samples:
        raise ValueError("no samples")
    shapes = np.stack([drawn.shape for drawn in bank])
    right = 0
    for sample in samples:
        likeness = shapes @ sample.shape
        likeness[[drawn.draw == sample.draw for drawn in bank]] = -1
        right += bank[int(likeness.argmax())].subject == sample.subject
    return right / len(samples)


def difference(one: Iterable[Array], other: Iterable[Array]) -> float:
    """Mean |difference| of the pixels of two rows of pictures, 0..1."""
    return float(np.mean([np.abs(a - b).mean() for a, b in zip(one, other, strict=True)]))
