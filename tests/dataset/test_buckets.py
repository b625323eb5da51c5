"""Bucket sizes, assignment, crop boxes, what is left out, and the report."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from eridiff.core.config import validate
from eridiff.core.errors import ConfigError, DataError
from eridiff.dataset.buckets import (
    BUCKET_COLUMNS,
    bucket_sizes,
    cover,
    crop_loss,
    enlargement,
    nearest_bucket,
    plan_buckets,
    report,
    summary,
)
from eridiff.formats.tables import read_table, write_table
from eridiff.params.buckets import BucketParams


def params(**values: Any) -> BucketParams:
    return validate(BucketParams, {"resolution": 128, **values}, where="params.yaml", prefix="buckets")


def test_sizes_of_equal_tokens() -> None:
    """At 1024 and 512: 3600 and 1008 tokens, for as many shapes as no other number near the area has."""
    tokens = [(45, 80), (48, 75), (50, 72), (60, 60), (72, 50), (75, 48), (80, 45)]
    found = bucket_sizes(params(resolution=1024, step=16, rule="equal_tokens"))
    assert found == [(16 * width, 16 * height) for width, height in tokens]
    wide = bucket_sizes(params(resolution=1024, step=16, rule="equal_tokens", max_aspect=2.25))
    assert set(wide) - set(found) == {(640, 1440), (1440, 640)}
    at_512 = bucket_sizes(params(resolution=512, step=16, rule="equal_tokens"))
    assert {width * height // 256 for width, height in at_512} == {1008}
    assert bucket_sizes(params(resolution=1024, step=32, rule="equal_tokens", max_aspect=1.0)) == [(1024, 1024)]
    assert bucket_sizes(params(resolution=100, step=64, rule="equal_tokens", max_aspect=1.0)) == [(64, 64)]


@given(st.integers(64, 2048), st.sampled_from([16, 32, 64]), st.integers(100, 800).map(lambda x: x / 100))
def test_equal_tokens_keep_the_limits(resolution: int, step: int, max_aspect: float) -> None:
    chosen = params(resolution=resolution, step=step, max_aspect=max_aspect, rule="equal_tokens")
    sizes = bucket_sizes(chosen)
    assert sizes == sorted(set(sizes)) and {size[::-1] for size in sizes} == set(sizes)
    area = {width * height for width, height in sizes}
    assert len(area) == 1 and area.pop() <= resolution**2
    for size in sizes:
        assert not size[0] % step and not size[1] % step
        assert max(size) <= max_aspect * min(size)
        assert nearest_bucket(size, sizes) == size  # what was cut once is cut no more
        assert crop_loss(plan_buckets([image("a.png", *size)], chosen)[0][0]) == 0


@pytest.mark.parametrize(
    ("resolution", "number", "area", "kept"), [(512, 4, 1008, 0.77), (768, 6, 2160, 0.83), (1024, 7, 3600, 0.79)]
)
def test_equal_tokens_cover_the_aspect_ratios(resolution: int, number: int, area: int, kept: float) -> None:
    """kept: of every picture between 1:2 and 2:1, at least this share is not cut off."""
    sizes = bucket_sizes(params(resolution=resolution, step=16, rule="equal_tokens"))
    assert len(sizes) == number
    assert {width * height for width, height in sizes} == {256 * area}
    shares = []
    for percent in range(50, 201):
        original = (100 * percent, 10_000)
        bucket = nearest_bucket(original, sizes)
        width, height = cover(original, bucket)
        shares.append(bucket[0] * bucket[1] / (width * height))
    assert kept <= min(shares) < kept + 0.1


def test_equal_tokens_need_whole_tokens() -> None:
    with pytest.raises(ConfigError, match="multiple of 16"):
        params(step=8, rule="equal_tokens")


def image(path: str, width: int, height: int, orientation: int = 1, repeats: int = 1) -> dict[str, Any]:
    row = {"path": path, "file_digest": f"digest of {path}", "width": width, "height": height}
    return row | {"orientation": orientation, "repeats": repeats}


def test_sizes_of_a_small_resolution() -> None:
    assert bucket_sizes(params()) == [(64, 128), (128, 64), (128, 128)]
    assert bucket_sizes(params(max_aspect=1.0)) == [(128, 128)]
    assert bucket_sizes(params(step=32, max_aspect=3.0)) == [
        (64, 192), (96, 160), (128, 128), (160, 96), (192, 64),
    ]  # fmt: skip


def test_sizes_of_a_large_resolution() -> None:
    sizes = bucket_sizes(params(resolution=1024))
    assert sizes == [
        (704, 1408), (768, 1344), (832, 1216), (896, 1152), (960, 1088), (1024, 1024), (1088, 960),
        (1152, 896), (1216, 832), (1344, 768), (1408, 704),
    ]  # fmt: skip


@given(
    st.integers(64, 2048), st.sampled_from([8, 16, 32, 64]), st.floats(1, 8, allow_nan=False).map(lambda x: round(x, 2))
)
def test_every_size_keeps_the_limits(resolution: int, step: int, max_aspect: float) -> None:
    sizes = bucket_sizes(params(resolution=resolution, step=step, max_aspect=max_aspect))
    assert sizes == sorted(set(sizes)) and sizes
    assert {(height, width) for width, height in sizes} == set(sizes)
    for width, height in sizes:
        assert width % step == height % step == 0
        assert width * height <= resolution**2
        assert max(width, height) <= max_aspect * min(width, height) + 1e-9
        grown = (width, height + step)  # the longer side is the longest that fits
        if height >= width:
            assert grown[0] * grown[1] > resolution**2 or grown[1] > max_aspect * grown[0] - 1e-9


def test_assignment_is_by_ratio_of_aspects() -> None:
    sizes = [(64, 128), (128, 64), (128, 128)]
    assert nearest_bucket((141, 100), sizes) == (128, 128)  # below sqrt(2) the square is nearer
    assert nearest_bucket((142, 100), sizes) == (128, 64)
    assert nearest_bucket((100, 142), sizes) == (64, 128)
    assert nearest_bucket((5000, 10), sizes) == (128, 64)


def test_ties_go_to_the_larger_then_to_the_first() -> None:
    assert nearest_bucket((10, 10), [(64, 64), (128, 128), (96, 96)]) == (128, 128)
    assert nearest_bucket((10, 10), [(64, 128), (128, 64)]) == (64, 128)
    assert nearest_bucket((200, 100), [(64, 64), (128, 32)]) == (64, 64)  # both off by 2: the larger


SIDES = st.integers(1, 4000)


@given(SIDES, SIDES, st.sampled_from([8, 16, 32, 64]), st.integers(64, 1100), st.sampled_from(["center", "top"]))
def test_the_resized_picture_covers_its_bucket(width: int, height: int, step: int, resolution: int, crop: str) -> None:
    assume(max(width, height) < 100 * min(width, height))  # longer ones may be left out, as lines
    chosen = params(resolution=resolution, step=step, upscale=True, crop=crop)
    (row,), left_out = plan_buckets([image("a", width, height)], chosen)
    assert left_out == []
    bucket, resize = (row["bucket_w"], row["bucket_h"]), (row["resize_w"], row["resize_h"])
    assert bucket in bucket_sizes(chosen)
    assert 0 <= row["crop_left"] <= resize[0] - bucket[0]
    assert 0 <= row["crop_top"] <= resize[1] - bucket[1]
    assert resize[0] == bucket[0] or resize[1] == bucket[1]
    scale = max(bucket[0] / width, bucket[1] / height)
    assert math.isclose(resize[0], width * scale, abs_tol=0.501)
    assert math.isclose(resize[1], height * scale, abs_tol=0.501)
    if crop == "top":
        assert row["crop_top"] == 0
    else:
        assert abs(2 * row["crop_top"] + bucket[1] - resize[1]) <= 1
    assert abs(2 * row["crop_left"] + bucket[0] - resize[0]) <= 1


@given(SIDES, SIDES)
def test_nothing_is_enlarged_unless_asked(width: int, height: int) -> None:
    large = image("large", 9000, 9000)
    rows, left_out = plan_buckets([image("a", width, height), large], params())
    used = {row["path"]: row for row in rows}
    if "a" in used:
        assert used["a"]["resize_w"] <= width and used["a"]["resize_h"] <= height
    else:
        bucket = nearest_bucket((width, height), bucket_sizes(params()))
        assert left_out == [("a", f"{width}x{height} is smaller than its bucket {bucket[0]}x{bucket[1]}")]
        assert width < bucket[0] or height < bucket[1]


def test_cover_rounds_to_the_nearest_pixel_halves_up() -> None:
    assert cover((200, 300), (128, 128)) == (128, 192)
    assert cover((300, 200), (128, 128)) == (192, 128)
    assert cover((256, 129), (128, 64)) == (128, 65)  # 64.5
    assert cover((128, 128), (128, 128)) == (128, 128)


def test_rows_are_of_the_upright_picture_and_sorted(tmp_path: Path) -> None:
    rows, left_out = plan_buckets([image("b", 300, 300, repeats=3), image("a", 400, 200, orientation=6)], params())
    assert left_out == []
    assert rows[0] == {
        "path": "a", "file_digest": "digest of a", "repeats": 1, "bucket_w": 64, "bucket_h": 128, "resize_w": 64,
        "resize_h": 128, "crop_left": 0, "crop_top": 0, "original_w": 200, "original_h": 400,
    }  # fmt: skip
    assert (rows[1]["path"], rows[1]["repeats"], rows[1]["resize_w"]) == ("b", 3, 128)
    write_table(tmp_path / "t.parquet", rows, BUCKET_COLUMNS)
    assert read_table(tmp_path / "t.parquet")[0] == rows


def test_all_pictures_too_small_is_an_error() -> None:
    with pytest.raises(DataError) as caught:
        plan_buckets([image(f"{number:03}.png", 10, 10) for number in range(102)], params())
    message = str(caught.value)
    assert message.startswith(
        "every picture is too small. Use larger ones, lower buckets.resolution, or set buckets.upscale to true:\n"
    )
    assert "00.png: 10x10 is smaller than its bucket 128x128" in message
    assert message.endswith("099.png: 10x10 is smaller than its bucket 128x128\n       and 2 more")


def test_no_pictures_is_an_error() -> None:
    with pytest.raises(DataError, match=r"there are no pictures .* run `dvc repro captions`"):
        plan_buckets([], params())


def test_the_report_names_losses_and_every_picture_left_out() -> None:
    images = [image(f"{number}.png", 300, 300) for number in range(2)]
    images += [image("tall|x.png", 128, 256 * 2, repeats=2), image("small.png", 90, 90), image("tiny.png", 5, 9)]
    rows, left_out = plan_buckets(images, params())
    assert report(rows, left_out) == (
        "# Buckets\n\n3 pictures used, 2 left out.\n\n"
        "| bucket | pictures | with repeats | mean crop loss |\n|---|---|---|---|\n"
        "| 64x128 | 1 | 2 | 50.0 % |\n| 128x128 | 2 | 2 | 0.0 % |\n\n"
        "## Cropped most\n\n| picture | size | bucket | crop loss |\n|---|---|---|---|\n"
        "| tall\\|x.png | 128x512 | 64x128 | 50.0 % |\n\n"
        "## Left out\n\nUse larger pictures, lower `buckets.resolution`, or set `buckets.upscale: true`.\n\n"
        "| picture | reason |\n|---|---|\n"
        "| small.png | 90x90 is smaller than its bucket 128x128 |\n"
        "| tiny.png | 5x9 is smaller than its bucket 64x128 |\n"
    )
    assert summary(rows, left_out) == (
        "buckets: 3 pictures in 2 buckets, 2 left out\n"
        "left out: small.png: 90x90 is smaller than its bucket 128x128\n"
        "left out: tiny.png: 5x9 is smaller than its bucket 64x128"
    )
    assert crop_loss(rows[-1]) == 50.0


def test_pictures_that_are_not_what_they_seem_are_named() -> None:
    """Cut by 98.8 %, enlarged 128-fold, and with nothing to see: each in the stage's line and in the report."""
    images = [image("dot.png", 1, 1), image("fine.png", 200, 200), image("strip.png", 10_000, 60)]
    images.append(image("void.png", 128, 128))
    blank = {"gone.png": "of one colour", "void.png": "fully transparent"}
    rows, left_out = plan_buckets(images, params(upscale=True))
    assert summary(rows, left_out, blank) == (
        "buckets: 4 pictures in 2 buckets, 0 left out, 1 cut by more than 50 %, 1 enlarged more than 2-fold, 1 blank\n"
        "cut by more than 50 %: strip.png: 98.8 % is cut off, 10000x60 in a bucket of 128x64\n"
        "enlarged more than 2-fold: dot.png: 128.0-fold, 1x1 in a bucket of 128x128\n"
        "blank: void.png: fully transparent"
    )
    assert (
        "| 128x128 | 3 | 3 | 0.0 % |\n\n## Look at these\n\n| picture | what |\n|---|---|\n"
        "| strip.png | 98.8 % is cut off, 10000x60 in a bucket of 128x64 |\n"
        "| dot.png | 128.0-fold, 1x1 in a bucket of 128x128 |\n"
        "| void.png | fully transparent |\n\n## Cropped most\n"
    ) in report(rows, left_out, blank)


