"""One picture: its header, its pixels in one normal form, and the cut that a model sees.

Sizes are (width, height). A header's size is as stored; EXIF orientations 5 to 8 swap the sides when upright.
"""

import hashlib
import io
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, JpegImagePlugin, TiffImagePlugin, WebPImagePlugin

from eridiff.core.errors import DataError
from eridiff.dataset.image.colour import Colour, colour_of, to_srgb
from eridiff.dataset.image.first_bytes import NEEDED, reader_of, what_else
from eridiff.dataset.image.orientation import BROKEN, is_turned, orientation_of, quiet

PICTURE_SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

# A bomb is a small file that unpacks to a huge picture. Above the largest camera (151 million pixels), below
# what Pillow's decoders refuse on their own account (179 million).
MAX_PIXELS = 175_000_000
MAX_WEBP = 100_000_000  # pixels of a WebP, of which Pillow's decoder makes four copies
MAX_BYTES = 2 << 30  # of a file, which is read whole: a TIFF of as many pixels, 16 bits each, as it is
LARGE = 40_000_000  # pixels, from which on a file must not unpack to more than so many times its size
MAX_UNPACKED = 500  # no photograph and no drawing does; a plain colour in PNG has a thousand
MAX_SCANNED = 10_000_000_000  # pixels, each as often as a scan of a JPEG passes it: some seconds
COUNTED_BYTES = 1 << 16  # of a file whose frames are counted one by one
SMALL, SMALL_PIXELS = 1 << 17, 16  # a picture of one colour: bytes of metadata, and pixels a byte
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


@dataclass(frozen=True, kw_only=True)
class PictureHeader:
    """What a picture's header says: stored size in pixels, EXIF orientation (1 to 8).

    colour: what becomes of its colours, for people; "" where they are sRGB's.
    doubtful: only its pixels tell whether it shows anything: it may be transparent, or is small for its size.
    """

    width: int
    height: int
    orientation: int
    colour: str = ""
    doubtful: bool = True


def read_header(path: Path) -> PictureHeader:
    """Read size and orientation; no pixel is decoded.

    Raises: DataError that names a file that is missing, empty, damaged, no picture, animated, HDR or too large.
    """
    size = _file_size(path)
    try:
        with open(path, "rb") as file:
            image, colour = _open(file, path, size)
            width, height = image.size
            orientation = orientation_of(image, file)
            if is_turned(image):
                width, height = height, width
    except OSError as error:
        raise _unreadable(path, error) from None
    unpacked = isinstance(image, BmpImagePlugin.BmpImageFile | TiffImagePlugin.TiffImageFile)
    doubtful = unpacked or image.has_transparency_data or size < SMALL + width * height // SMALL_PIXELS
    return PictureHeader(width=width, height=height, orientation=orientation, colour=colour.note, doubtful=doubtful)


def load_pixels(path: Path, expected_digest: str | None = None) -> Image.Image:
    """Decode a picture, upright, as 8-bit sRGB, or as RGBA where it has any transparency.

    expected_digest: sha256 that the file's bytes must have.
    Raises: DataError as `read_header`, and where the body is damaged or the file is not the one expected.
    """
    size = _file_size(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    if expected_digest is not None and hashlib.sha256(data).hexdigest() != expected_digest:
        raise DataError(f"{path}: changed since the captions stage ran: run `dvc repro`, which reads it again.")
    file = io.BytesIO(data)
    image, colour = _open(file, path, size)
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
        raise _damaged(path, error) from None
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
        size = _file_size(path)
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != expected_digest:
            return False
        return _open(io.BytesIO(data), path, size)[1].profile is None
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


def _file_size(path: Path) -> int:
    """Bytes of a regular file, before it is opened: a pipe would wait for its writer, a device would never end.

    Raises: DataError.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise DataError(f"{path}: no file, but a pipe, a socket or a device, or a link to one. Remove it.")
    if status.st_size > MAX_BYTES:
        raise DataError(f"{path}: {status.st_size:,} bytes, more than {MAX_BYTES:,}. Make it smaller, or remove it.")
    return status.st_size


def _open(file: IO[bytes], path: Path, size: int) -> tuple[ImageFile.ImageFile, Colour]:
    """Parse the header and refuse what is no single picture of sane size. size: of the file, in bytes."""
    start = file.read(NEEDED)
    file.seek(0)
    if not start:
        raise DataError(f"{path}: empty file (0 bytes). Copy it again from its source, or remove it.")
    reader = reader_of(start)
    if reader is None:
        raise DataError(f"{path}: {what_else(start)}")
    try:
        with quiet():
            image = reader(file)
            frames = _frames(image, size)
            colour = colour_of(image, file)
    except Image.DecompressionBombError:
        raise DataError(f"{path}: more than {MAX_PIXELS:,} pixels. Make it smaller, or remove it.") from None
    except BROKEN as error:
        raise _damaged(path, error) from None
    _refuse_bomb(image, path, size)
    if image.mode in ("I", "F"):
        raise DataError(f"{path}: 32 bits a channel. Save it with 8 or 16, or remove it.")
    if frames:
        raise DataError(f"{path}: {frames} frames or pages. Save one of them as PNG, and remove this file.")
    if colour.refused:
        raise DataError(f"{path}: {colour.refused}")
    return image, colour


def _frames(image: ImageFile.ImageFile, size: int) -> str:
    """How many frames or pages there are, "" for one; these are not counted where that would take long."""
    if not getattr(image, "is_animated", False):  # readers of single pictures have no such attribute
        return ""
    walked = isinstance(image, GifImagePlugin.GifImageFile | TiffImagePlugin.TiffImageFile)
    return "several" if walked and size > COUNTED_BYTES else str(getattr(image, "n_frames", "several"))


def _refuse_bomb(image: ImageFile.ImageFile, path: Path, size: int) -> None:
    """Refuse what would take too much memory, before a pixel is decoded."""
    pixels = image.width * image.height
    bomb = "(it may be a decompression bomb). Make it smaller, or remove it."
    limit = MAX_WEBP if isinstance(image, WebPImagePlugin.WebPImageFile) else MAX_PIXELS
    if pixels > limit:
        raise DataError(
            f"{path}: {image.width}x{image.height} is {pixels:,} pixels, more than the {limit:,} allowed {bomb}"
        )
    unpacked = pixels * len(image.getbands()) // (8 if image.mode == "1" else 1)
    if pixels > LARGE and unpacked > MAX_UNPACKED * size:
        raise DataError(
            f"{path}: {size:,} bytes unpack to {image.width}x{image.height}, {unpacked // size:,} times as many, "
            f"and above {LARGE:,} pixels at most {MAX_UNPACKED} times are allowed {bomb}"
        )


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


def _damaged(path: Path, error: BaseException) -> DataError:
    reason = str(error) or type(error).__name__
    return DataError(f"{path}: damaged picture ({reason}). Copy it again from its source, or remove it.")


def _unreadable(path: Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: missing, or a link to nothing. Restore it, or run `dvc repro` without it.")
    return DataError(f"{path}: cannot be read ({error.strerror or error}). Check its permissions.")
