"""Buckets: sizes of equal area and different shape, and how each picture is resized and cropped for its own.

All sizes are (width, height) in pixels of the upright picture. Everything is integers and exact fractions, so
that a plan is the same on every machine.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from eridiff.core.errors import MAX_NAMED, DataError, listing
from eridiff.core.printable import printable
from eridiff.formats.tables import Row
from eridiff.params.buckets import BucketParams

BUCKET_COLUMNS = {"path": "str", "file_digest": "str"} | dict.fromkeys(
    (
        "repeats", "bucket_w", "bucket_h", "resize_w", "resize_h", "crop_left", "crop_top", "original_w",
        "original_h",
    ),
    "int",
)  # fmt: skip
NONE: Mapping[str, str] = {}
MAX_CROPPED = 10
MUCH_CUT = 50  # percent of a picture, from which on it is named: what its caption says may be gone
MUCH_ENLARGED = 2  # times its own size: what is trained is the filter's blur
MAX_RESIZED = 175_000_000  # pixels: as many as a picture may have

Size = tuple[int, int]
LeftOut = tuple[str, str]  # path, reason


def bucket_sizes(params: BucketParams) -> list[Size]:
    """All bucket sizes, sorted, by the rule of the params.

    By area: for each side the longest other side that area and aspect permit. A size is left out where one at least as
    large in both sides is as elongated: 512x1024 beside 704x1408.
    """
    if params.rule == "equal_tokens":
        return _equal_sizes(params)
    step, area, aspect = params.step, params.resolution**2, Fraction(str(params.max_aspect))
    found: set[Size] = set()
    for short in range(step, params.resolution + 1, step):
        longest = min(Fraction(area, short), aspect * short)
        long = int(longest) // step * step
        found |= {(short, long), (long, short)}
    return sorted(size for size in found if not any(_outdoes(other, size) for other in found))


def _equal_sizes(params: BucketParams) -> list[Size]:
    """Sizes of one area: of all areas within an eighth of the largest, that with most sizes; of equals the largest.

    Where none of these has a size, as without rectangles (max_aspect 1), the largest below that has one.
    """
    step, aspect = params.step, Fraction(str(params.max_aspect))
    most = params.resolution**2 // step**2  # cells of step x step
    found: dict[int, list[Size]] = {}  # cells => sizes
    for short in range(1, math.isqrt(most) + 1):
        for long in range(short, min(most // short, int(aspect * short)) + 1):
            size = short * step, long * step
            found.setdefault(short * long, []).extend({size, size[::-1]})
    near = [cells for cells in found if 8 * cells >= 7 * most]
    return sorted(found[max(near, key=lambda cells: (len(found[cells]), cells)) if near else max(found)])


def plan_buckets(image_rows: Iterable[Row], params: BucketParams) -> tuple[list[Row], list[LeftOut]]:
    """Rows of buckets.parquet and the pictures left out, both by path: one for each picture and resolution.

    Raises: DataError where every picture is left out.
    """
    resolutions = dict.fromkeys((params.resolution, *params.more_resolutions))
    all_sizes = [bucket_sizes(params.model_copy(update={"resolution": resolution})) for resolution in resolutions]
    rows: dict[tuple[str, Size], Row] = {}  # two resolutions may share a size
    left_out: list[LeftOut] = []
    for image in sorted(image_rows, key=lambda row: str(row["path"])):
        original = upright_size(image)
        for sizes in all_sizes:
            bucket = nearest_bucket(original, sizes)
            if reason := _why_not(original, bucket, params):
                left_out.append((image["path"], reason))
            else:
                rows.setdefault((image["path"], bucket), _row(image, original, bucket, params))
    if not rows:
        raise DataError(_all_left_out(left_out, params))
    return list(rows.values()), left_out


def _why_not(original: Size, bucket: Size, params: BucketParams) -> str:
    """Why a picture cannot be put into a bucket, "" where it can."""
    if not params.upscale and (original[0] < bucket[0] or original[1] < bucket[1]):
        return f"{_text(original)} is smaller than its bucket {_text(bucket)}"
    resize = cover(original, bucket)
    if resize[0] * resize[1] > MAX_RESIZED:
        return f"{_text(original)} would be enlarged to {_text(resize)} for its bucket {_text(bucket)}"
    return ""


def _row(image: Row, original: Size, bucket: Size, params: BucketParams) -> Row:
    """One picture in one bucket: how it is scaled and where it is cut."""
    resize = cover(original, bucket)
    left, top = (resize[0] - bucket[0]) // 2, (resize[1] - bucket[1]) // 2
    row = {name: image[name] for name in ("path", "file_digest", "repeats")}
    row |= {"bucket_w": bucket[0], "bucket_h": bucket[1], "resize_w": resize[0], "resize_h": resize[1]}
    row |= {"crop_left": left, "crop_top": 0 if params.crop == "top" else top}
    return row | {"original_w": original[0], "original_h": original[1]}


def upright_size(image: Row) -> Size:
    """Size as seen: EXIF orientations 5 to 8 lie on their side."""
    width, height = image["width"], image["height"]
    return (height, width) if image["orientation"] >= 5 else (width, height)


def nearest_bucket(original: Size, sizes: Sequence[Size]) -> Size:
    """The size of nearest aspect by ratio (least |log|); of equals the larger, then the first in order."""
    width, height = original

    def distance(size: Size) -> tuple[Fraction, int, Size]:
        ratio = Fraction(width * size[1], height * size[0])
        return max(ratio, 1 / ratio), -size[0] * size[1], size

    return min(sizes, key=distance)


def cover(original: Size, bucket: Size) -> Size:
    """The size to which a picture is resized: one side equals the bucket's, the other is at least as long.

    The other side is rounded to the nearest pixel, halves up.
    """
    (width, height), (bucket_w, bucket_h) = original, bucket
    if bucket_w * height >= bucket_h * width:  # the picture is taller than its bucket
        return bucket_w, (2 * height * bucket_w + width) // (2 * width)
    return (2 * width * bucket_h + height) // (2 * height), bucket_h


def crop_loss(row: Row) -> float:
    """Share of a picture, in percent, that its crop cuts off."""
    kept: float = row["bucket_w"] * row["bucket_h"] / (row["resize_w"] * row["resize_h"])
    return 100 * (1 - kept)


def enlargement(row: Row) -> float:
    """How many times as large as itself a picture is made; below 1 where it is made smaller."""
    return float(max(row["resize_w"] / row["original_w"], row["resize_h"] / row["original_h"]))


def report(rows: Sequence[Row], left_out: Sequence[LeftOut], blank: Mapping[str, str] = NONE) -> str:
    """Markdown: how many pictures each bucket holds and what cropping costs; pictures left out, by name.

    blank: pictures that show nothing, and why.
    """
    lines = ["# Buckets", "", f"{_num_pictures(rows)} pictures used, {len(left_out)} left out.", ""]
    lines += ["| bucket | pictures | with repeats | mean crop loss |", "|---|---|---|---|"]
    counts = Counter((row["bucket_w"], row["bucket_h"]) for row in rows)
    for size, count in sorted(counts.items()):
        own = [row for row in rows if (row["bucket_w"], row["bucket_h"]) == size]
        repeats, loss = sum(row["repeats"] for row in own), sum(map(crop_loss, own)) / count
        lines.append(f"| {_text(size)} | {count} | {repeats} | {loss:.1f} % |")
    if odd := _odd(rows, blank):
        lines += ["", "## Look at these", "", "| picture | what |", "|---|---|"]
        lines += [f"| {_cell(path)} | {what} |" for _, path, what in odd]
    lines += ["", "## Cropped most", "", *_cropped_most(rows), "", "## Left out", ""]
    if left_out:
        hint = "Use larger pictures, lower `buckets.resolution`, or set `buckets.upscale: true`."
        lines += [hint, "", "| picture | reason |", "|---|---|"]
        lines += [f"| {_cell(path)} | {reason} |" for path, reason in left_out]
    else:
        lines.append("No picture.")
    return "\n".join(lines) + "\n"


def summary(rows: Sequence[Row], left_out: Sequence[LeftOut], blank: Mapping[str, str] = NONE) -> str:
    """The stage's last line, and one for each picture that is left out or may not be what a person thinks it is."""
    buckets = len({(row["bucket_w"], row["bucket_h"]) for row in rows})
    odd = _odd(rows, blank)
    counts = Counter(kind for kind, _, _ in odd)
    told = "".join(f", {count} {kind}" for kind, count in counts.items())
    first = f"buckets: {_num_pictures(rows)} pictures in {buckets} buckets, {len(left_out)} left out{told}"
    lines: list[str] = []
    told_of = [*(("left out", path, reason) for path, reason in left_out), *odd]
    for kind in dict.fromkeys(kind for kind, _, _ in told_of):
        named = [f"{kind}: {path}: {what}" for other, path, what in told_of if other == kind]
        lines += named[:MAX_NAMED] + ([f"{kind}: {len(named) - MAX_NAMED} more"] if len(named) > MAX_NAMED else [])
    return "\n".join(printable(line) for line in [first, *lines])