def test_a_picture_just_at_the_limits_is_not_named() -> None:
    rows, left_out = plan_buckets([image("half.png", 128, 512), image("twice.png", 64, 64)], params(upscale=True))
    assert (crop_loss(rows[0]), enlargement(rows[1])) == (50.0, 2.0)
    assert summary(rows, left_out) == "buckets: 2 pictures in 2 buckets, 0 left out"
    assert "Look at these" not in report(rows, left_out)


def test_of_many_the_first_hundred_are_named() -> None:
    rows, left_out = plan_buckets([image(f"{number:03}\n.png", 9, 9) for number in range(103)], params(upscale=True))
    lines = summary(rows, left_out).splitlines()
    assert len(lines) == 102 and lines[1].startswith("enlarged more than 2-fold: 000\\n.png: 14.2-fold")
    assert lines[-1] == "enlarged more than 2-fold: 3 more"
    small = [image("big.png", 300, 300), *(image(f"{number}.png", 9, 9) for number in range(103))]
    lines = summary(*plan_buckets(small, params())).splitlines()
    assert len(lines) == 102 and lines[-1] == "left out: 3 more"


def test_a_line_is_not_enlarged_to_gigabytes() -> None:
    with pytest.raises(DataError, match=r"a line that no bucket takes(.|\n)*line.png: 1x60000 would be enlarged"):
        plan_buckets([image("line.png", 1, 60_000)], params(upscale=True))
    rows, left_out = plan_buckets([image("a.png", 200, 200), image("line.png", 1, 60_000)], params(upscale=True))
    assert [row["path"] for row in rows] == ["a.png"] and left_out == [
        ("line.png", "1x60000 would be enlarged to 64x3840000 for its bucket 64x128")
    ]


