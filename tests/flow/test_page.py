"""Pieces of a run's page: pictures, the curve of the loss, counts of the caches, digests of the files."""

import xml.etree.ElementTree as ET
from base64 import b64decode
from pathlib import Path

import pytest
from PIL import Image

from eridiff.flow.outcomes import CACHED
from eridiff.flow.page import cache_page, curve, export_page, picture, running_mean


def test_a_small_picture_stays_as_it_is(tmp_path: Path) -> None:
    small = tmp_path / "small.png"
    Image.new("RGB", (30, 20), "red").save(small)
    assert picture(small).startswith("data:image/png;base64,")
    assert b64decode(picture(small).split(",")[1]) == small.read_bytes()


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((2000, 1000), (2000, 1000)),
        ((6400, 1600), (3200, 800)),
        ((396, 3650), (396, 3650)),
        ((3072, 12288), (800, 3200)),
    ],
)
@pytest.mark.slow
def test_of_a_large_picture_every_row_can_still_be_seen(
    size: tuple[int, int], seen: tuple[int, int], tmp_path: Path
) -> None:
    """A long grid, too, keeps its width; what has many bytes becomes a JPEG."""
    Image.effect_noise(size, 90).save(tmp_path / "large.png")
    kind, _, content = picture(tmp_path / "large.png").partition(",")
    assert kind == "data:image/jpeg;base64"
    (tmp_path / "seen.jpg").write_bytes(b64decode(content))
    with Image.open(tmp_path / "seen.jpg") as image:
        assert image.size == seen


def test_the_curve_goes_through_its_points() -> None:
    root = ET.fromstring(curve([(1, 2.0), (2, 1.0), (3, 4.0)]))
    raw, smooth = (line.attrib["points"] for line in root.iter("{http://www.w3.org/2000/svg}polyline"))
    assert raw.split() == ["56.0,184.7", "400.0,270.0", "744.0,14.0"]
    assert len(smooth.split()) == 3
    assert running_mean([3.0, 3.0, 3.0]) == pytest.approx([3, 3, 3])
    ET.fromstring(curve([(1, 1.0)]))


def test_the_cache_line_and_the_digest(tmp_path: Path) -> None:
    line = "latents: 20 samples, 1 encoded, 19 reused, 2 shards written, 0.8 s"
    page = cache_page({"text": CACHED}, {"latents": ["x", line]})
    assert f"| latents | 20 | 1 | 19 | `{line}` |\n| text | | 0 | all | not started |" in page
    assert cache_page({}, {}) == ""
    (tmp_path / "f").write_bytes(b"abc")
    assert "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" in export_page(
        {"data/export/x.safetensors": tmp_path / "f", "data/export/README.md": tmp_path / "f"}
    )
