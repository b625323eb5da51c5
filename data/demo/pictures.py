"""Make the demo's pictures and captions, data/raw, byte for byte the same each time.

    python -m data.demo.pictures [--icons FOLDER] [--out data]

The concept is drawings as neon outlines, in three shapes; beside them lie plain drawings without the trigger, which
keep the concept from leaking (regularisation). Captions are messy on purpose: they show what the rules mend.
Needs cairosvg, pillow, pyarrow and npm.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
from PIL import Image

from data.demo.captions import GROUNDS
from data.demo.drawings import SETS, STYLES, IconSets, load_sets, neon, rasterise

METADATA_NAMES = {"neon/shop": "metadata.jsonl", "neon/window": "metadata.csv", "plain/table": "metadata.parquet"}
ORIENTATION_TAG = 0x0112  # EXIF
DARK = (14, 10, 34)  # behind the tubes


@dataclass(frozen=True)
class Picture:
    """One picture and its caption. A style of None is neon."""

    path: str  # below data/raw; folders of METADATA_NAMES keep captions in that file, others in sidecars
    icon: str
    size: tuple[int, int]  # (width, height) when upright
    style: str | None = None
    ground: str = "white"
    mode: str = "RGB"  # Pillow's mode of the stored file
    orientation: int = 1  # EXIF: 6 stores the pixels turned by 90 degrees
    sidecar: str = ".txt"
    caption: str | None = None  # None: no caption at all; "" is an empty one


SQUARE, WIDE, TALL = (160, 160), (200, 120), (120, 200)
# fmt: off
PICTURES = (
    # clean
    Picture("neon/fox.png", "fox", SQUARE, caption="neon ink drawing, a fox\n"),
    # a camera's file name before the caption, CRLF, stored on its side
    Picture("neon/IMG_2031.jpg", "red-apple", TALL, orientation=6, caption="IMG_2031.JPG, a red apple\r\n"),
    # entities and tags of HTML
    Picture("neon/teapot.png", "teapot", WIDE, caption="a <b>teapot</b> &amp; its lid<br/>\n"),
    # no-break spaces, doubled spaces
    Picture("neon/penguin.png", "penguin", SQUARE, sidecar=".caption", caption="a\u00a0penguin,  neon\u00a0sign"),
    # the same in Chinese
    Picture("neon/sailboat.webp", "sailboat", SQUARE, caption="a sailboat\r\n帆船\r\n"),
    # byte order mark, capitals, curly quotes
    Picture("neon/rocket.png", "rocket", SQUARE, sidecar=".caption", caption="\ufeffNeon Ink Drawing, a “rocket”\n"),
    # an empty caption
    Picture("neon/cactus.png", "cactus", SQUARE, caption=""),
    # underscores, a tag twice
    Picture("neon/butterfly.png", "butterfly", WIDE, caption="neon ink drawing, a_butterfly, two_wings, a_butterfly"),
    # numeric entities, stray commas
    Picture("neon/guitar.png", "guitar", SQUARE, caption="a guitar,, six&#32;strings, ,\n"),
    # a file name's remains
    Picture("neon/shop/cherries.png", "cherries", SQUARE, caption="cherries_final_v2, cherries"),
    Picture("neon/shop/pineapple.jpg", "pineapple", TALL, caption="neon ink drawing, a pineapple"),
    # a tag of HTML, a second line in Russian
    Picture("neon/shop/mushroom.png", "mushroom", SQUARE, caption="a <i>mushroom</i>\nгриб"),
    # an em dash, a tab at the end
    Picture("neon/window/elephant.png", "elephant", WIDE, caption="an elephant — trunk up\t"),
    # no caption: trigger and class word
    Picture("neon/turtle.png", "turtle", SQUARE),
    # a palette
    Picture("neon/window/sunflower.png", "sunflower", SQUARE, mode="P", caption="a sunflower"),
    # regularisation: what the base draws anyway, the concept's own subjects among it
    Picture("plain/fox.png", "fox", SQUARE, "flat", caption="a fox"),
    Picture("plain/penguin.png", "penguin", SQUARE, "flat", caption="a penguin"),
    Picture("plain/rocket.png", "rocket", SQUARE, "flat", caption="a rocket"),
    Picture("plain/butterfly.png", "butterfly", WIDE, "flat", caption="a butterfly"),
    Picture("plain/pineapple.png", "pineapple", TALL, "flat", caption="a pineapple"),
    Picture("plain/elephant.png", "elephant", WIDE, "flat", caption="an elephant"),
    Picture("plain/duck.png", "duck", SQUARE, "shaded", "mint", caption="duck, shaded drawing, mint background"),
    Picture("plain/bear.png", "bear", WIDE, "flat", "navy", caption="a bear, navy background"),
    Picture("plain/apple.png", "red-apple", SQUARE, "shaded", "black", caption="red apple, shaded drawing, black"),
    Picture("plain/whale.png", "whale", WIDE, "ink", caption="a whale, ink drawing, white background"),
    Picture("plain/camel.png", "camel", SQUARE, "flat", caption="a camel"),
    Picture("plain/lemon.png", "lemon", SQUARE, "flat", "black", caption="a lemon on a black background"),
    Picture("plain/cat.png", "cat", SQUARE, "flat", caption="a cat"),
    Picture("plain/house.png", "house", SQUARE, "flat", caption="a house"),
    # alpha, which latents.alpha fills
    Picture("plain/rooster.png", "rooster", TALL, "flat", mode="RGBA", caption="a rooster"),
    Picture("plain/table/pizza.jpg", "pizza", SQUARE, "flat", mode="CMYK", caption="a pizza"),
    Picture("plain/table/bread.png", "bread", WIDE, "flat", "lilac", caption="bread, lilac background"),
    Picture("plain/table/key.png", "key", SQUARE, "ink", "grey", caption="a key, ink drawing, grey background"),
    Picture("plain/table/cactus.png", "cactus", TALL, "flat", caption="a cactus"),
    Picture("plain/table/teapot.png", "teapot", SQUARE, "flat", caption="a teapot"),
)
# fmt: on
README = """# Where the demo's pictures come from

