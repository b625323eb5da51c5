"""One picture: its header, its pixels in one normal form, and the cut that a model sees.

Sizes are (width, height). A header's size is as stored; EXIF orientations 5 to 8 swap the sides when upright.
"""

import hashlib
import io
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from eridiff.errors import DataError

PICTURE_SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

# A bomb is a small file that unpacks to a huge picture. Above the largest camera (151 million pixels), below
# what Pillow's decoders refuse on their own account (179 million).
MAX_PIXELS = 175_000_000

# Cameras and scanners also store 8, 10 or 12 bits in 16; the upper 8 of these are next to nothing.
DARK = 1 << 12

AlphaRule = Literal["white", "black", "grey"]
Resample = Literal["lanczos", "bicubic", "area"]
ALPHA_COLOURS: dict[AlphaRule, int] = {"white": 255, "black": 0, "grey": 128}
FILTERS: dict[Resample, Image.Resampling] = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
}
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's readers raise on damaged files.
BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, RuntimeError,
    struct.error, Image.DecompressionBombError,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PictureHeader:
    """What a picture's header says: stored size in pixels and EXIF orientation (1 to 8)."""

    width: int
    height: int
    orientation: int


def read_header(path: Path) -> PictureHeader:
    """Read size and orientation; no pixel is decoded.

    Raises: DataError that names a file that is missing, empty, damaged, no picture, animated or too large.
    """
    try:
        with open(path, "rb") as file:
            image = _open(file, path)
            width, height = image.size
            orientation = _orientation(image, file)
            if _turned_by_pillow(image):
                width, height = height, width
    except OSError as error:
        raise _unreadable(path, error) from None
    return PictureHeader(width=width, height=height, orientation=orientation)


def load_pixels(path: Path, expected_digest: str | None = None) -> Image.Image:
    """Decode a picture, upright, as 8-bit RGB, or as RGBA where it has any transparency.

    expected_digest: sha256 that the file's bytes must have.
    Raises: DataError as `read_header`, and where the body is damaged or the file is not the one expected.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    if expected_digest is not None and hashlib.sha256(data).hexdigest() != expected_digest:
        raise DataError(f"{path}: changed since the captions stage ran: run `dvc repro`, which reads it anew.")
    file = io.BytesIO(data)
    image = _open(file, path)
    orientation = 1 if isinstance(image, TiffImagePlugin.TiffImageFile) else _orientation(image, file)
    try:
        with _quiet():
            image.load()  # turns a TIFF upright
            if image.mode.startswith("I;16") and 0 < (brightest := int(np.asarray(image).max())) < DARK:
                raise DataError(
                    f"{path}: 16 bits a channel, of which the brightest value is {brightest} of 65535: it would be "
                    "read as black. Save it with 8 bits, or stretched to 16, or remove it."
                )
            pixels = _normalise(image)
    except BROKEN as error:
        raise _damaged(path, error) from None
    return pixels.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else pixels


def pixel_digest(image: Image.Image) -> str:
    """sha256 (hex) over mode, size and bytes of a normalised picture: equal pixels, equal digest."""
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\n".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def crop_picture(
    image: Image.Image,
    *,
    alpha: AlphaRule,
    resample: Resample,
    resize: tuple[int, int],
    crop: tuple[int, int],
    size: tuple[int, int],
    flip: bool,
) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Cut a normalised picture for its bucket: flatten alpha on a colour, resize, crop, mirror.

    resize, size: (width, height); crop: (left, top) in the resized picture. Returns: uint8 HWC, RGB.
    Transparency goes before resizing, else hidden colours would bleed into the edges.
    """
    (left, top), (width, height) = crop, size
    assert 0 <= left <= resize[0] - width and 0 <= top <= resize[1] - height, (resize, crop, size)
    if image.mode == "RGBA":
        ground = Image.new("RGBA", image.size, (ALPHA_COLOURS[alpha],) * 3 + (255,))
        image = Image.alpha_composite(ground, image).convert("RGB")
    if image.size != resize:
        image = image.resize(resize, FILTERS[resample])
    pixels_HWC = np.asarray(image, dtype=np.uint8)[top : top + height, left : left + width]
    return np.ascontiguousarray(pixels_HWC[:, ::-1] if flip else pixels_HWC)


def _quiet() -> warnings.catch_warnings:
    """Silence Pillow's remarks on odd metadata and large sizes: what matters is an error here."""
    return warnings.catch_warnings(action="ignore")


