"""Colours: profiles of every kind are converted to sRGB, and what is sRGB already stays as it is, to the byte."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from eridiff.core.errors import DataError
from eridiff.dataset.image.decode import load_pixels, pixel_digest
from eridiff.dataset.image.header import read_header
from eridiff.dataset.image.icc import PRIMARIES, SRGB, matrix_profile
from tests.dataset.image.test_decode import chunk, pattern, png

P3 = matrix_profile("Display P3", PRIMARIES[12])
OWN = matrix_profile("somebody's sRGB", SRGB)
LCMS_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SUFFIXES = (".png", ".jpg", ".tif", ".webp", ".avif")


def lossless(suffix: str) -> dict[str, object]:
    return {".webp": {"lossless": True}, ".jpg": {"quality": 100, "subsampling": 0}, ".avif": {"quality": 100}}.get(
        suffix, {}
    )


def first(path: Path) -> tuple[int, ...]:
    colour = load_pixels(path).getpixel((0, 0))
    assert isinstance(colour, tuple)
    return colour


def near(seen: tuple[int, ...], wanted: tuple[int, ...], by: int = 1) -> bool:
    return len(seen) == len(wanted) and max(abs(a - b) for a, b in zip(seen, wanted, strict=True)) <= by


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_display_p3_is_converted(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.new("RGB", (16, 16), (200, 30, 40)).save(path, icc_profile=P3, **lossless(suffix))
    assert near(first(path), (218, 0, 27), 1 if suffix in (".png", ".tif", ".webp") else 4)
    assert read_header(path).colour == "converted to sRGB from Display P3"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("profile", [OWN, LCMS_SRGB])
def test_what_is_srgb_already_keeps_every_byte(tmp_path: Path, suffix: str, profile: bytes) -> None:
    with_profile, without = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    pattern().save(with_profile, icc_profile=profile, **lossless(suffix))
    pattern().save(without, **lossless(suffix))
    assert with_profile.read_bytes() != without.read_bytes()
    assert pixel_digest(load_pixels(with_profile)) == pixel_digest(load_pixels(without))
    assert read_header(with_profile).colour == ""


def test_conversion_is_that_of_the_definitions(tmp_path: Path) -> None:
    """Against the matrices and the curve of IEC 61966-2-1 and SMPTE EG 432-1, in floating point."""
    path = tmp_path / "a.png"
    levels = np.arange(0, 256, 17)
    rgb_PC = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.uint8)
    Image.fromarray(rgb_PC[None]).save(path, icc_profile=P3)

    def to_xyz(corners: list[tuple[float, float]]) -> np.ndarray:
        columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in corners]).T
        return columns * np.linalg.solve(columns, [0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])

    p3 = to_xyz([(0.680, 0.320), (0.265, 0.690), (0.150, 0.060)])
    srgb = to_xyz([(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)])
    v = rgb_PC / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ p3.T @ np.linalg.inv(srgb).T, 0, 1)
    wanted = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(np.asarray(load_pixels(path))[0] - wanted).max() <= 1.6  # sRGB's own curve is steep in the dark


def test_transparency_and_orientation_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = Image.new("RGBA", (4, 2), (200, 30, 40, 77))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, icc_profile=P3, exif=exif)
    assert load_pixels(path).size == (2, 4) and near(first(path), (218, 0, 27, 77))
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([0, 0, 0, 200, 30, 40])
    palette.save(path, icc_profile=P3)
    assert near(first(path), (218, 0, 27))


def test_grey_pictures(tmp_path: Path) -> None:
    """With a profile of RGB they count as grey RGB; a grey one is written by hand: gamma 1.0, so linear light."""
    path = tmp_path / "a.png"
    Image.new("L", (2, 2), 100).save(path, icc_profile=P3)
    assert first(path) == (100, 100, 100)
    for image in (Image.new("L", (2, 2), 55), Image.new("I;16", (2, 2), 55 * 257), Image.new("LA", (2, 2), (55, 9))):
        image.save(path, icc_profile=grey_profile(1.0))
        assert near(first(path)[:3], (128, 128, 128)), image.mode  # (55 / 255) ** (1 / 2.4) * 1.055 - 0.055 = 0.503
        assert "converted to sRGB from grey" in read_header(path).colour
    assert first(path)[3:] == (9,)


def test_sixteen_bits_with_a_profile(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(P3))
    row = b"\0" + struct.pack(">3H", 200 * 257, 30 * 257, 40 * 257)
    path.write_bytes(png(1, 1, bits=16, colour=2, rows=row, extra=profile))
    assert near(first(path), (218, 0, 27))


def test_cmyk_with_a_profile(tmp_path: Path) -> None:
    """Half of an ink that darkens to L* 23.5 gives L* 61.8, which is 149 of 255; by the numbers alone it is 127."""
    path = tmp_path / "a.tif"
    Image.new("CMYK", (2, 2), (0, 0, 0, 128)).save(path, icc_profile=cmyk_profile())
    assert "converted to sRGB from inks" in read_header(path).colour
    with_profile = first(path)
    Image.new("CMYK", (2, 2), (0, 0, 0, 128)).save(path)
    assert first(path) == (127, 127, 127) and read_header(path).colour == ""
    assert near(with_profile, (149, 149, 149), 2)


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        (P3[:150], "cannot be used"),
        (b"no profile at all" * 20, "cannot be used"),
        (P3[:16] + b"Luv " + P3[20:], "cannot be used"),
        (P3.replace(b"rXYZ", b"xxxx"), "cannot be used"),
        (P3[:12] + b"link" + P3[16:], "cannot be used"),
    ],
)
def test_a_damaged_profile_is_named_and_taken_as_srgb(tmp_path: Path, profile: bytes, words: str) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (16, 16), (200, 30, 40)).save(path, icc_profile=profile, quality=100, subsampling=0)
    assert near(first(path), (200, 30, 40))
    assert read_header(path).colour.startswith(f"taken as sRGB, since its colour profile {words}")


def test_absurd_and_foreign_profiles_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    black = P3
    for key in (b"rXYZ", b"gXYZ", b"bXYZ"):
        at = struct.unpack_from(">I", black, black.index(key) + 4)[0]
        black = black[: at + 8] + bytes(12) + black[at + 20 :]
    Image.new("RGB", (2, 2), (200, 30, 40)).save(path, icc_profile=black)
    assert first(path) == (200, 30, 40)
    assert "is absurd: it shows white as (0, 0, 0)" in read_header(path).colour
    Image.new("RGB", (2, 2), (200, 30, 40)).save(path, icc_profile=grey_profile(1.0))
    assert first(path) == (200, 30, 40)
    assert read_header(path).colour == "taken as sRGB, since its colour profile is for grey pictures"


def test_a_profile_that_does_not_unpack(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    row = b"\0\xc8\x1e\x28"
    path.write_bytes(png(1, 1, bits=8, colour=2, rows=row, extra=chunk(b"iCCP", b"x\0\0rubbish")))
    assert first(path) == (200, 30, 40)
    assert read_header(path).colour == "taken as sRGB, since its colour profile is damaged"


def coloured(path: Path, *chunks: bytes) -> tuple[int, ...]:
    path.write_bytes(png(1, 1, bits=8, colour=2, rows=b"\0\xc8\x1e\x28", extra=b"".join(chunks)))
    return first(path)


def gama(value: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(value * 100_000)))


def chrm(*values: float) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in values)))


def test_chunks_of_png(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    p3 = chrm(0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
    srgb = chrm(0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
    cicp = chunk(b"cICP", bytes((12, 13, 0, 1)))
    icc = chunk(b"iCCP", b"x\0\0" + zlib.compress(P3))
    same, converted = (200, 30, 40), (218, 0, 27)
    for chunks in ([gama(0.45455)], [gama(0.45455), srgb], [srgb], [chunk(b"cICP", bytes((1, 13, 0, 1)))]):
        assert coloured(path, *chunks) == same and read_header(path).colour == ""
    for chunks in ([gama(0.45455), p3], [p3], [cicp], [icc], [cicp, chunk(b"sRGB", b"\0")], [icc, gama(1.0)]):
        assert near(coloured(path, *chunks), converted), chunks
    assert coloured(path, chunk(b"sRGB", b"\0"), gama(1.0), p3) == same  # sRGB outranks both
    assert coloured(path, chunk(b"cICP", bytes((1, 13, 0, 1))), icc) == same  # cICP outranks a profile
    linear = coloured(path, gama(1.0))
    assert near(linear, (227, 96, 110), 2)  # 255 * (1.055 * (200 / 255) ** (1 / 2.4) - 0.055) = 228
    assert read_header(path).colour == "converted to sRGB from PNG's gAMA and cHRM"
    for chunks, words in (
        ([gama(0)], "since its gamma 0 is absurd"),
        ([gama(9)], "since its gamma 9 is absurd"),
        ([chrm(*[0.3] * 8)], "since it names primaries that span no triangle"),
        ([chrm(*[0.0] * 8)], "since it names chromaticities that no light has"),
        ([chunk(b"cICP", bytes((99, 13, 0, 1)))], "since its colours are not known (CICP 99/13)"),
    ):
        assert coloured(path, *chunks) == same
        assert read_header(path).colour == f"taken as sRGB, {words}"


@pytest.mark.parametrize(("transfer", "curve"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_refused(tmp_path: Path, transfer: int, curve: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(1, 1, bits=8, colour=2, rows=b"\0\0\0\0", extra=chunk(b"cICP", bytes((9, transfer, 0, 1)))))
    for read in (read_header, load_pixels):
        with pytest.raises(DataError, match=rf"a\.png: an HDR picture \({curve}\).* Save it as SDR"):
            read(path)


def test_avif_names_its_colours_by_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.avif"
    Image.new("RGB", (16, 16), (200, 30, 40)).save(path, quality=100, subsampling="4:4:4")
    data = path.read_bytes()
    at = data.index(b"colrnclx") + 8
    path.write_bytes(data[:at] + struct.pack(">H", 12) + data[at + 2 :])
    assert near(first(path), (218, 0, 27), 4)
    assert read_header(path).colour == "converted to sRGB from Display P3"


def grey_profile(gamma: float) -> bytes:
    """A grey profile of one curve, from the RGB one's parts."""
    whole = matrix_profile("grey", SRGB, gamma)
    (count,) = struct.unpack_from(">I", whole, 128)
    tags = {}
    for at in range(132, 132 + 12 * count, 12):
        key, start, size = struct.unpack_from(">4sII", whole, at)
        tags[key] = whole[start : start + size]
    return assemble(whole[:16] + b"GRAY" + whole[20:128], {
        b"desc": tags[b"desc"], b"cprt": tags[b"cprt"], b"wtpt": tags[b"wtpt"], b"kTRC": tags[b"rTRC"],
    })  # fmt: skip