def test_a_report_without_losses() -> None:
    text = report(*plan_buckets([image("a", 256, 256)], params()))
    assert "## Cropped most\n\nNothing is cut off.\n" in text and text.endswith("## Left out\n\nNo picture.\n")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"step": 256}, "'buckets.step' is 256: must be at most resolution (128)"),
        ({"step": 12}, "'buckets.step' is 12: input should be a multiple of 8"),
        ({"max_aspect": 0.5}, "'buckets.max_aspect' is 0.5: input should be greater than or equal to 1"),
        ({"crop": "face"}, "'buckets.crop' is 'face', which is none of its choices. Known: center, top."),
        ({"resolution": "big"}, "'buckets.resolution' is 'big'"),
    ],
)
def test_wrong_params_are_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        params(**values)
    assert words in str(caught.value)


def test_ten_thousand_pictures_are_quick() -> None:
    import time

    start = time.process_time()  # whatever else the machine does
    images = [image(f"{n}", 1100 + n % 997, 1100 + n % 613) for n in range(10_000)]
    rows, _ = plan_buckets(images, params(resolution=1024))
    assert len(rows) == 10_000 and time.process_time() - start < 5


def test_several_resolutions() -> None:
    """Each picture in a bucket of each resolution that it is large enough for; the others' rows stay as they were."""
    images = [image("a.png", 160, 140), image("b.png", 130, 130), image("c.png", 64, 64)]
    one, _ = plan_buckets(images, params())
    both, left_out = plan_buckets(images, params(more_resolutions=[64, 128]))
    assert [(row["path"], row["bucket_w"], row["bucket_h"]) for row in both] == [
        ("a.png", 128, 128), ("a.png", 64, 64), ("b.png", 128, 128), ("b.png", 64, 64), ("c.png", 64, 64),
    ]  # fmt: skip
    assert one == [both[0], both[2]]
    assert (both[1]["resize_w"], both[1]["resize_h"], both[1]["crop_left"]) == (73, 64, 4)
    assert left_out == [("c.png", "64x64 is smaller than its bucket 128x128")]
    assert summary(both, left_out).splitlines()[0] == "buckets: 3 pictures in 2 buckets, 1 left out"
    assert "3 pictures used, 1 left out." in report(both, left_out)
    with pytest.raises(ConfigError, match=r"step' is 96: must be at most resolution \(64\)"):
        params(step=96, more_resolutions=[64])