def _odd(rows: Sequence[Row], blank: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Kind, path and words of pictures that lose much, are enlarged much, or show nothing; of each kind by path."""
    found: list[tuple[str, str, str]] = []
    for row in rows:
        path, bucket = row["path"], f"{_text((row['original_w'], row['original_h']))} in a bucket of {_size(row)}"
        if crop_loss(row) > MUCH_CUT:
            found.append((f"cut by more than {MUCH_CUT} %", path, f"{crop_loss(row):.1f} % is cut off, {bucket}"))
        if enlargement(row) > MUCH_ENLARGED:
            found.append((f"enlarged more than {MUCH_ENLARGED}-fold", path, f"{enlargement(row):.1f}-fold, {bucket}"))
    used = {row["path"] for row in rows}
    found += [("blank", path, why) for path, why in blank.items() if path in used]
    return sorted(found, key=lambda one: (one[0] == "blank", one[0], one[1]))


def _size(row: Row) -> str:
    return _text((row["bucket_w"], row["bucket_h"]))


def _num_pictures(rows: Iterable[Row]) -> int:
    return len({row["path"] for row in rows})


def _cropped_most(rows: Sequence[Row]) -> list[str]:
    cropped = [row for row in rows if crop_loss(row) >= 0.05]
    most = sorted(cropped, key=lambda row: (-crop_loss(row), row["path"]))
    if not most:
        return ["Nothing is cut off."]
    lines = ["| picture | size | bucket | crop loss |", "|---|---|---|---|"]
    for row in most[:MAX_CROPPED]:
        size, bucket = (row["original_w"], row["original_h"]), (row["bucket_w"], row["bucket_h"])
        lines.append(f"| {_cell(row['path'])} | {_text(size)} | {_text(bucket)} | {crop_loss(row):.1f} % |")
    return lines


def _outdoes(other: Size, size: Size) -> bool:
    """Whether another size is at least as wide and tall, and elongated as much the same way."""
    if other == size or other[0] < size[0] or other[1] < size[1]:
        return False
    wider = other[0] * size[1] - other[1] * size[0]  # sign: is the other's width/height the greater
    return wider == 0 or (size[0] != size[1] and (wider > 0) == (size[0] > size[1]))


def _all_left_out(left_out: Sequence[LeftOut], params: BucketParams) -> str:
    if not left_out:
        return "there are no pictures to put into buckets: run `dvc repro captions`."
    names = listing([f"{path}: {reason}" for path, reason in left_out])
    if params.upscale:
        return f"every picture is a line that no bucket takes. Crop them, or use others:{names}"
    return (
        f"every picture is too small. Use larger ones, lower buckets.resolution, or set buckets.upscale to true:{names}"
    )


def _text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return text.replace("|", "\\|")
