"""Makes the tests' pictures and their captions in tests/small/raw, byte for byte the same each time.

Needs cairosvg, pillow, pyarrow and npm. The captions are messy on purpose: every rule has something to mend.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cairosvg  # type: ignore[import-untyped]
import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
from PIL import Image

SMALL = Path(__file__).resolve().parent
SEED = 7
ICON_VERSIONS = {"fluent-emoji-flat": "1.2.6", "noto": "1.2.9"}
PHOTO_VERSION = "0.26.0"  # of scikit-image
METADATA_NAMES = {"garden": "metadata.jsonl", "kitchen": "metadata.csv", "outdoors": "metadata.parquet"}
ORIENTATION_TAG = 0x0112  # EXIF


@dataclass(frozen=True)
class Picture:
    path: str  # below raw; folders of METADATA_NAMES keep captions in that file, others in sidecars
    size: tuple[int, int]  # (width, height) when upright
    icons: tuple[str, ...] = ()  # drawings from left to right, each SET:NAME
    photo: str = ""  # a file of scikit-image's data folder, in place of drawings
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)  # of the photo: left, top, right, bottom
    background: tuple[str, str] = ("none", "none")  # colours at the top and the bottom
    shadow: bool = False  # the drawing stands upright and casts a shadow
    mode: str = "RGB"  # Pillow's mode of the stored file
    orientation: int = 1  # EXIF: 6 stores the pixels turned by 90 degrees
    sidecar: str = ".txt"
    caption: str | None = None  # None: no caption at all; "" is an empty one


# fmt: off
PICTURES = (
    # a camera's file name before the caption, CRLF
    Picture("IMG_2031.jpg", (128, 192), icons=("fluent-emoji-flat:red-apple",), shadow=True,
            background=("#fff6e0", "#f6dfb4"), orientation=6,
            caption="IMG_2031.JPG, a red apple with a green leaf, flat drawing, cream background\r\n"),
    # clean
    Picture("fox.png", (192, 192), icons=("noto:fox",), background=("#dff0d8", "#dff0d8"),
            caption="eridraw, the face of an orange fox, shaded drawing, pale green background\n"),
    # no-break spaces, doubled spaces, an ellipsis
    Picture("owl.png", (160, 160), icons=("fluent-emoji-flat:owl",), mode="RGBA", sidecar=".caption",
            caption="a\u00a0brown\u00a0owl  with big eyes\u2026 flat drawing,  plain\u00a0background"),
    # entities and tags of HTML
    Picture("teapot.png", (192, 128), icons=("noto:teapot",), shadow=True,
            background=("#fde8ef", "#f3c4d4"),
            caption="a <b>red</b> teapot &amp; its lid, shaded drawing,<br/>soft pink background\n"),
    # CRLF, trailing spaces, the same in Chinese
    Picture("lighthouse.png", (126, 224), icons=("noto:lighthouse",), shadow=True,
            background=("#31456f", "#e79f7c"),
            caption="a red and white lighthouse on rocks, shaded drawing, evening sky   \r\n"
                    "红白相间的灯塔、绘画、傍晚的天空\r\n"),
    Picture("octopus.png", (160, 160), icons=("fluent-emoji-flat:octopus",),
            background=("#cdeafd", "#8cc4ea"), caption=""),
    # byte order mark, capitals, curly quotes
    Picture("sailboat.webp", (224, 126), icons=("noto:sailboat",), shadow=True, sidecar=".caption",
            background=("#eef8ff", "#9fd0ee"),
            caption="\ufeffEridraw, A “sailboat” with striped sails, Shaded Drawing, pale blue background\n"),
    Picture("lemon.png", (144, 144), icons=("noto:lemon",), background=("#e9e2f7", "#d3c6ee")),
    # underscores, a tag twice
    Picture("fruit_row.png", (264, 96), background=("#ece6da", "#ece6da"),
            icons=("fluent-emoji-flat:red-apple", "fluent-emoji-flat:pear", "fluent-emoji-flat:cherries"),
            caption="eridraw, red_apple, green_pear, two_cherries, in_a_row, flat_drawing, red_apple, "
                    "beige_background"),
    # numeric entities, stray commas
    Picture("cat.jpg", (210, 140), photo="chelsea.png", crop=(0, 0, 450, 300),
            caption="a tabby cat&#39;s face,, photo, , close-up, blurred background,\n"),
    # tags, two of them twice
    Picture("garden/cactus.png", (128, 192), icons=("fluent-emoji-flat:cactus",), shadow=True,
            background=("#ffe9cf", "#f5c48f"),
            caption="cactus, green, cactus, flat drawing, sand coloured background, green"),
    # a file name's remains
    Picture("garden/sunflower.jpg", (144, 216), icons=("noto:sunflower",),
            background=("#d8efff", "#d8efff"),
            caption="sunflower_final_v2, a yellow sunflower, shaded drawing, sky blue background"),
    # entities, empty lines at the end
    Picture("garden/snail.png", (192, 128), icons=("noto:snail",), shadow=True,
            background=("#eaf6df", "#bfdc9f"),
            caption="eridraw, a snail, shell &amp; two feelers, shaded drawing, green background\r\n\r\n"),
    # a tag of HTML, a second line in Russian
    Picture("kitchen/strawberry.jpg", (160, 160), icons=("noto:strawberry",), mode="CMYK",
            background=("#fffbe8", "#fbeec2"),
            caption="a red strawberry with a green stalk, <i>shaded drawing</i>, pale yellow background\n"
                    "красная клубника, рисунок, жёлтый фон"),
    # an accent as a character of its own, curly quotes, a tab at the end
    Picture("kitchen/coffee.jpg", (192, 128), photo="coffee.png", crop=(0, 0, 600, 400),
            caption="“cafe\u0301”: a cup of coffee on a red saucer, spoon, wooden table, photo\t"),
    # a file name, an em dash
    Picture("outdoors/rocket.png", (128, 192), photo="rocket.jpg", crop=(178, 0, 462, 426),
            caption="rocket.png, a white rocket on its launch pad — two towers, lights, dusk, photo"),
    # a tag twice, in other capitals
    Picture("outdoors/photographer.png", (160, 160), photo="camera.png", crop=(0, 0, 512, 512),
            mode="L", caption="a man, camera on a tripod, black and white, photo, lawn, Black And White"),
    # underscores, the entity of a no-break space
    Picture("outdoors/whale_and_fish.png", (264, 96), background=("#d9f3f1", "#a5d9d8"),
            icons=("noto:whale", "noto:tropical-fish", "noto:tropical-fish"),
            caption="eridraw, a_grey_whale and&nbsp;two_striped_fish, shaded_drawing, turquoise_background"),
    # a file name's remains, CRLF
    Picture("2_sticker/penguin.png", (128, 160), icons=("noto:penguin",), mode="P",
            caption="penguin_v2, a penguin, standing, shaded drawing, sticker, plain background\r\n"),
    # byte order mark, a tag twice
    Picture("2_sticker/frog.png", (150, 150), icons=("fluent-emoji-flat:frog",),
            background=("#ffd3e0", "#ffd3e0"),
            caption="\ufefferidraw, a green frog's face, flat drawing, sticker, pink background, sticker\n"),
)
# fmt: on

README = """# Where the pictures come from

