"""The pixels of a picture: decoded to upright sRGB, their digest, and the crop that a model sees.

Sizes are (width, height).
"""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin, TiffImagePlugin

from eridiff.core.errors import DataError
from eridiff.dataset.image.colour import to_srgb
from eridiff.dataset.image.header import damaged, file_size, open_picture, unreadable
from eridiff.dataset.image.orientation import BROKEN, orientation_of, quiet

MAX_SCANNED = 10_000_000_000  # pixels, each as often as a scan of a JPEG passes it: some seconds
BAND = 1 << 22  # pixels that are worked on at a time where a copy of all would only cost memory

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


def load_pixels(path: Path, expected_digest: str | None = None) -> Image.Image:
    """Decode a picture, upright, as 8-bit sRGB, or as RGBA where it has any transparency.

    expected_digest: sha256 that the file's bytes must have.
    Raises: DataError as `read_header`, and where the body is damaged or the file is not the one expected.
    """
    size = file_size(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None
    if expected_digest is not None and hashlib.sha256(data).hexdigest() != expected_digest:
        raise DataError(f"{path}: changed since the captions stage ran: run `dvc repro`, which reads it again.")
    file = io.BytesIO(data)
    image, colour = open_picture(file, path, size)
    _refuse_scans(image, data, path)
    orientation = 1 if isinstance(image, TiffImagePlugin.TiffImageFile) else orientation_of(image, file)
    try:
        with quiet():
            image.load()  # turns a TIFF upright
            if image.mode.startswith("I;16") and 0 < (brightest := int(np.asarray(image).max())) < DARK:
                raise DataError(
                    f"{path}: 16 bits a channel, of which the brightest value is {brightest} of 65535: it would be "
                    "read as black. Save it with 8 bits, or stretched to 16, or remove it."
                )
            pixels = _normalise(image, colour.profile)
    except BROKEN as error:
        raise damaged(path, error) from None
    return pixels.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else pixels


def shows_nothing(path: Path) -> str:
    """Why a picture shows nothing, "" where it shows something, or cannot be decoded (who decodes it later says why).

    JPEG and its like do not keep one colour exactly: two levels of 255 are one colour.
    """
    try:
        image = load_pixels(path)
    except DataError:
        return ""
    if image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return "fully transparent"
    bands = [band.getextrema() for band in image.split()]
    return "of one colour" if all(high - low <= 2 for low, high in bands) else ""  # type: ignore[operator]


def _refuse_scans(image: ImageFile.ImageFile, data: bytes, path: Path) -> None:
    """Refuse a JPEG whose decoding would take minutes: each of its scans, empty ones too, passes all of the picture."""
    scans = data.count(b"\xff\xda") if isinstance(image, JpegImagePlugin.JpegImageFile) else 0
    if scans * image.width * image.height > MAX_SCANNED:
        raise DataError(
            f"{path}: {scans} scans of {image.width}x{image.height} would take minutes. Save it as PNG, or remove it."
        )


def keeps_its_numbers(path: Path, expected_digest: str) -> bool:
    """Whether a picture's numbers are taken as sRGB, as those of all pictures once were; no pixel is decoded.

    False too where the file is not the one expected, or cannot be used.
    """
    try:
        size = file_size(path)
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != expected_digest:
            return False
        return open_picture(io.BytesIO(data), path, size)[1].profile is None
    except (OSError, DataError):
        return False


def pixel_digest(image: Image.Image) -> str:
    """sha256 (hex) over mode, size and bytes of a normalised picture: equal pixels, equal digest."""
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\n".encode())
    for band in _bands(image):
        digest.update(image.crop(band).tobytes())
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
        image = _flatten(image, ALPHA_COLOURS[alpha])
    if image.size != resize:
        image = image.resize(resize, FILTERS[resample])
    pixels_HWC = np.asarray(image.crop((left, top, left + width, top + height)), dtype=np.uint8)
    return np.ascontiguousarray(pixels_HWC[:, ::-1] if flip else pixels_HWC)


def _bands(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of whole rows, from top to bottom."""
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _flatten(image: Image.Image, grey: int) -> Image.Image:
    """RGBA on a ground of one grey, RGB."""
    flat = Image.new("RGB", image.size)
    for band in _bands(image):
        part = image.crop(band)
        ground = Image.new("RGBA", part.size, (grey,) * 3 + (255,))
        flat.paste(Image.alpha_composite(ground, part).convert("RGB"), band[:2])
    return flat


def _normalise(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Any mode => RGB, or RGBA where there is transparency, in sRGB. profile: of its colours, None where sRGB."""
    if profile is None:
        return _as_rgb(image)
    return to_srgb(image if image.mode == "CMYK" else _as_rgb(image), profile)


def _as_rgb(image: Image.Image) -> Image.Image:
    """The numbers as they are. 16 bits => the upper 8, as for 16-bit RGB."""
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
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)  # converting to its own mode is a copy
