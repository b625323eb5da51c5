"""Further crops: inside the picture, never enlarged, planned by seed and pixels alone."""

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from eridiff.caching.latents.crops import Crop, plan_crops
from eridiff.dataset.buckets import cover

BUCKET = (64, 96)


def plan(original: tuple[int, int], *, crops: int = 4, zoom: float = 1.5, seed: int = 0, identity: str = "a") -> Any:
    resize = cover(original, BUCKET)
    first = Crop(resize, ((resize[0] - BUCKET[0]) // 2, (resize[1] - BUCKET[1]) // 2))
    params: Any = SimpleNamespace(crops=crops, crop_zoom=zoom, seed=seed)
    return plan_crops(first, original, BUCKET, params, identity)


@given(st.integers(64, 400), st.integers(96, 400), st.integers(1, 6), st.floats(1, 4), st.integers(0, 5))
def test_every_crop_lies_in_the_picture(width: int, height: int, crops: int, zoom: float, seed: int) -> None:
    found = plan((width, height), crops=crops, zoom=zoom, seed=seed)
    assert 1 <= len(found) <= crops
    assert len(set(found)) == len(found)
    for crop in found:
        assert 0 <= crop.at[0] <= crop.resize[0] - BUCKET[0]
        assert 0 <= crop.at[1] <= crop.resize[1] - BUCKET[1]
        for side, own, first in zip(crop.resize, (width, height), found[0].resize, strict=True):
            assert side <= max(own, first)  # enlarged no further than the bucket already asks for
            assert side <= first * zoom + 1
        shape = crop.resize[0] / crop.resize[1]
        assert abs(shape - found[0].resize[0] / found[0].resize[1]) < 0.03


def test_the_first_is_the_buckets_own_and_more_keep_those_before() -> None:
    five = plan((300, 300), crops=5)
    assert five[0] == Crop((96, 96), (16, 0))
    assert len(five) == 5
    assert plan((300, 300), crops=3) == five[:3]
    assert plan((300, 300), crops=1) == five[:1]


def test_plans_depend_on_seed_and_pixels() -> None:
    same = plan((300, 300))
    assert plan((300, 300)) == same
    assert plan((300, 300), seed=1)[1:] != same[1:]
    assert plan((300, 300), identity="b")[1:] != same[1:]


def test_a_picture_of_just_the_buckets_shape_has_one_crop() -> None:
    assert plan((64, 96)) == [Crop((64, 96), (0, 0))]
    assert plan((640, 960), zoom=1.0) == [Crop((64, 96), (0, 0))]
    assert len(plan((640, 960), zoom=1.2)) == 4
    moved = plan((300, 300), crops=50, zoom=1.0)
    assert {crop.resize for crop in moved} == {(96, 96)}
    assert {crop.at[1] for crop in moved} == {0}  # it sticks out of the bucket on one side only
    assert len(moved) == 33  # left = 0 ... 32


def test_crops_are_the_same_on_every_machine() -> None:
    assert plan((300, 200), crops=3) == PLANNED


def test_a_mirrored_crop_is_seen_from_the_other_side() -> None:
    crop = Crop((100, 120), (30, 5))
    assert crop.seen_at(BUCKET, False) == (30, 5)
    assert crop.seen_at(BUCKET, True) == (100 - 30 - 64, 5)


PLANNED = [Crop((144, 96), (40, 0)), Crop((206, 138), (1, 2)), Crop((208, 139), (94, 14))]
