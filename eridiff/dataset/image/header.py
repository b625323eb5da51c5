"""A picture's header: its stored size and orientation, and the refusal of files that are no single picture.

Sizes are (width, height). A header's size is as stored; EXIF orientations 5 to 8 swap the sides when upright.
"""

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, TiffImagePlugin, WebPImagePlugin

from eridiff.core.errors import DataError
from eridiff.dataset.image.colour import Colour, colour_of
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
COUNTED_BYTES = 1 << 16  # of a file whose frames are counted one by one
SMALL, SMALL_PIXELS = 1 << 17, 16  # a picture of one colour: bytes of metadata, and pixels a byte


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
    size = file_size(path)
    try:
        with open(path, "rb") as file:
            image, colour = open_picture(file, path, size)
            width, height = image.size
            orientation = orientation_of(image, file)
            if is_turned(image):
                width, height = height, width
    except OSError as error:
        raise unreadable(path, error) from None
    unpacked = isinstance(image, BmpImagePlugin.BmpImageFile | TiffImagePlugin.TiffImageFile)
    doubtful = unpacked or image.has_transparency_data or size < SMALL + width * height // SMALL_PIXELS
    return PictureHeader(width=width, height=height, orientation=orientation, colour=colour.note, doubtful=doubtful)


def file_size(path: Path) -> int:
    """Bytes of a regular file, before it is opened: a pipe would wait for its writer, a device would never end.

    Raises: DataError.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable(path, error) from None
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise DataError(f"{path}: no file, but a pipe, a socket or a device, or a link to one. Remove it.")
    if status.st_size > MAX_BYTES:
        raise DataError(f"{path}: {status.st_size:,} bytes, more than {MAX_BYTES:,}. Make it smaller, or remove it.")
    return status.st_size


def open_picture(file: IO[bytes], path: Path, size: int) -> tuple[ImageFile.ImageFile, Colour]:
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
        raise damaged(path, error) from None
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


def damaged(path: Path, error: BaseException) -> DataError:
    """The error for a picture that cannot be parsed or decoded."""
    reason = str(error) or type(error).__name__
    return DataError(f"{path}: damaged picture ({reason}). Copy it again from its source, or remove it.")


def unreadable(path: Path, error: OSError) -> DataError:
    """The error for a file that cannot be opened."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: missing, or a link to nothing. Restore it, or run `dvc repro` without it.")
    return DataError(f"{path}: cannot be read ({error.strerror or error}). Check its permissions.")