def _reader(start: bytes) -> Callable[[IO[bytes]], ImageFile.ImageFile] | None:
    """The reader for a file that starts so, whatever its name.

    Not `Image.open`: it judges sizes by a global, and takes a camera's JPEG with a preview as two frames.
    """
    if start.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.JpegImageFile
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    if start.startswith((b"GIF87a", b"GIF89a")):
        return GifImagePlugin.GifImageFile
    if start.startswith(b"BM"):
        return BmpImagePlugin.BmpImageFile
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return TiffImagePlugin.TiffImageFile
    if start[4:8] == b"ftyp" and start[8:12] in (b"avif", b"avis", b"mif1", b"msf1"):
        return AvifImagePlugin.AvifImageFile
    return None


def _what_else(start: bytes) -> str:
    """What a file is that no reader takes, as far as its start tells."""
    if start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"heim", b"heis"):
        return "a HEIC picture, which is not read, whatever its name"
    if start.lstrip().startswith(b"<"):
        return "no picture, but text that starts with '<', as a web page"
    return "no picture, or of a kind that is not read"


def _open(file: IO[bytes], path: Path) -> ImageFile.ImageFile:
    """Parse the header and refuse what is no single picture of sane size."""
    start = file.read(16)
    file.seek(0)
    if not start:
        raise DataError(f"{path}: empty file (0 bytes). Copy it again from its source, or remove it.")
    reader = _reader(start)
    if reader is None:
        raise DataError(f"{path}: {_what_else(start)}. Save it as PNG or JPEG, or remove it.")
    try:
        with _quiet():
            image = reader(file)
            frames = getattr(image, "n_frames", 1)  # readers of single pictures have no such attribute
    except Image.DecompressionBombError:
        raise DataError(f"{path}: more than {MAX_PIXELS:,} pixels. Make it smaller, or remove it.") from None
    except BROKEN as error:
        raise _damaged(path, error) from None
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise DataError(
            f"{path}: {image.width}x{image.height} is {pixels:,} pixels, more than the {MAX_PIXELS:,} "
            "allowed (it may be a decompression bomb). Make it smaller, or remove it."
        )
    if image.mode in ("I", "F"):
        raise DataError(f"{path}: 32 bits a channel. Save it with 8 or 16, or remove it.")
    if frames > 1:
        raise DataError(f"{path}: {frames} frames or pages. Save one of them as PNG, and remove this file.")
    return image


def _orientation(image: ImageFile.ImageFile, file: IO[bytes]) -> int:
    """EXIF orientation; 1 where there is none or its data are damaged."""
    try:
        if isinstance(image, PngImagePlugin.PngImageFile) and "exif" not in image.info:
            late = _late_exif(file)
            if late:
                image.info["exif"] = b"Exif\0\0" + late
        with _quiet():
            value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)  # PNG's own would decode
    except BROKEN:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _late_exif(file: IO[bytes]) -> bytes | None:
    """The eXIf chunk of a PNG, which ImageMagick writes after the pixels, where no header parser looks."""
    here = file.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                return file.read(length)
            file.seek(length + 4, io.SEEK_CUR)
        return None
    finally:
        file.seek(here)


def _turned_by_pillow(image: ImageFile.ImageFile) -> bool:
    """Whether the reader has swapped the sides already, as it does for a turned TIFF."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    return image.tag_v2.get(ExifTags.Base.Orientation) in (5, 6, 7, 8)


def _normalise(image: Image.Image) -> Image.Image:
    """Any mode => RGB, or RGBA where there is transparency. 16 bits => the upper 8, as for 16-bit RGB."""
    transparent = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        values_HW = np.asarray(image)
        grey = Image.fromarray((values_HW >> 8).astype(np.uint8))
        if transparent is None:
            return grey.convert("RGB")
        opaque = Image.fromarray(np.where(values_HW == transparent, 0, 255).astype(np.uint8))
        return Image.merge("RGBA", (grey, grey, grey, opaque))
    if isinstance(transparent, tuple) and max(transparent) > 255:  # of a 16-bit RGB picture
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _damaged(path: Path, error: BaseException) -> DataError:
    reason = str(error) or type(error).__name__
    return DataError(f"{path}: damaged picture ({reason}). Copy it again from its source, or remove it.")


def _unreadable(path: Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: missing, or a link to nothing. Restore it, or run `dvc repro` without it.")
    return DataError(f"{path}: cannot be read ({error.strerror or error}). Check its permissions.")
