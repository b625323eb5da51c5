"""Colour profiles (ICC) of matrix and curve, written from primaries and a transfer curve.

For pictures that name their colours by numbers instead of a profile: PNG's cICP, gAMA and cHRM, AVIF's nclx.
Sources: ICC.1:2022 (the file), ITU-T H.273 (the numbers), IEC 61966-2-1 (sRGB).
"""

import struct
from dataclasses import dataclass

import numpy as np

XY = tuple[float, float]

D50 = np.array([0.9642, 1.0, 0.8249])  # the white of the profile connection space
D65: XY = (0.3127, 0.3290)
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
# ((e V + f)^g, or V c below d) of a `para` curve of kind 3: g a b c d
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


@dataclass(frozen=True, kw_only=True)
class Primaries:
    """Chromaticities (x, y) of the three primaries and of white."""

    red: XY
    green: XY
    blue: XY
    white: XY = D65


SRGB = Primaries(red=(0.64, 0.33), green=(0.30, 0.60), blue=(0.15, 0.06))
# H.273, table 2, those that pictures have
PRIMARIES = {
    1: SRGB,
    4: Primaries(red=(0.67, 0.33), green=(0.21, 0.71), blue=(0.14, 0.08), white=(0.310, 0.316)),
    5: Primaries(red=(0.64, 0.33), green=(0.29, 0.60), blue=(0.15, 0.06)),
    6: Primaries(red=(0.630, 0.340), green=(0.310, 0.595), blue=(0.155, 0.070)),
    7: Primaries(red=(0.630, 0.340), green=(0.310, 0.595), blue=(0.155, 0.070)),
    9: Primaries(red=(0.708, 0.292), green=(0.170, 0.797), blue=(0.131, 0.046)),
    11: Primaries(red=(0.680, 0.320), green=(0.265, 0.690), blue=(0.150, 0.060), white=(0.314, 0.351)),
    12: Primaries(red=(0.680, 0.320), green=(0.265, 0.690), blue=(0.150, 0.060)),
}


def matrix_profile(name: str, primaries: Primaries, gamma: float | None = None) -> bytes:
    """An ICC profile (version 4) of these primaries. gamma: exponent that decodes; None: sRGB's curve.

    Raises: ValueError for primaries that span no triangle.
    """
    curve = (gamma,) if gamma else SRGB_CURVE
    trc = b"para" + struct.pack(">IHH", 0, 0 if gamma else 3, 0) + b"".join(map(_fixed, curve))
    colours = _to_d50(primaries)
    tags = [(b"desc", _words(name)), (b"cprt", _words("none")), (b"wtpt", _xyz(D50))]
    tags += [(key, _xyz(colours[:, index])) for index, key in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))]
    tags += [(key, trc) for key in (b"rTRC", b"gTRC", b"bTRC")]
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for key, data in tags:
        table += key + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"none", 0x04200000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H4s", 2000, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + _xyz(D50)[8:]
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + body


def _to_d50(primaries: Primaries) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    """Columns: XYZ of red, green and blue, adapted to D50."""
    corners = np.array([_from_xy(xy) for xy in (primaries.red, primaries.green, primaries.blue)]).T
    white = _from_xy(primaries.white)
    if abs(np.linalg.det(corners)) < 1e-4:
        raise ValueError("primaries that span no triangle")
    linear = corners * np.linalg.solve(corners, white)
    scale = (BRADFORD @ D50) / (BRADFORD @ white)
    adapted: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = (
        np.linalg.inv(BRADFORD) @ np.diag(scale) @ BRADFORD @ linear
    )
    return adapted


def _from_xy(xy: XY) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    x, y = xy
    if not (0 <= x <= 1 and 0.01 <= y <= 1):
        raise ValueError("chromaticities that no light has")
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(values: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(_fixed(float(value)) for value in values)


def _words(text: str) -> bytes:
    letters = text.encode("utf-16-be")
    return b"mluc" + struct.pack(">III2s2sII", 0, 1, 12, b"en", b"US", len(letters), 28) + letters