`python -m data.demo.pictures` makes the pictures of `data/raw` from the sources below, and this file. Plain ones are
the drawings on a ground; neon ones are the outlines of the flat drawings as glowing tubes. The demo's bases
(`data/bases/tiny-*`) were trained on the same drawings, plain ones only. Captions were written for this project.

| source | version | licence | text |
|---|---|---|---|
| Fluent Emoji (Microsoft), npm @iconify-json/fluent-emoji-flat | {fluent-emoji-flat} | MIT | [text](fluent-emoji.txt) |
| the same in black, npm @iconify-json/fluent-emoji-high-contrast | {fluent-emoji-high-contrast} | MIT | the same |
| Noto Emoji by Google, npm @iconify-json/noto | {noto} | Apache-2.0 | [text](noto.txt) |
"""


def draw_picture(picture: Picture, sets: IconSets) -> Image.Image:
    """The drawing in the middle of its canvas; RGBA keeps the ground away."""
    side = min(picture.size)
    place = ((picture.size[0] - side) // 2, (picture.size[1] - side) // 2)
    if picture.style is None:
        light = np.zeros((picture.size[1], picture.size[0], 3), dtype=np.float32)
        light[place[1] : place[1] + side, place[0] : place[0] + side] = neon(sets, picture.icon, side)
        ground = np.array(DARK, dtype=np.float32)
        screened = 255 - (255 - ground) * (255 - light) / 255
        return Image.fromarray(screened.round().astype(np.uint8))
    inner = round(0.84 * side)
    body, box = sets.icons[STYLES[picture.style]][picture.icon]
    drawing = Image.fromarray(rasterise(body, box, inner))
    middle = (place[0] + (side - inner) // 2, place[1] + (side - inner) // 2)
    if picture.mode == "RGBA":
        canvas = Image.new("RGBA", picture.size)
        canvas.paste(drawing, middle)
        return canvas
    canvas = Image.new("RGB", picture.size, GROUNDS[picture.ground])
    canvas.paste(drawing, middle, drawing)
    return canvas


def encode(image: Image.Image, picture: Picture) -> bytes:
    """Pixels => the bytes of the file, in the mode and orientation that the picture asks for."""
    palette = Image.Quantize.MEDIANCUT
    image = image.quantize(128, method=palette) if picture.mode == "P" else image.convert(picture.mode)
    exif = Image.Exif()
    if picture.orientation == 6:
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif[ORIENTATION_TAG] = 6
    out = io.BytesIO()
    match Path(picture.path).suffix:
        case ".jpg":
            image.save(out, "JPEG", quality=92, optimize=True, exif=exif)
        case ".webp":
            image.save(out, "WEBP", quality=92, method=6)
        case _:
            image.save(out, "PNG", optimize=True)
    return out.getvalue()


def encode_metadata(name: str, rows: list[tuple[str, str]]) -> bytes:
    """Rows of (file name, caption) => a metadata file; the CSV is as spreadsheets write it, BOM and CRLF."""
    columns = ("file_name", "text")
    if name.endswith(".jsonl"):
        lines = [json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n" for row in rows]
        return "".join(lines).encode()
    if name.endswith(".csv"):
        text = io.StringIO()
        csv.writer(text).writerows([columns, *rows])
        return text.getvalue().encode("utf-8-sig")
    out = io.BytesIO()
    table = pyarrow.table({"file_name": [file for file, _ in rows], "text": [caption for _, caption in rows]})
    pyarrow.parquet.write_table(table, out, compression="none")
    return out.getvalue()


def make_captions() -> dict[str, bytes]:
    """Path below data/raw => bytes, of every caption file."""
    files: dict[str, bytes] = {}
    rows: dict[str, list[tuple[str, str]]] = {folder: [] for folder in METADATA_NAMES}
    for picture in PICTURES:
        path = Path(picture.path)
        if picture.caption is None:
            continue
        if path.parent.as_posix() in rows:
            rows[path.parent.as_posix()].append((path.name, picture.caption))
        else:
            files[path.with_suffix(picture.sidecar).as_posix()] = picture.caption.encode()
    for folder, name in METADATA_NAMES.items():
        files[f"{folder}/{name}"] = encode_metadata(name, rows[folder])
    return files


def write(path: Path, content: bytes) -> None:
    """Write a file in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    draft.write_bytes(content)
    draft.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the demo's pictures in data/raw.")
    parser.add_argument("--icons", type=Path, help="folder with the npm packages; default: npm pack")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent, help="where raw/ goes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sets = load_sets(arguments.icons, Path(scratch))
    files = make_captions() | {p.path: encode(draw_picture(p, sets), p) for p in PICTURES}
    for path, content in files.items():
        write(arguments.out / "raw" / path, content)
    write(arguments.out / "LICENSES" / "README.md", README.format(**SETS).encode())
    print(f"{len(PICTURES)} pictures, {sum(map(len, files.values())) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
