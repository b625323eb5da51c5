"""What the store remembered of pictures before colours were converted: it counts where that changes nothing."""

import hashlib
from pathlib import Path

import pytest
from PIL import Image

from eridiff.caching.latents import plan as latents
from eridiff.caching.latents.plan import learn_pixels
from eridiff.dataset.image.icc import PRIMARIES, SRGB, matrix_profile
from eridiff.store.pixels import PixelDigests

PROFILES = {
    "plain.png": None,
    "own.png": matrix_profile("sRGB", SRGB),
    "wide.png": matrix_profile("Display P3", PRIMARIES[12]),
}
COLOUR = (200, 30, 40)


@pytest.fixture
def files(tmp_path: Path) -> list[tuple[str, str]]:
    """Paths and digests of a picture without a profile, with one of sRGB, and with one of another space."""
    for number, (name, profile) in enumerate(PROFILES.items()):
        Image.new("RGB", (4 + number, 4), COLOUR).save(tmp_path / name, icc_profile=profile)
    return [(name, hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()) for name in PROFILES]


def plain_digest(width: int, colour: tuple[int, int, int]) -> str:
    return hashlib.sha256(f"RGB {width}x4\n".encode() + bytes(colour) * 4 * width).hexdigest()


@pytest.fixture
def store(tmp_path: Path, files: list[tuple[str, str]]) -> Path:
    """A store of before: all three as decoded without regard to profiles."""
    lines = sorted(f"{digest}\t{plain_digest(4 + number, COLOUR)}\n" for number, (_, digest) in enumerate(files))
    text = "".join(lines)
    root = tmp_path / "store"
    (root / "pixels").mkdir(parents=True)
    (root / "pixels" / PixelDigests.file_name(text)).write_text(text)
    return root


def test_only_pictures_of_other_colours_are_decoded_again(
    tmp_path: Path, store: Path, files: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, decoded = latents.load_pixels, []

    def counting(path: Path, digest: str) -> Image.Image:
        decoded.append(path.name)
        return read(path, digest)

    monkeypatch.setattr(latents, "load_pixels", counting)
    pixels = PixelDigests(store, {digest for _, digest in files})
    assert pixels.known == {} and len(pixels.before) == 3
    learn_pixels(files, tmp_path, pixels)
    assert decoded == ["wide.png"]
    (_, plain), (_, own), (_, wide) = files
    assert pixels.known[plain] == plain_digest(4, COLOUR) and pixels.known[own] == plain_digest(5, COLOUR)
    assert pixels.known[wide] == plain_digest(6, (218, 0, 27))
    assert PixelDigests(store).known == pixels.known  # remembered: the next run looks at nothing
    monkeypatch.setattr(latents, "keeps_its_numbers", lambda *_: pytest.fail("looked at again"))
    learn_pixels(files, tmp_path, PixelDigests(store))
    assert decoded == ["wide.png"]


def test_of_pictures_that_are_not_here_the_old_digest_counts_for_now(
    tmp_path: Path, store: Path, files: list[tuple[str, str]]
) -> None:
    for name, _ in files:
        (tmp_path / name).unlink()
    pixels = PixelDigests(store)
    learn_pixels(files, tmp_path, pixels)
    assert pixels.known == pixels.before and PixelDigests(store).known == {}


def test_a_file_that_was_replaced_says_nothing_of_the_old_one(
    tmp_path: Path, store: Path, files: list[tuple[str, str]]
) -> None:
    """The wide picture's place holds a plain one now: its old digest must not be taken over."""
    Image.new("RGB", (6, 4), COLOUR).save(tmp_path / "wide.png")
    pixels = PixelDigests(store)
    latents.take_over_pixels(files, tmp_path, pixels)
    assert pixels.known.keys() == {digest for name, digest in files if name != "wide.png"}
