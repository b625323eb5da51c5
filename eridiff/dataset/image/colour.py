"""Which colours a picture's numbers mean, and the same colours in sRGB, which is what models are trained on.

A profile (ICC) in the file counts, of RGB, grey or CMYK; without one PNG's cICP, then sRGB, then gAMA and cHRM, and
AVIF's nclx. Nothing of these: sRGB. A profile that gives sRGB's colours already changes no byte.

Conversion is LittleCMS's, in 8 bits: relative colorimetric with black point compensation, as image editors do. White
stays white, and what sRGB cannot show is clipped.
"""

import io
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Literal

import numpy as np
from PIL import AvifImagePlugin, Image, ImageCms, ImageFile, PngImagePlugin

from eridiff.dataset.image.icc import PRIMARIES, SRGB, Primaries, matrix_profile

MAX_PROFILE = 16 << 20  # bytes; the largest of printers have 3 million
NEAR = 2  # of 255: a profile that moves no colour further is sRGB's own, as rounded by who wrote it
USUAL_GAMMA = (0.43, 0.48)  # of gAMA: 1/2.2, by which PNG's writers mean sRGB
HDR = {16: "PQ", 18: "HLG"}  # H.273, table 3
CURVES_LIKE_SRGB = (1, 2, 6, 13, 14, 15)  # video's curves, which viewers of pictures show as sRGB's; 2: not said
EXPONENTS = {4: 2.2, 5: 2.8, 8: 1.0}
GRID = tuple(range(0, 256, 15))
MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}

Kind = Literal["srgb", "foreign", "broken"]


@dataclass(frozen=True, kw_only=True)
class Colour:
    """What a picture says of its colours.

    profile: to convert from, None where the numbers are taken as sRGB. note: for people, "" for plain sRGB.
    refused: why the picture cannot be used.
    """

    profile: bytes | None = None
    note: str = ""
    refused: str = ""


PLAIN = Colour()


def colour_of(image: ImageFile.ImageFile, file: IO[bytes]) -> Colour:
    """The colours of a picture whose header was read; no pixel is decoded. file: its bytes, anywhere."""
    profile = image.info.get("icc_profile")
    numbers = _cicp(image, file)
    damaged = "icc_profile" in image.info and not profile  # as Pillow says of one that does not unpack
    if numbers and isinstance(image, PngImagePlugin.PngImageFile):
        return _from_numbers(*numbers)
    if isinstance(profile, bytes) and profile:
        return _from_profile(profile, image.mode)
    if numbers:
        return _from_numbers(*numbers)
    if damaged:
        return Colour(note="taken as sRGB, since its colour profile is damaged")
    if isinstance(image, PngImagePlugin.PngImageFile) and "srgb" not in image.info:
        return _from_gamma(image.info.get("gamma"), image.info.get("chromaticity"))
    return PLAIN


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """A picture of mode RGB, RGBA or CMYK, whose profile is foreign, in sRGB; transparency stays."""
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    mode, transform = _transform(profile)
    if image.mode != mode:
        image = image.getchannel("R") if mode == "L" else image.convert("RGB")
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _from_profile(profile: bytes, mode: str) -> Colour:
    kind, words = _judge(profile, mode == "CMYK", mode in ("1", "L", "LA", "I;16", "I;16B", "I;16L", "I;16N"))
    if kind == "broken":
        return Colour(note=f"taken as sRGB, since its colour profile {words}")
    if curve := HDR.get(_transfer_of(profile)):
        return Colour(refused=_hdr(curve))
    return Colour(profile=profile, note=f"converted to sRGB from {words}") if kind == "foreign" else PLAIN


def _from_numbers(primaries: int, transfer: int) -> Colour:
    """primaries, transfer: as H.273 numbers them."""
    if transfer in HDR:
        return Colour(refused=_hdr(HDR[transfer]))
    if primaries == 2:  # not said
        primaries = 1
    known = primaries in PRIMARIES and (transfer in CURVES_LIKE_SRGB or transfer in EXPONENTS)
    if not known:
        return Colour(note=f"taken as sRGB, since its colours are not known (CICP {primaries}/{transfer})")
    if primaries in (1, 5, 6, 7) and transfer in CURVES_LIKE_SRGB:
        return PLAIN
    name = {9: "Rec. 2020", 12: "Display P3"}.get(primaries, f"CICP {primaries}/{transfer}")
    return _foreign(name, PRIMARIES[primaries], EXPONENTS.get(transfer))


