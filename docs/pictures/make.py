"""Make docs/pictures/demo.png: the demo pictures, each with the crop that its bucket takes.

    python docs/pictures/make.py

Reads data/raw and data/buckets/buckets.parquet, which `dvc repro buckets` makes. The same bytes each time.
"""

from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from eridiff.dataset.image.decode import load_pixels
from eridiff.formats.tables import Row, read_table

ROOT = Path(__file__).resolve().parent.parent.parent
OUT = Path(__file__).with_name("demo.png")
CELL, GAP, LABEL, HEAD, COLUMNS = 150, 12, 18, 30, 5
COLOURS = ("#0969da", "#1a7f37", "#bf3989", "#bc4c00", "#8250df", "#9a6700")
INK, PAPER, VEIL = "#1f2328", "#ffffff", (125, 133, 141, 170)


def bucket_of(row: Row) -> tuple[int, int]:
    """(width, height) of a row's bucket."""
    return row["bucket_w"], row["bucket_h"]


def draw_cell(row: Row, colour: str) -> Image.Image:
    """One picture, whole, at most CELL pixels a side: a frame round its crop, what is cut off grey."""
    picture = load_pixels(ROOT / "data/raw" / row["path"], row["file_digest"]).convert("RGBA")
    scale = min(CELL / picture.width, CELL / picture.height)
    size = (round(picture.width * scale), round(picture.height * scale))
    cell = Image.new("RGBA", size, PAPER)
    cell.alpha_composite(picture.resize(size, Image.Resampling.LANCZOS))
    across, down = size[0] / row["resize_w"], size[1] / row["resize_h"]  # resized picture => cell
    left, top = row["crop_left"] * across, row["crop_top"] * down
    right, bottom = left + row["bucket_w"] * across, top + row["bucket_h"] * down
    box = (round(left), round(top), round(right) - 1, round(bottom) - 1)
    veil = Image.new("RGBA", size, VEIL)
    ImageDraw.Draw(veil).rectangle(box, fill=(0, 0, 0, 0))
    cell.alpha_composite(veil)
    ImageDraw.Draw(cell).rectangle(box, outline=colour, width=2)
    return cell


def main() -> None:
    """Lay out the sheet, bucket by bucket."""
    rows, _ = read_table(ROOT / "data/buckets/buckets.parquet")
    rows = sorted(rows, key=lambda row: (bucket_of(row), row["path"]))
    groups = [(bucket, list(members)) for bucket, members in groupby(rows, bucket_of)]
    sheet = Image.new("RGB", (GAP + COLUMNS * (CELL + GAP), len(rows) * (HEAD + CELL + LABEL + GAP)), PAPER)
    pen = ImageDraw.Draw(sheet)
    head, small = ImageFont.load_default(size=16), ImageFont.load_default(size=12)
    top = GAP
    for number, (bucket, members) in enumerate(groups):
        colour = COLOURS[number % len(COLOURS)]
        count = f"{len(members)} picture{'' if len(members) == 1 else 's'}"
        pen.text((GAP, top), f"bucket {bucket[0]} x {bucket[1]}: {count}", fill=colour, font=head)
        top += HEAD
        for start in range(0, len(members), COLUMNS):
            line = members[start : start + COLUMNS]
            cells = [draw_cell(row, colour) for row in line]
            tallest = max(cell.height for cell in cells)
            for column, (row, cell) in enumerate(zip(line, cells, strict=True)):
                middle = GAP + column * (CELL + GAP) + CELL // 2
                sheet.paste(cell.convert("RGB"), (middle - cell.width // 2, top + (tallest - cell.height) // 2))
                pen.text((middle, top + tallest + 2), row["path"], fill=INK, font=small, anchor="ma")
            top += tallest + LABEL + GAP
    sheet.crop((0, 0, sheet.width, top)).save(OUT, optimize=True)


if __name__ == "__main__":
    main()
