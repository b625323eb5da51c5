"""The measures: formulas against values known beforehand, and what may not pass for a LoRA that learned neon."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eridiff.core.errors import DataError
from eridiff.dataset.buckets import BUCKET_COLUMNS
from eridiff.dataset.captions import CAPTION_COLUMNS
from eridiff.formats.tables import Row, write_table
from eridiff.sampling.colour_filters import best_colour_filter, filtered
from eridiff.sampling.concept import open_concept
from eridiff.sampling.descriptors import (
    BINS_PER_UNIT,
    Drawn,
    at_measure,
    difference,
    distance,
    shape_of,
    subject_accuracy,
    texture,
)
from eridiff.sampling.metrics import Measured, figures
from tests.support.drawings import THINGS, Array, draw_thing
from tests.verdict import failures

NAMES = list(THINGS)
GROUPS = {"trained": NAMES[::2], "held-out": NAMES[1::2]}
CONCEPT = [draw_thing(name, 90, lit=True) for name in GROUPS["trained"]]


def grey(value: float, side: int = 128) -> Array:
    return np.full((side, side, 3), value, dtype=np.float32)


def lines(period: int, width: int, side: int = 128) -> Array:
    """Bright upright lines on black."""
    pixels = np.zeros((side, side, 3), dtype=np.float32)
    for start in range(period // 2, side, period):
        pixels[:, start : start + width] = 1
    return pixels


def values_at(histogram: Array, low: float) -> Array:
    """The middles of the bins that hold anything."""
    return low + np.flatnonzero(histogram) / BINS_PER_UNIT


def test_a_step_has_the_gradient_of_its_formula() -> None:
    """A step of height h has the gradient h G_s(x), half a pixel away at best; times s, over the contrast h / 2."""
    pixels = grey(0.2)
    pixels[:, 64:] = 0.7
    for scale, edges in zip((2, 4), texture([pixels])[2::2], strict=True):  # for 1 the grid is coarse
        steepest = 2 / np.sqrt(2 * np.pi) * np.exp(-(0.5**2) / (2 * scale**2))
        assert values_at(edges, 0).max() == pytest.approx(steepest, abs=0.02)


def test_a_flat_picture_has_no_texture() -> None:
    for histogram, low in zip(texture([grey(0.4)]), (0, -3) * 3, strict=True):
        assert histogram.sum() == pytest.approx(1)
        assert values_at(histogram, low).tolist() == [0]


def test_bright_lines_have_negative_ridges_and_dark_ones_positive() -> None:
    bright, dark = (texture([pixels])[3] for pixels in (lines(16, 3), 1 - lines(16, 3)))
    assert values_at(bright, -3).min() < -1
    assert values_at(bright, -3).min() == pytest.approx(-values_at(dark, -3).max(), abs=2 / BINS_PER_UNIT)


def test_contrast_and_brightness_are_no_texture() -> None:
    pictures = [draw_thing(name, 3, lit=False) for name in NAMES[:4]]
    paler = [0.3 + 0.5 * pixels for pixels in pictures]
    assert distance(texture(pictures), texture(paler)) < 0.002
    assert distance(texture(pictures), texture(CONCEPT)) > 0.02


def test_the_distance_is_how_far_values_move() -> None:
    """One feature's histogram moved by 32 bins is half a contrast away; the mean over two features a quarter."""
    one = [np.eye(192)[40], np.eye(384)[100]]
    assert distance(one, one) == 0
    assert distance(one, [np.eye(192)[72], np.eye(384)[100]]) == pytest.approx(0.25)
    assert distance([np.eye(192)[72], np.eye(384)[100]], one) == pytest.approx(0.25)


def test_texture_is_relative_to_the_picture() -> None:
    """The same picture at four times the pixels, or twice the size and half as tall: the same area is measured."""
    pixels = draw_thing("a house", 3, lit=False)
    large = np.kron(pixels, np.ones((4, 4, 1), dtype=np.float32))
    assert at_measure(large).shape == (128, 128, 3)
    assert distance(texture([at_measure(large)]), texture([pixels])) < 0.005
    assert at_measure(grey(0.5, 256)[:, :64]).shape == (256, 64, 3)


def test_difference() -> None:
    assert difference([grey(0.5), grey(0.2)], [grey(0.25), grey(0.2)]) == pytest.approx(0.125)


def test_shapes_survive_style_and_a_little_shift() -> None:
    bank = [Drawn(shape_of(draw_thing(name, 1, lit=False)), name, (name, 1)) for name in NAMES]
    for change in (lambda pixels: pixels, lambda pixels: 1 - pixels, lambda pixels: pixels**0.5):
        seen = [Drawn(shape_of(change(draw_thing(name, 2, lit=False))), name, (name, 2)) for name in NAMES]
        assert subject_accuracy(seen, bank) == 1
    lit = [Drawn(shape_of(draw_thing(name, 3, lit=True)), name, (name, 3)) for name in NAMES]
    assert subject_accuracy(lit, bank) == 1
    wrong = [Drawn(drawn.shape, NAMES[n - 1], drawn.draw) for n, drawn in enumerate(lit)]
    assert subject_accuracy(wrong, bank) == 0


