"""What a file is, by its first bytes: its name decides nothing."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

NEEDED = 256  # bytes that tell
RAW_SUFFIXES = (
    ".3fr", ".arw", ".cr2", ".dcr", ".dng", ".erf", ".iiq", ".k25", ".kdc", ".mef", ".mos", ".nef", ".nrw", ".orf",
    ".pef", ".raw", ".rw2", ".sr2", ".srf", ".srw",
)  # fmt: skip
"""Cameras' own formats, which begin as a TIFF does: a reader of TIFF finds their small preview, or nothing."""

SAVE = "Save it as PNG or JPEG, or remove it."
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
LFS = (
    "a pointer of git-lfs, not the file itself. Run `git lfs pull` in the repository that it comes from and copy it "
    "again, or remove it."
)
PAGE = "a web page (HTML), not the picture that it shows. Download the picture itself, or remove it."
OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"8BPS", "a Photoshop file (PSD)"),
    (b"\xff\x0a", "a JPEG XL picture, which is not read, whatever its name"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture, which is not read, whatever its name"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture, which is not read, whatever its name"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture, which is not read, whatever its name"),
    (b"FUJIFILM", "a raw file of a camera"),
    (b"IIU\0", "a raw file of a camera"),
    (b"gimp xcf", "a GIMP file (XCF)"),
    (b"\x76\x2f\x31\x01", "an OpenEXR picture, which is not read, whatever its name"),
    (b"%PDF", "no picture, but a PDF"),
    (b"PK\x03\x04", "no picture, but an archive (ZIP)"),
    (b"\x1f\x8b", "no picture, but an archive (gzip)"),
    (b"\x1a\x45\xdf\xa3", "no picture, but a video"),
)

Reader = Callable[[IO[bytes]], ImageFile.ImageFile]


def reader_of(start: bytes) -> Reader | None:
    """The reader for a file that starts so; None for what is no picture, or of a kind that is not read.

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
    if start[4:8] == b"ftyp" and start[8:12] in (b"avif", b"avis", b"mif1", b"msf1") and not _is_heic(start):
        return AvifImagePlugin.AvifImageFile
    return None


def what_else(start: bytes) -> str:
    """What a file is that no reader takes, and the way out, as far as its start tells."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return LFS
    if _is_heic(start):
        return f"a HEIC picture, which is not read, whatever its name. {SAVE}"
    if start[4:8] == b"ftyp":
        kind = "a raw file of a camera" if start[8:11] == b"crx" else "no picture, but a video"
        return f"{kind}. {SAVE}"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return PAGE
    if text.startswith(b"<"):
        kind = "a drawing (SVG)" if b"<svg" in text else "no picture, but text that starts with '<', as a web page"
        return f"{kind}. {SAVE}"
    kind = next((words for mark, words in OTHERS if start.startswith(mark)), "")
    return f"{kind or 'no picture, or of a kind that is not read'}. {SAVE}"


def is_picture(path: Path) -> bool:
    """Whether a file begins as a picture that is read; False for what is no file or cannot be opened."""
    return reader_of(first_bytes(path)) is not None and path.suffix.lower() not in RAW_SUFFIXES


def first_bytes(path: Path) -> bytes:
    """The start of a file; nothing of what is no regular file, or cannot be opened."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for its writer
            return b""
        with open(path, "rb") as file:
            return file.read(NEEDED)
    except OSError:
        return b""


def _is_heic(start: bytes) -> bool:
    """Whether the brands say HEVC: of a file whose first brand is common to HEIC and AVIF, the others tell."""
    if start[4:8] != b"ftyp":
        return False
    brands = {start[8:12], *(start[at : at + 4] for at in range(16, min(len(start), start[3]), 4))}
    return bool(brands & set(HEIC)) and not brands & {b"avif", b"avis"}
