"""Pictures of every format and mode, damaged at random from a seed, and files that are made to cost time or memory.

    python -m tests.picturefuzz SEED SECONDS    # mutates and reads; prints what was neither read nor refused by name

What it finds joins `corpus`.
"""

import io
import random
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from eridiff.core.errors import DataError
from eridiff.dataset.image.decode import load_pixels, pixel_digest, shows_nothing
from eridiff.dataset.image.header import read_header
from eridiff.dataset.image.icc import PRIMARIES, matrix_profile
from tests.dataset.image.test_colour import cmyk_profile, grey_profile
from tests.dataset.image.test_decode import chunk, exif, png

MAX_SECONDS = 5.0  # a file
MAX_BYTES = 1 << 30
NUMBERS = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\xff\xff", b"\xff\xff\0\0", b"\0\1\0\0")


def sound() -> list[tuple[str, bytes]]:
    """Format and bytes of small pictures that are read."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8))
    wide = {"icc_profile": matrix_profile("p3", PRIMARIES[12])}
    grey = {"icc_profile": grey_profile(1.8)}
    found: list[tuple[str, bytes]] = []

    def add(image: Image.Image, kind: str, **options: object) -> None:
        file = io.BytesIO()
        image.save(file, kind, **options)  # type: ignore[arg-type]
        found.append((kind, file.getvalue()))

    for mode in ("RGB", "RGBA", "L", "LA", "P", "1"):
        image = noise.convert(mode)
        add(image, "PNG", exif=exif(6), **(grey if mode == "L" else wide))
        add(image, "TIFF", **wide)
        if mode in ("RGB", "RGBA"):
            add(image, "WEBP", lossless=True, exif=exif(5), **wide)
            add(image, "WEBP")
            add(image, "AVIF", exif=exif(8), **wide)
        if mode in ("RGB", "L", "P", "1"):
            add(image, "BMP")
            add(image.convert("P"), "GIF")
        for compression in ("tiff_lzw", "tiff_deflate", "packbits"):
            add(image, "TIFF", compression=compression)
    add(Image.fromarray(np.arange(576, dtype=np.uint16).reshape(24, 24) * 100), "PNG", **grey)
    add(noise.convert("1"), "TIFF", compression="group4")
    for mode, profile in (("RGB", wide), ("L", grey), ("CMYK", {"icc_profile": cmyk_profile()})):
        add(noise.convert(mode), "JPEG", exif=exif(3), progressive=mode == "L", **profile)
    add(noise.convert("CMYK"), "TIFF", icc_profile=cmyk_profile())
    return found


def mutate(kind: str, data: bytes, rng: random.Random) -> bytes:
    """A damaged copy; checksums of a PNG mostly fit again, so that damage comes past them."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(changed) if rng.random() < 0.5 else min(len(changed), 200))
        what = rng.random()
        if what < 0.35:
            changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif what < 0.55:
            changed[at] ^= 1 << rng.randrange(8)
        elif what < 0.7:
            changed[at : at + 4] = rng.choice(NUMBERS)
        elif what < 0.8:
            del changed[at : at + rng.randrange(1, 40)]
        elif what < 0.9:
            changed[at:at] = changed[at : at + rng.randrange(1, 60)]
        else:
            del changed[at:]
        changed = changed or bytearray(b"x")
    return with_checksums(bytes(changed)) if kind == "PNG" and rng.random() < 0.9 else bytes(changed)


def with_checksums(data: bytes) -> bytes:
    fixed, at = data[:8], 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            return fixed + data[at:]
        fixed += chunk(kind, data[at + 8 : at + 8 + length])
        at += 12 + length
    return fixed


def damaged(seed: int) -> Iterator[bytes]:
    """Damaged pictures without end."""
    rng, seeds = random.Random(seed), sound()
    while True:
        yield mutate(*rng.choice(seeds), rng)


def read_all_ways(path: Path) -> list[str]:
    """Reads a file in all ways; what each gave: `read`, or the error's words where it was refused by name."""
    said = []
    for read in (read_header, lambda path: pixel_digest(load_pixels(path)), shows_nothing):
        try:
            read(path)
            said.append("read")
        except DataError as error:
            assert str(path) in str(error), error
            said.append(str(error).removeprefix(f"{path}: "))
    return said