def test_a_sample_is_not_compared_with_its_own_draw() -> None:
    x, y = np.eye(2)
    bank = [Drawn(x, "a", "a1"), Drawn(y, "b", "b1"), Drawn(np.array([0.6, 0.8]), "a", "a2")]
    assert subject_accuracy(bank, bank) == pytest.approx(1 / 3)  # a1 -> a2; b1 -> a2, a2 -> b1: wrong
    assert subject_accuracy([Drawn(y, "b", "b2")], bank) == 1


SOLARISED = "peak at 0.5, matched, each picture"


@pytest.mark.slow
def test_the_best_filter_is_the_best_of_its_family_and_does_not_convince() -> None:
    pictures = [draw_thing(name, 1, lit=False) for name in NAMES[:3]]
    made = dict(filtered(pictures, CONCEPT))
    assert {"identity", "matched", "inverted, transported, each picture", SOLARISED} <= set(made)
    assert len(made) == 1 + 2 * (2 + 2 + 4 * 3)
    wanted = texture(CONCEPT)
    found = {name: distance(texture(samples), wanted) for name, samples in made.items()}
    best = best_colour_filter(pictures, CONCEPT)
    assert best.distance == min(found.values()) == found[best.name]
    assert 1 - best.distance / found["identity"] < 0.45


def test_filters_reach_what_they_promise() -> None:
    """Matched: the concept's histogram by channel. Transported: its mean and covariance, but for what is clipped."""
    generator = np.random.default_rng(0)
    pictures = [generator.random((64, 64, 3)).astype(np.float32) * 0.6 for _ in range(2)]
    concept = [0.3 + 0.4 * generator.random((64, 64, 3)) ** 2 @ np.array([[0.5, 0.3, 0.2], [0, 0.6, 0.4], [0, 0, 1]])]
    made = {name: np.concatenate(samples).reshape(-1, 3) for name, samples in filtered(pictures, concept)}
    target = np.concatenate(concept).reshape(-1, 3)
    ranks = np.linspace(0.02, 0.98, 25)
    for name in ("matched", "inverted, matched", "matched, each picture", SOLARISED):
        found = np.quantile(made[name], ranks, axis=0)
        assert found == pytest.approx(np.quantile(target, ranks, axis=0), abs=0.02), name
    for name in ("transported", "inverted, transported"):
        assert made[name].mean(axis=0) == pytest.approx(target.mean(axis=0), abs=0.005)
        assert np.cov(made[name], rowvar=False) == pytest.approx(np.cov(target, rowvar=False), abs=0.001)


def gamma(power: float, pixels: Array) -> Array:
    return pixels**power


def hue_turn(pixels: Array) -> Array:
    return np.roll(pixels, 1, axis=-1)


def solarise(pixels: Array) -> Array:
    """The classic: what is brighter than the middle is inverted."""
    return np.where(pixels > 0.5, 1 - pixels, pixels)


def outline_curve(pixels: Array) -> Array:
    """A narrow peak at a middle grey, dark elsewhere: draws thin bright lines along edges."""
    return np.exp(-(((pixels.mean(axis=-1, keepdims=True) - 0.5) / 0.1) ** 2)) * np.array([0.4, 0.8, 1.0])


def inverted(pixels: Array) -> Array:
    return 1 - pixels


def darkened(pixels: Array) -> Array:
    return np.clip(1.4 * (1 - pixels) - 0.5, 0, 1) * np.array([0.6, 0.7, 1.0])


FILTERS: dict[str, Callable[[Array], Array]] = {
    "gamma": partial(gamma, 3.0),
    "gamma below 1": partial(gamma, 0.4),
    "hue turn": hue_turn,
    "solarise": solarise,
    "outline curve": outline_curve,
    "inverted": inverted,
    "darkened": darkened,
}