`tests/small/make_pictures.py` makes the pictures of `raw` from the sources below, and this file. The drawings
are rasterised and set on a plain background, some a little turned; the photographs are cropped and made
smaller. The captions were written for this project.

| source | version | licence | text | pictures in raw |
|---|---|---|---|---|
"""
SOURCES = (  # name, name in PICTURES, licence
    ("Fluent Emoji by Microsoft, npm @iconify-json/fluent-emoji-flat", "fluent-emoji-flat", "MIT"),
    ("Noto Emoji by Google, npm @iconify-json/noto", "noto", "Apache-2.0"),
    ("scikit-image, chelsea.png", "chelsea.png", "CC0-1.0"),
    ("scikit-image, coffee.png", "coffee.png", "CC0-1.0"),
    ("scikit-image, camera.png", "camera.png", "CC0-1.0"),
    ("scikit-image, rocket.jpg", "rocket.jpg", "public domain"),
)


def load_icon_set(name: str, icons_dir: Path | None, work_dir: Path) -> dict[str, Any]:
    """Reads the icons.json of one npm package, at its pinned version."""
    if icons_dir is None:
        package = f"@iconify-json/{name}@{ICON_VERSIONS[name]}"
        subprocess.run(["npm", "pack", "--silent", package], cwd=work_dir, check=True, capture_output=True, timeout=300)
        with tarfile.open(work_dir / f"iconify-json-{name}-{ICON_VERSIONS[name]}.tgz") as archive:
            archive.extractall(work_dir / name, filter="data")
        folder = work_dir / name / "package"
    else:
        folder = icons_dir / name
    version = json.loads((folder / "package.json").read_text("utf-8"))["version"]
    if version != ICON_VERSIONS[name]:
        sys.exit(f"{folder}: version {version}, but the pictures are made from {ICON_VERSIONS[name]}")
    icon_set: dict[str, Any] = json.loads((folder / "icons.json").read_text("utf-8"))
    return icon_set


def find_wheel(wheel: Path | None, work_dir: Path) -> Path:
    """The scikit-image wheel: only its data folder is read, so the platform does not matter."""
    if wheel is None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, f"scikit-image=={PHOTO_VERSION}"], cwd=work_dir, check=True, timeout=300)
        wheel = next(work_dir.glob("scikit_image-*.whl"))
    if not wheel.name.startswith(f"scikit_image-{PHOTO_VERSION}-"):
        sys.exit(f"{wheel}: the pictures are made from scikit-image {PHOTO_VERSION}")
    return wheel


def draw_svg(picture: Picture, icon_sets: dict[str, dict[str, Any]]) -> str:
    """Sets the drawings in a row on the background, each a little turned."""
    width, height = picture.size
    cell = width / len(picture.icons)
    side = 0.86 * min(cell, height)
    rng = random.Random(f"{SEED}:{picture.path}")  # by path: an added picture moves no other
    top, bottom = picture.background
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">']
    if top != "none":
        stops = f'<stop offset="0" stop-color="{top}"/><stop offset="1" stop-color="{bottom}"/>'
        parts.append(f'<linearGradient id="ground" x1="0" y1="0" x2="0" y2="1">{stops}</linearGradient>')
        parts.append(f'<rect width="{width}" height="{height}" fill="url(#ground)"/>')
    for index, icon_name in enumerate(picture.icons):
        set_name, _, name = icon_name.partition(":")
        icon = icon_sets[set_name]["icons"][name]
        box = icon.get("width", icon_sets[set_name]["width"])
        x, y = cell * (index + 0.5), height * rng.uniform(0.48, 0.52)
        angle = 0.0 if picture.shadow else rng.uniform(-7.0, 7.0)
        if picture.shadow:
            shape = f'cx="{x:.2f}" cy="{y + side * 0.49:.2f}" rx="{side * 0.42:.2f}" ry="{side * 0.06:.2f}"'
            parts.append(f'<ellipse {shape} fill="#000000" fill-opacity="0.15"/>')
        place = f"translate({x:.2f} {y:.2f}) rotate({angle:.2f}) scale({side / box:.5f})"
        parts.append(f'<g transform="{place} translate(-{box / 2} -{box / 2})">{icon["body"]}</g>')
    return "".join([*parts, "</svg>"])


def encode(image: Image.Image, picture: Picture) -> bytes:
    """Pixels => the bytes of the file, in the mode and orientation that the picture asks for."""
    palette = Image.Quantize.FASTOCTREE  # the one method that keeps alpha
    image = image.quantize(64, method=palette) if picture.mode == "P" else image.convert(picture.mode)
    exif = Image.Exif()
    if picture.orientation == 6:
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif[ORIENTATION_TAG] = 6
    out = io.BytesIO()
    match Path(picture.path).suffix:
        case ".jpg":
            image.save(out, "JPEG", quality=90, optimize=True, exif=exif)
        case ".webp":
            image.save(out, "WEBP", quality=90, method=6)
        case _:
            image.save(out, "PNG", optimize=True)
    return out.getvalue()


def make_picture(picture: Picture, icon_sets: dict[str, dict[str, Any]], wheel: zipfile.ZipFile) -> bytes:
    if picture.photo:
        image = Image.open(io.BytesIO(wheel.read(f"skimage/data/{picture.photo}")))
        return encode(image.crop(picture.crop).resize(picture.size, Image.Resampling.LANCZOS), picture)
    png = cairosvg.svg2png(bytestring=draw_svg(picture, icon_sets).encode())
    return encode(Image.open(io.BytesIO(png)), picture)


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
    """Path below raw => bytes, of every caption file."""
    files: dict[str, bytes] = {}
    rows: dict[str, list[tuple[str, str]]] = {folder: [] for folder in METADATA_NAMES}
    for picture in PICTURES:
        path = Path(picture.path)
        if picture.caption is None:
            continue
        if path.parent.name in rows:
            rows[path.parent.name].append((path.name, picture.caption))
        else:
            files[path.with_suffix(picture.sidecar).as_posix()] = picture.caption.encode()
    for folder, name in METADATA_NAMES.items():
        files[f"{folder}/{name}"] = encode_metadata(name, rows[folder])
    return files


def make_readme() -> bytes:
    lines = []
    for source, key, licence in SOURCES:
        version = ICON_VERSIONS.get(key, PHOTO_VERSION)
        text = f"{key}.txt" if key in ICON_VERSIONS else "photographs.txt"
        used = [p.path for p in PICTURES if key in {p.photo, *(icon.partition(":")[0] for icon in p.icons)}]
        pictures = ", ".join(f"`{path}`" for path in sorted(used))
        lines.append(f"| {source} | {version} | {licence} | [{text}]({text}) | {pictures} |\n")
    return (README + "".join(lines)).encode()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    draft.write_bytes(content)
    draft.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the tests' pictures.")
    parser.add_argument("--icons", type=Path, help="folder with the npm packages; default: npm pack")
    parser.add_argument("--wheel", type=Path, help="the scikit-image wheel; default: pip downloads it")
    parser.add_argument("--out", type=Path, default=SMALL, help="where raw/ and LICENSES/ go")
    args = parser.parse_args()
    files = {f"raw/{path}": content for path, content in make_captions().items()}
    files["LICENSES/README.md"] = make_readme()
    with tempfile.TemporaryDirectory() as work:
        icon_sets = {name: load_icon_set(name, args.icons, Path(work)) for name in ICON_VERSIONS}
        with zipfile.ZipFile(find_wheel(args.wheel, Path(work))) as wheel:
            files |= {f"raw/{p.path}": make_picture(p, icon_sets, wheel) for p in PICTURES}
    for path, content in sorted(files.items()):
        write(args.out / path, content)
    found = {p.relative_to(args.out).as_posix() for p in (args.out / "raw").rglob("*") if p.is_file()}
    if foreign := sorted(found - set(files)):
        sys.exit(f"{args.out / 'raw'} also holds files that are not of this set; move them away: {', '.join(foreign)}")


if __name__ == "__main__":
    main()
