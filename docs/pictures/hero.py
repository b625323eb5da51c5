"""Make docs/pictures/hero.png: what the demo's LoRA learned, for all three families.

    python docs/pictures/hero.py sdxl=FOLDER sd35=FOLDER flux=FOLDER

FOLDER is the data/samples of a run of presets/tiny-FAMILY.yaml. A row a family: some pictures that it was trained on,
then four subjects that it was not, each by the base and with the LoRA at half and full strength, at the same seed.
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from eridiff.core.config import read_yaml
from eridiff.dataset.image.decode import load_pixels
from eridiff.formats.tables import read_table

ROOT = Path(__file__).resolve().parent.parent.parent
OUT = Path(__file__).with_name("hero.png")
NAMES = {"sdxl": "SDXL", "sd35": "SD 3.5", "flux": "Flux.1"}
TRAINED = ("neon/fox.png", "neon/guitar.png", "neon/rocket.png", "neon/teapot.png")
SHOWN = ("an owl", "a castle", "a strawberry", "a snail")
CELL, GAP, WIDE, HEAD, SIDE = 112, 4, 20, 58, 76
INK, PAPER = "#1f2328", "#ffffff"


def columns_of(folder: Path) -> list[str]:
    """The base's label and those of the strengths, as file names have them, weakest first."""
    labels = {path.stem.split("-", 1)[1] for path in folder.glob("images/00-*.png")}
    plain = {label for label in labels if not label.endswith("-without")}
    return ["base", *sorted(plain - {"base"}, key=lambda label: float(label.rsplit("x", 1)[1]))]


def row_of(family: str, subject: str) -> int:
    """Number of the first row of samples whose prompt ends with a subject."""
    sample = read_yaml(ROOT / "presets" / f"tiny-{family}.yaml")["sample"]
    place = next(i for i, prompt in enumerate(sample["prompts"]) if prompt["prompt"].endswith(f", {subject}"))
    return place * len(sample["seeds"])


def training_pictures() -> list[Image.Image]:
    """The chosen neon pictures."""
    rows, _ = read_table(ROOT / "data/captions/images.parquet")
    digests = {row["path"]: row["file_digest"] for row in rows}
    return [load_pixels(ROOT / "data/raw" / path, digests[path]).convert("RGB") for path in TRAINED]


def cell(image: Image.Image) -> Image.Image:
    """A picture's middle, as a square of CELL."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((CELL, CELL), Image.Resampling.LANCZOS)


def draw(folders: dict[str, Path]) -> Image.Image:
    """The strip."""
    block = 3 * CELL + 2 * GAP
    left = SIDE + 2 * CELL + GAP + WIDE
    width, height = left + len(SHOWN) * (block + WIDE) - WIDE, HEAD + len(folders) * (CELL + GAP)
    page = Image.new("RGB", (width, height), PAPER)
    pen, font, small = ImageDraw.Draw(page), ImageFont.load_default(size=20), ImageFont.load_default(size=19)
    pen.text((SIDE, 2), "4 of 15 it was shown", fill=INK, font=small)
    pictures = training_pictures()
    for number, picture in enumerate(pictures):
        across, down = number % 2, number // 2
        page.paste(cell(picture), (SIDE + across * (CELL + GAP), HEAD + down * (CELL + GAP)))
    for number, subject in enumerate(SHOWN):
        x = left + number * (block + WIDE)
        pen.text((x, 2), f"{subject} (never shown)", fill=INK, font=small)
        for place, label in enumerate(("base", "LoRA 0.5", "LoRA 1.0")):
            pen.text((x + place * (CELL + GAP), 30), label, fill=INK, font=small)
    for line, (family, folder) in enumerate(folders.items()):
        y = HEAD + line * (CELL + GAP)
        pen.text((2, y + CELL // 2 - 8), NAMES[family], fill=INK, font=font)
        for number, subject in enumerate(SHOWN):
            for place, label in enumerate(columns_of(folder)):
                image = Image.open(folder / "images" / f"{row_of(family, subject):02d}-{label}.png").convert("RGB")
                page.paste(cell(image), (left + number * (block + WIDE) + place * (CELL + GAP), y))
    return page


def main() -> None:
    """Write the strip of the families that are named."""
    folders = {family: Path(folder) for family, folder in (argument.split("=", 1) for argument in sys.argv[1:])}
    draw(folders).save(OUT, optimize=True)


if __name__ == "__main__":
    main()