def all_columns(name: str, seed: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """What each column draws with and without the trigger."""
    base, plain = draw_thing(name, seed, lit=False), draw_thing(name, seed + 10, lit=False)
    neon, plain_neon = draw_thing(name, seed, lit=True), draw_thing(name, seed + 10, lit=True)
    other = draw_thing(NAMES[NAMES.index(name) - 1], seed, lit=True)
    told = {"base": base, "identity": base, "grey": grey(0.5), "neon": neon, "leaking neon": neon, "other": other}
    without = dict.fromkeys(told, plain) | {"leaking neon": 0.5 * (plain + plain_neon)}
    told["neon, faint"] = 0.75 * base + 0.25 * neon
    told["neon of one thing"] = draw_thing("a star", seed, lit=True)
    filters = {label: change(base).astype(np.float32) for label, change in FILTERS.items()}
    return told | filters, without | dict.fromkeys([*filters, "neon, faint", "neon of one thing"], plain)


@pytest.fixture(scope="module")
def metrics() -> dict[str, Any]:
    rows, labels = [], []
    for group, names in GROUPS.items():
        for name in names:
            told, plain = all_columns(name, 1)
            labels = list(told)
            shown = [plain[label] for label in labels]
            rows.append(Measured(group=group, subject=name, seed=1, told=list(told.values()), plain=shown))
    return figures(labels, rows, CONCEPT)


@pytest.mark.slow
def test_neon_convinces(metrics: dict[str, Any]) -> None:
    assert failures(metrics, "neon") == []
    assert metrics["fall"]["trained"]["neon"] > 0.8
    assert metrics["leakage"]["neon"] == 0
    assert metrics["subject_kept"]["held-out"]["base"] == 1


@pytest.mark.slow
def test_the_best_filter_is_far_from_neon(metrics: dict[str, Any]) -> None:
    for found in metrics["concept_distance"].values():
        assert found["neon"] < found["colour_filter"] / 2 < found["colour_filter"] <= found["base"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("identity", ["falls by 0.0", "no nearer", "leakage None"]),
        ("grey", ["falls by", "no nearer", "subjects kept in"]),
        ("leaking neon", ["leakage 0."]),
        ("other", ["trained: subjects kept in", "held-out: subjects kept in"]),
        ("neon of one thing", ["trained: subjects kept in", "held-out: subjects kept in"]),
        ("neon, faint", ["falls by"]),
        *((label, ["trained: the distance", "held-out: the distance", "no nearer"]) for label in FILTERS),
    ],
)
def test_what_does_not_convince(metrics: dict[str, Any], column: str, words: list[str]) -> None:
    found = failures(metrics, column)
    for word in words:
        assert any(word in failure for failure in found), (found, word)


@pytest.mark.slow
def test_figures_are_rounded_and_by_group(metrics: dict[str, Any]) -> None:
    assert set(metrics) == {"concept_distance", "fall", "subject_kept", "leakage"}
    assert set(metrics["concept_distance"]) == {"trained", "held-out"}
    assert set(metrics["concept_distance"]["trained"]) - set(metrics["fall"]["trained"]) == {"base", "colour_filter"}
    assert set(metrics["subject_kept"]["trained"]) - set(metrics["leakage"]) == {"base"}
    values = [value for found in metrics["concept_distance"].values() for value in found.values()]
    assert all(value == round(value, 4) for value in values)


def tables(folder: Path, paths: list[str], trigger: str | None = "eri") -> tuple[Path, Path, Path]:
    """Pictures below `folder`, of which those below told/ have the trigger, and their tables."""
    pictures = folder / "raw"
    captions: list[Row] = []
    buckets: list[Row] = []
    for number, path in enumerate(paths):
        file = pictures / path
        file.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGBA", (80, 64), (0, 0, 0, 0))
        image.paste((200, 10 * number, 0, 255), (16, 0, 64, 64))
        image.save(file)
        text = f"by eri, {number}" if path.startswith("told/") else f"eriness, {number}"
        captions.append({"path": path, "raw": "", "clean": text, "variants": [text], "rules": []})
        sizes = {"bucket_w": 64, "bucket_h": 64, "resize_w": 80, "resize_h": 64, "crop_left": 8, "crop_top": 0}
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        sizes |= {"original_w": 80, "original_h": 64, "repeats": 1}
        buckets.append({"path": path, "file_digest": digest, **sizes})
    write_table(folder / "captions.parquet", captions, CAPTION_COLUMNS, {"trigger": trigger})
    write_table(folder / "buckets.parquet", buckets, BUCKET_COLUMNS)
    return folder / "captions.parquet", folder / "buckets.parquet", pictures


def test_the_concept_is_the_pictures_with_the_trigger_at_their_crops(tmp_path: Path) -> None:
    concept = open_concept(*tables(tmp_path, ["plain/a.png", "told/b.png", "told/a.png"]))
    assert [picture.shape for picture in concept] == [(128, 128, 3)] * 2
    for picture, green in zip(concept, (20, 10), strict=True):  # by path
        for column in (22, 106):
            assert picture[64, column] == pytest.approx([200 / 255, green / 255, 0], abs=0.002)
        for column in (8, 120):
            assert picture[64, column] == pytest.approx([1, 1, 1], abs=0.002), "transparent: white"


def test_pictures_that_are_gone_or_differ(tmp_path: Path) -> None:
    captions, buckets, pictures = tables(tmp_path, ["told/a.png", "told/b.png", "plain/c.png"])
    Image.new("RGB", (80, 64)).save(pictures / "told/b.png")
    with pytest.raises(DataError, match=r"told/b.png: changed since the captions stage ran"):
        open_concept(captions, buckets, pictures)
    (pictures / "told/b.png").unlink()
    (pictures / "plain/c.png").unlink()
    with pytest.raises(
        DataError, match=r"but 1 of 2 are not in .*raw: told/b\.png\. Fetch them \(`dvc pull`\), or set"
    ):
        open_concept(captions, buckets, pictures)


@pytest.mark.parametrize("trigger", ["eri", None])
def test_no_picture_with_the_trigger(tmp_path: Path, trigger: str | None) -> None:
    with pytest.raises(DataError, match=rf"holds the trigger \({trigger!r}\), and there are none"):
        open_concept(*tables(tmp_path, ["plain/a.png"], trigger))
