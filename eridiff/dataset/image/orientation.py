"""Which side of a picture is up, as its EXIF data say."""

import io
import struct
import warnings
from typing import IO

from PIL import ExifTags, Image, ImageFile, PngImagePlugin, TiffImagePlugin

# What Pillow's readers raise on damaged files.
BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, RuntimeError,
    struct.error, Image.DecompressionBombError,
)  # fmt: skip


def quiet() -> warnings.catch_warnings:
    """Silence Pillow's remarks on odd metadata and large sizes: what matters is an error here."""
    return warnings.catch_warnings(action="ignore")


def orientation_of(image: ImageFile.ImageFile, file: IO[bytes]) -> int:
    """EXIF orientation; 1 where there is none or its data are damaged."""
    try:
        if isinstance(image, PngImagePlugin.PngImageFile) and "exif" not in image.info:
            late = _late_exif(file)
            if late:
                image.info["exif"] = b"Exif\0\0" + late
        with quiet():
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


def is_turned(image: ImageFile.ImageFile) -> bool:
    """Whether the reader has swapped the sides already, as it does for a turned TIFF."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    return image.tag_v2.get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