def cmyk_profile() -> bytes:
    """A printer's profile (version 2) whose table has two points an ink, made of Lab: black ink darkens to L 20."""
    whole = matrix_profile("inks", SRGB)
    (count,) = struct.unpack_from(">I", whole, 128)
    tags = {}
    for at in range(132, 132 + 12 * count, 12):
        key, start, size = struct.unpack_from(">4sII", whole, at)
        tags[key] = whole[start : start + size]
    grid = io.BytesIO()
    for index in range(16):
        inks = [(index >> bit) & 1 for bit in (3, 2, 1, 0)]
        light = 255 if not any(inks) else 60 if inks[3] else 150
        grid.write(bytes((light, 128, 128)))
    ramp = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + struct.pack(">9i", *[65536 if i % 4 == 0 else 0 for i in range(9)])
    table += ramp * 4 + grid.getvalue() + ramp * 3
    head = whole[:12] + b"prtrCMYKLab " + whole[24:128]
    return assemble(head, {b"desc": tags[b"desc"], b"cprt": tags[b"cprt"], b"wtpt": tags[b"wtpt"], b"A2B0": table})


def assemble(head: bytes, tags: dict[bytes, bytes]) -> bytes:
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for key, data in tags.items():
        table += key + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    return struct.pack(">I", start + len(body)) + head[4:] + struct.pack(">I", len(tags)) + table + body