def corpus() -> dict[str, bytes]:
    """Files that are made to cost much, by name: each a kilobyte to a megabyte."""
    row, much = b"\0\1\2\3", zlib.compress(bytes(64 << 20))
    tags = b"".join(struct.pack(">HHLL", tag, 1, 700_000, 8) for tag in range(60_000))

    def one(*chunks: bytes, rows: bytes = row) -> bytes:
        return png(1, 1, bits=8, colour=2, rows=rows, extra=b"".join(chunks))

    return {
        "zTXt.png": one(chunk(b"zTXt", b"k\0\0" + much)),
        "iTXt.png": one(chunk(b"iTXt", b"k\0\1\0\0\0" + much)),
        "zTXt many.png": one(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 20))) * 200),
        "iCCP.png": one(chunk(b"iCCP", b"k\0\0" + much)),
        "rows.png": one(rows=bytes(64 << 20)),
        "eXIf.png": one(chunk(b"eXIf", b"MM\0*\0\0\0\x08" + struct.pack(">H", 60_000) + tags + bytes(4))),
        "plain.png": png(13_000, 13_000, bits=8, colour=6, rows=bytes(1 << 20)),
        **gifs(),
        **tiffs(much),
        "scans.jpg": scans(),
        "canvas.webp": b"RIFF\x64\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0VP8L" + bytes(60),
    }


def gifs() -> dict[str, bytes]:
    file = io.BytesIO()
    Image.new("P", (1, 1)).save(file, "GIF")
    data = file.getvalue()
    at = data.index(b",")
    return {
        "frames.gif": data[:-1] + data[at:-1] * 50_000 + b";",
        "screen.gif": data[:6] + struct.pack("<HH", 65535, 65535) + data[10:],
        "inner.gif": data[:at] + b"," + struct.pack("<HHHH", 0, 0, 60_000, 60_000) + data[at + 9 :],
    }


def tiffs(much: bytes) -> dict[str, bytes]:
    def tiff(side: int, *more: tuple[int, int, int], after: int = 0) -> bytes:
        rows = [(256, 1, side), (257, 1, side), (258, 1, 8), (259, 1, 8), (262, 1, 1), (277, 1, 1), *more]
        body = b"".join(struct.pack("<HHLL", tag, 4, count, value) for tag, count, value in sorted(rows))
        return b"II*\0\x08\0\0\0" + struct.pack("<H", len(rows)) + body + struct.pack("<L", after)

    strip = ((273, 1, 0), (278, 1, 1), (279, 1, 1))
    start = tiff(1, *strip, after=1000)
    pages = b"".join(struct.pack("<HL", 0, 1000 + 6 * (page + 1)) for page in range(100_000))
    tile = ((322, 1, 60_000), (323, 1, 60_000), (324, 1, 300), (325, 1, len(much)))
    return {
        "tile.tif": tiff(16, *tile).ljust(300, b"\0") + much,
        "strip.tif": tiff(16, (273, 1, 300), (278, 1, 4_000_000_000), (279, 1, len(much))).ljust(300, b"\0") + much,
        "tags.tif": tiff(1, *strip, *((tag, 150_000, 8) for tag in range(1000, 51_000))),
        "pages.tif": start.ljust(1000, b"\0") + pages,
    }


def scans() -> bytes:
    """A progressive JPEG with one of its scans two thousand times."""
    file = io.BytesIO()
    Image.new("L", (3000, 3000)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 2000 + data[-2:]


def main(seed: int, seconds: float) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
    began, count, found = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.png"
        for data in damaged(seed):
            if time.monotonic() - began > seconds:
                break
            count += 1
            path.write_bytes(data)
            start = time.process_time()
            try:
                read_all_ways(path)
                problem = "slow" if time.process_time() - start > MAX_SECONDS else ""
            except Exception as error:  # whatever it is, it is what is looked for
                problem = repr(error)
            if problem:
                found += 1
                Path(f"found-{seed}-{count}.bin").write_bytes(data)
                print(f"found-{seed}-{count}.bin: {problem}")
    print(f"{count} files, {found} neither read nor refused by name")
    return found


if __name__ == "__main__":
    sys.exit(bool(main(int(sys.argv[1]), float(sys.argv[2]))))
