"""One picture: header, pixels, crop, and every kind of bad file."""

import hashlib
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eridiff.core.errors import DataError
from eridiff.dataset.image.decode import crop_picture, load_pixels, pixel_digest
from eridiff.dataset.image.header import read_header

ROWS, COLUMNS = np.mgrid[0:24, 0:40]
PATTERN_HWC = np.stack([COLUMNS * 6, ROWS * 10, (COLUMNS + ROWS) * 3], axis=-1).astype(np.uint8)


def pattern() -> Image.Image:
    return Image.fromarray(PATTERN_HWC)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, bits: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    return data


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".gif", ".tif", ".webp", ".avif", ".jpg"])
def test_header_and_pixels_of_every_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    pattern().save(path, **({"lossless": True} if suffix == ".webp" else {}))
    header = read_header(path)
    assert (header.width, header.height, header.orientation) == (40, 24, 1)
    image = load_pixels(path)
    assert (image.mode, image.size) == ("RGB", (40, 24))
    error = np.abs(np.asarray(image).astype(int) - PATTERN_HWC).mean()
    assert error == 0 if suffix in (".png", ".bmp", ".tif", ".webp") else error < 6


def test_the_name_does_not_decide_the_format(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    pattern().save(path, format="PNG")
    assert np.array_equal(np.asarray(load_pixels(path)), PATTERN_HWC)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"a{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    pattern().save(path, exif=exif(orientation), **options)
    header = read_header(path)
    assert (header.width, header.height, header.orientation) == (40, 24, orientation)  # as stored
    # EXIF 2.32, table of orientations: where the stored row 0 and column 0 are seen
    upright = {
        1: PATTERN_HWC,
        2: PATTERN_HWC[:, ::-1],
        3: PATTERN_HWC[::-1, ::-1],
        4: PATTERN_HWC[::-1],
        5: PATTERN_HWC.transpose(1, 0, 2),
        6: np.rot90(PATTERN_HWC, -1),
        7: PATTERN_HWC[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(PATTERN_HWC, 1),
    }[orientation]
    assert np.array_equal(np.asarray(load_pixels(path)), upright)


def test_exif_after_the_pixels_of_a_png_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    pattern().save(path)
    data = path.read_bytes()
    late = chunk(b"eXIf", exif(6).tobytes().removeprefix(b"Exif\0\0"))
    path.write_bytes(data[:-12] + late + data[-12:])
    assert read_header(path).orientation == 6
    assert load_pixels(path).size == (24, 40)


@pytest.mark.parametrize("data", [b"Exif\0\0rubbish", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\0\0", b"Exif\0\0"])
def test_damaged_exif_counts_as_none(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.jpg"
    pattern().save(path, exif=data)
    assert read_header(path).orientation == 1
    assert load_pixels(path).size == (40, 24)


def test_an_orientation_out_of_range_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    pattern().save(path, exif=exif(9))
    assert read_header(path).orientation == 1


def test_modes_become_rgb(tmp_path: Path) -> None:
    grey = PATTERN_HWC[:, :, 0]
    path = tmp_path / "a.png"
    for image in (Image.fromarray(grey), Image.fromarray(grey).convert("P")):
        image.save(path)
        loaded = load_pixels(path)
        assert loaded.mode == "RGB"
        assert np.array_equal(np.asarray(loaded), np.stack([grey] * 3, axis=-1))
    Image.new("1", (2, 1), 1).save(path)
    assert load_pixels(path).getpixel((0, 0)) == (255, 255, 255)
    Image.new("CMYK", (2, 1), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    assert load_pixels(tmp_path / "a.tif").getpixel((0, 0)) == (255, 0, 0)


def test_16_bits_keep_the_upper_8(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 0x8000, 0xFFFF]], dtype=np.uint16)
    path = tmp_path / "a.png"
    Image.fromarray(values).save(path)
    assert np.asarray(load_pixels(path))[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    colour = b"\0" + struct.pack(">6H", 0, 0x8000, 0xFFFF, 0x1234, 0, 0)
    path.write_bytes(png(2, 1, bits=16, colour=2, rows=colour))
    assert np.asarray(load_pixels(path)).tolist() == [[[0, 128, 255], [0x12, 0, 0]]]


def test_transparency_becomes_rgba(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("LA", (2, 1), (9, 7)).save(path)
    assert load_pixels(path).getpixel((0, 0)) == (9, 9, 9, 7)
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(path, transparency=b"\xff\x40")
    assert load_pixels(path).getpixel((0, 0)) == (10, 20, 30, 0x40)
    rgb = Image.new("RGB", (2, 1), (1, 2, 3))
    rgb.putpixel((1, 0), (4, 5, 6))
    rgb.save(path, transparency=(1, 2, 3))
    assert [load_pixels(path).getpixel((x, 0))[3] for x in (0, 1)] == [0, 255]


def test_transparent_colour_of_16_bit_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    grey = b"\0" + struct.pack(">2H", 0x1234, 0x1235)
    path.write_bytes(png(2, 1, bits=16, colour=0, rows=grey, extra=chunk(b"tRNS", struct.pack(">H", 0x1234))))
    assert [load_pixels(path).getpixel((x, 0)) for x in (0, 1)] == [(18, 18, 18, 0), (18, 18, 18, 255)]
    colour = b"\0" + struct.pack(">6H", 0x1200, 0x3400, 0x5600, 0, 0, 0)
    transparent = chunk(b"tRNS", struct.pack(">3H", 0x1200, 0x3400, 0x5600))
    path.write_bytes(png(2, 1, bits=16, colour=2, rows=colour, extra=transparent))
    assert [load_pixels(path).getpixel((x, 0)) for x in (0, 1)] == [(0x12, 0x34, 0x56, 0), (0, 0, 0, 255)]


def test_a_camera_jpeg_with_a_preview_is_one_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    pattern().save(path, format="MPO", save_all=True, append_images=[pattern()])
    assert read_header(path).width == 40
    assert load_pixels(path).size == (40, 24)


def both_refuse(path: Path, *words: str) -> None:
    for read in (read_header, load_pixels):
        with pytest.raises(DataError) as caught:
            read(path)
        for word in (str(path), *words):
            assert word in str(caught.value), f"{word!r} not in {caught.value}"


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"")
    both_refuse(path, "empty file (0 bytes)", "Copy it again")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    both_refuse(tmp_path / "a.png", "missing", "Restore it")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    both_refuse(tmp_path, "cannot be read (Is a directory)")


@pytest.mark.parametrize("data", [b"<xml>no picture</xml>", b"%PDF-1.7 ...", b"x", b"PK\x03\x04"])
def test_a_file_that_is_no_picture_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    both_refuse(path, "no picture", "Save it as PNG or JPEG, or remove it")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif", ".bmp", ".tif", ".avif"])
def test_a_truncated_header_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    pattern().save(path)
    path.write_bytes(path.read_bytes()[:12])
    both_refuse(path, "Copy it again" if suffix != ".webp" else "damaged picture", "remove it")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".bmp", ".tif"])
def test_a_truncated_body_is_refused_when_decoded(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    header, data = read_header(path), path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    if suffix != ".tif":  # its directory stands at the end
        assert read_header(path) == header
    with pytest.raises(DataError, match=rf"a\{suffix}: damaged picture .* remove it"):
        load_pixels(path)


def test_damage_that_only_a_decoder_sees_is_refused(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    path = tmp_path / "a.webp"
    noise.save(path)
    path.write_bytes(path.read_bytes()[:-400] + b"\xff" * 400)
    assert read_header(path).width == 64
    with pytest.raises(DataError, match=r"a\.webp: damaged picture .* remove it"):
        load_pixels(path)
    path = tmp_path / "a.avif"
    noise.save(path)
    path.write_bytes(path.read_bytes().replace(b"pitm", b"free"))
    both_refuse(path, "damaged picture", "remove it")  # a RuntimeError of Pillow's


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_animated_pictures_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    others = [Image.new("RGB", (40, 24), colour) for colour in ("red", "blue")]
    pattern().save(path, save_all=True, append_images=others)
    both_refuse(path, "3 frames or pages", "Save one of them as PNG")


def test_decompression_bombs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(20_000, 20_000, bits=8, colour=0, rows=b""))
    both_refuse(path, "20000x20000 is 400,000,000 pixels", "175,000,000", "Make it smaller")


@pytest.mark.parametrize(("colour", "bits", "padding"), [(0, 8, 90_000), (2, 8, 290_000), (6, 16, 390_000)])
def test_few_bytes_that_unpack_to_many_are_refused_by_the_header(
    tmp_path: Path, colour: int, bits: int, padding: int
) -> None:
    """50 million pixels of one colour in PNG unpack to a thousand times the file's size."""
    path = tmp_path / "a.png"
    path.write_bytes(png(10_000, 5_000, bits=bits, colour=colour, rows=b"", extra=chunk(b"prVt", bytes(padding))))
    both_refuse(path, "unpack to 10000x5000, 5", "at most 500 times are allowed", "Make it smaller, or remove it")
    path.write_bytes(png(10_000, 4_000, bits=bits, colour=colour, rows=b""))  # no more than LARGE
    assert read_header(path).width == 10_000
    path.write_bytes(png(10_000, 5_000, bits=1, colour=0, rows=b"", extra=chunk(b"prVt", bytes(13_000))))  # a scan
    assert read_header(path).width == 10_000


def test_large_pictures_below_the_limit_are_read_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(12_000, 12_000, bits=8, colour=0, rows=b"", extra=chunk(b"prVt", bytes(300_000))))
    assert read_header(path).width == 12_000


def test_the_limit_does_not_hang_on_pillows_global(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr("eridiff.dataset.image.header.MAX_PIXELS", 100)
    path = tmp_path / "a.png"
    pattern().save(path)
    both_refuse(path, "960 pixels")


def test_a_webp_may_be_less_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eridiff.dataset.image.header.MAX_WEBP", 900)
    pattern().save(tmp_path / "a.webp")
    both_refuse(tmp_path / "a.webp", "40x24 is 960 pixels, more than the 900 allowed")
    pattern().save(tmp_path / "a.png")
    assert read_header(tmp_path / "a.png").width == 40


def test_floating_point_pictures_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.new("F", (2, 2)).save(path)
    with pytest.raises(DataError, match=r"a\.tif: 32 bits a channel\. Save it with 8 or 16"):
        read_header(path)


def test_few_bits_stored_in_sixteen_are_refused(tmp_path: Path) -> None:
    """Read as the upper eight they would be black."""
    path = tmp_path / "a.tif"
    Image.fromarray(np.full((3, 2), 4095, dtype=np.uint16)).save(path)
    with pytest.raises(DataError, match=r"a\.tif: 16 bits a channel, of which the brightest value is 4095 of 65535"):
        load_pixels(path)
    for value in (0, 4096):
        Image.fromarray(np.full((3, 2), value, dtype=np.uint16)).save(path)
        assert load_pixels(path).getpixel((0, 0)) == (value >> 8,) * 3


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC picture, which is not read, whatever its name"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "a HEIC picture, which is not read, whatever its name"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "no picture, but a video"),
        (b"8BPS\0\1", "a Photoshop file (PSD)"),
        (b"\xff\x0a\xfa", "a JPEG XL picture, which is not read, whatever its name"),
        (b"<svg xmlns=''>", "a drawing (SVG)"),
        (b"<?xml version='1.0'?><Error>", "no picture, but text that starts with '<', as a web page"),
        (b"hello", "no picture, or of a kind that is not read"),
    ],
)
def test_what_is_no_picture_is_told(start: bytes, what: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(start)
    both_refuse(path, f"{what}. Save it as PNG or JPEG, or remove it.")


def test_a_pointer_of_git_lfs_names_the_command(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    both_refuse(
        path, "a pointer of git-lfs, not the file itself. Run `git lfs pull` in the repository that it comes from"
    )


@pytest.mark.parametrize("start", [b"\n<!DOCTYPE html>", b"\xef\xbb\xbf<html><body>", b"<HTML>"])
def test_a_web_page_is_told(start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(start)
    both_refuse(path, "a web page (HTML), not the picture that it shows. Download the picture itself, or remove it.")


def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "zero.png"):
        both_refuse(tmp_path / name, "no file, but a pipe, a socket or a device, or a link to one. Remove it.")


def test_a_file_of_absurd_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    pattern().save(path)
    os.truncate(path, 3 << 30)  # a hole: it takes no room
    both_refuse(path, "3,221,225,472 bytes, more than 2,147,483,648. Make it smaller")


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    pattern().save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_pixels(path, digest).size == (40, 24)
    with pytest.raises(DataError, match=r"a\.png: changed since the captions stage ran: run `dvc repro`"):
        load_pixels(path, "0" * 64)


def test_pixel_digest_sees_pixels_size_and_mode_only(tmp_path: Path) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    pattern().save(first)
    pattern().save(second, compress_level=1, dpi=(72, 72))
    assert first.read_bytes() != second.read_bytes()
    assert pixel_digest(load_pixels(first)) == pixel_digest(load_pixels(second))
    expected = hashlib.sha256(b"RGB 40x24\n" + PATTERN_HWC.tobytes()).hexdigest()
    assert pixel_digest(load_pixels(first)) == expected
    turned = Image.frombytes("RGB", (24, 40), PATTERN_HWC.tobytes())
    assert pixel_digest(turned) != expected
    assert pixel_digest(pattern().convert("RGBA")) != expected


def crop(image: Image.Image, **changes: object) -> np.ndarray:
    options = {"alpha": "white", "resample": "area", "resize": image.size, "crop": (0, 0), "size": image.size}
    return crop_picture(image, **{**options, "flip": False, **changes})  # type: ignore[arg-type]


def test_crop_takes_the_box_of_the_resized_picture() -> None:
    assert np.array_equal(crop(pattern(), crop=(3, 2), size=(8, 5)), PATTERN_HWC[2:7, 3:11])
    halves = PATTERN_HWC.astype(float).reshape(12, 2, 20, 2, 3).mean(axis=(1, 3))
    half = crop(pattern(), resize=(20, 12), crop=(1, 2), size=(16, 8))
    assert half.shape == (8, 16, 3) and half.dtype == np.uint8
    assert np.abs(half - halves[2:10, 1:17]).max() <= 1  # Pillow rounds after each direction
    assert not np.array_equal(half, crop(pattern(), resample="lanczos", resize=(20, 12), size=(16, 8)))


def test_flip_mirrors_the_crop() -> None:
    flipped = crop(pattern(), crop=(3, 2), size=(8, 5), flip=True)
    assert np.array_equal(flipped, PATTERN_HWC[2:7, 3:11][:, ::-1])
    assert flipped.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize(("alpha", "colour"), [("white", 255), ("black", 0), ("grey", 128)])
def test_alpha_is_flattened_before_resizing(alpha: str, colour: int) -> None:
    picture = Image.new("RGBA", (4, 4), (255, 0, 0, 0))  # hidden red must not bleed into the result
    assert np.array_equal(crop(picture, alpha=alpha, resize=(2, 2), size=(2, 2)), np.full((2, 2, 3), colour))
    half = crop(Image.new("RGBA", (1, 1), (255, 0, 0, 128)), alpha=alpha)
    assert np.abs(half[0, 0].astype(int) - [(255 + colour) / 2, colour / 2, colour / 2]).max() <= 1