def _from_gamma(gamma: float | None, chromaticity: tuple[float, ...] | None) -> Colour:
    """PNG's gAMA and cHRM: of a file without profile and without the chunk sRGB."""
    usual = gamma is None or USUAL_GAMMA[0] <= gamma <= USUAL_GAMMA[1]
    if gamma is not None and not 0.2 <= gamma <= 2:
        return Colour(note=f"taken as sRGB, since its gamma {gamma:g} is absurd")
    primaries = SRGB
    if chromaticity is not None:
        white, red, green, blue = ((chromaticity[at], chromaticity[at + 1]) for at in (0, 2, 4, 6))
        primaries = Primaries(red=red, green=green, blue=blue, white=white)
    if usual and chromaticity is None:
        return PLAIN
    return _foreign("PNG's gAMA and cHRM", primaries, None if usual or gamma is None else 1 / gamma)


def _foreign(name: str, primaries: Primaries, gamma: float | None) -> Colour:
    try:
        return _from_profile(matrix_profile(name, primaries, gamma), "RGB")
    except ValueError as error:
        return Colour(note=f"taken as sRGB, since it names {error}")


def _hdr(curve: str) -> str:
    return f"an HDR picture ({curve}), which has no one look in 8 bits. Save it as SDR (sRGB), or remove it."


@lru_cache(maxsize=256)
def _judge(profile: bytes, cmyk: bool, grey: bool) -> tuple[Kind, str]:
    """What a profile is for a picture that is CMYK, grey or RGB: its kind, and its name or what is wrong with it."""
    if len(profile) > MAX_PROFILE:
        return "broken", f"has {len(profile):,} bytes"
    try:
        mode, transform = _transform(profile)
        if (mode == "CMYK") != cmyk or (mode == "L" and not grey):
            return "broken", f"is for {mode if mode != 'L' else 'grey'} pictures"
        probe = _probe(mode)
        seen = np.asarray(ImageCms.applyTransform(probe, transform)).astype(int)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, KeyError) as error:
        return "broken", f"cannot be used ({_printable(str(error)) or type(error).__name__})"
    white, black = (seen[0, -1], seen[0, 0]) if mode != "CMYK" else (seen[0, 0], seen[0, -1])
    if white.min() < 160 or black.max() > 120 or white.min() <= black.max():
        return "broken", f"is absurd: it shows white as {tuple(white.tolist())} and black as {tuple(black.tolist())}"
    if mode != "CMYK" and np.abs(seen - np.asarray(probe.convert("RGB"))).max() <= NEAR:
        return "srgb", "sRGB"
    return "foreign", _name(profile)


@lru_cache(maxsize=32)
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform]:
    """A profile's mode, and what converts pictures of it to sRGB.

    Raises: PyCMSError, OSError, KeyError for what is no profile of RGB, grey or CMYK.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    mode = MODES[source.profile.xcolor_space.strip()]
    transform = ImageCms.buildTransform(
        source,
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    return mode, transform


def _probe(mode: str) -> Image.Image:
    """One row of colours from all zeros to all 255, through all of the space."""
    bands = 1 if mode == "L" else 3
    grid = np.stack(np.meshgrid(*[GRID] * bands, indexing="ij"), axis=-1).reshape(1, -1, bands).astype(np.uint8)
    if mode == "L":
        return Image.fromarray(grid[:, :, 0])
    if mode == "RGB":
        return Image.fromarray(grid)
    black = np.full_like(grid[:, :, :1], 0)
    black[0, -1] = 255
    return Image.frombytes("CMYK", (grid.shape[1], 1), np.concatenate([grid, black], axis=-1).tobytes())


def _name(profile: bytes) -> str:
    try:
        words = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        words = ""
    return _printable(words) or "a profile without a name"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()[:60]


def _transfer_of(profile: bytes) -> int:
    """The curve's number in a profile's tag `cicp`; 0 without one."""
    (count,) = struct.unpack_from(">I", profile, 128)
    for at in range(132, min(132 + 12 * count, len(profile) - 11), 12):
        key, start, _ = struct.unpack_from(">4sII", profile, at)
        if key == b"cicp" and start + 12 <= len(profile):
            return int(profile[start + 9])
    return 0


def _cicp(image: ImageFile.ImageFile, file: IO[bytes]) -> tuple[int, int] | None:
    """Primaries and transfer by H.273's numbers, of a PNG's cICP or an AVIF's nclx."""
    here = file.tell()
    try:
        if isinstance(image, PngImagePlugin.PngImageFile):
            return _png_cicp(file)
        if isinstance(image, AvifImagePlugin.AvifImageFile):
            file.seek(0)
            start = file.read(1 << 16)
            at = start.find(b"colrnclx")
            if at >= 0 and len(start) >= at + 12:
                primaries, transfer = struct.unpack_from(">HH", start, at + 8)
                return primaries, transfer
        return None
    finally:
        file.seek(here)


def _png_cicp(file: IO[bytes]) -> tuple[int, int] | None:
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IDAT":
            break
        if kind == b"cICP" and length == 4:
            primaries, transfer, _, _ = file.read(4)
            return primaries, transfer
        file.seek(length + 4, io.SEEK_CUR)
    return None
