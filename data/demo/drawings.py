"""The vector drawings that bases and pictures are made from: three icon sets as three styles, and neon outlines.

Legend: RGBA arrays are [H, W, 4], uint8, alpha not multiplied in.
"""

from __future__ import annotations

import colorsys
import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

SETS = {"fluent-emoji-flat": "1.2.6", "noto": "1.2.9", "fluent-emoji-high-contrast": "1.2.6"}  # npm @iconify-json
STYLES = {"flat": "fluent-emoji-flat", "shaded": "noto", "ink": "fluent-emoji-high-contrast"}
SIDE = 128  # pixels a side of a rasterised drawing
NEON_WIDTH = 1.15  # stroke of a neon tube, in units of the set's 32
# fmt: off
SUBJECTS = (
    "ant", "baby-chick", "badger", "bat", "bear", "beaver", "beetle", "bird", "black-cat", "blossom", "blowfish",
    "boar", "bouquet", "bug", "butterfly", "cactus", "camel", "cat", "cat-face", "cherry-blossom", "chicken",
    "chipmunk", "coral", "cow", "cow-face", "crab", "crocodile", "deciduous-tree", "deer", "dog", "dog-face",
    "dolphin", "donkey", "dove", "dragon", "duck", "eagle", "elephant", "evergreen-tree", "fish", "flamingo",
    "four-leaf-clover", "fox", "frog", "giraffe", "goat", "goose", "gorilla", "hamster", "hedgehog", "hibiscus",
    "hippopotamus", "honeybee", "horse", "horse-face", "jellyfish", "kangaroo", "koala", "lady-beetle", "leopard",
    "lion", "lizard", "llama", "lobster", "lotus", "mammoth", "maple-leaf", "monkey", "monkey-face", "moose",
    "mosquito", "mouse", "mouse-face", "mushroom", "octopus", "orangutan", "otter", "owl", "ox", "oyster",
    "palm-tree", "panda", "parrot", "peacock", "penguin", "pig", "pig-face", "polar-bear", "poodle", "potted-plant",
    "rabbit", "rabbit-face", "raccoon", "rat", "rhinoceros", "rooster", "rose", "sauropod", "scorpion", "seal",
    "seedling", "shark", "sheaf-of-rice", "shrimp", "skunk", "sloth", "snail", "snake", "spider", "spiral-shell",
    "spouting-whale", "squid", "sunflower", "swan", "t-rex", "tiger", "tiger-face", "tropical-fish", "tulip",
    "turkey", "turtle", "unicorn", "whale", "wolf", "worm", "zebra",
    "avocado", "bacon", "bagel", "banana", "beer-mug", "bell-pepper", "birthday-cake", "blueberries", "bread",
    "broccoli", "bubble-tea", "burrito", "candy", "carrot", "cheese-wedge", "cherries", "chestnut", "chocolate-bar",
    "cocktail-glass", "coconut", "cookie", "croissant", "cucumber", "cupcake", "dango", "doughnut", "dumpling",
    "ear-of-corn", "eggplant", "french-fries", "garlic", "grapes", "hamburger", "honey-pot", "hot-beverage",
    "hot-dog", "hot-pepper", "ice-cream", "kiwi-fruit", "lemon", "lollipop", "mango", "melon", "onion", "pancakes",
    "peach", "pear", "pie", "pineapple", "pizza", "popcorn", "potato", "poultry-leg", "pretzel", "red-apple",
    "rice-ball", "shortcake", "soft-ice-cream", "spaghetti", "strawberry", "sushi", "taco", "tangerine", "teapot",
    "tomato", "tropical-drink", "waffle", "watermelon", "wine-glass",
    "airplane", "alarm-clock", "ambulance", "anchor", "automobile", "balloon", "basketball", "bicycle", "bus",
    "camera", "candle", "castle", "crown", "drum", "fire-engine", "guitar", "hammer", "helicopter",
    "hourglass-done", "house", "key", "light-bulb", "locomotive", "motorcycle", "rocket", "sailboat", "scissors",
    "snowman", "soccer-ball", "teddy-bear", "telephone", "tent", "tractor", "trophy", "trumpet", "umbrella", "violin",
)
# fmt: on


@dataclass(frozen=True)
class IconSets:
    """The sets' drawings by set and name: SVG bodies and the side of their square box."""

    icons: dict[str, dict[str, tuple[str, float]]]

    def common(self) -> list[str]:
        """Names that stand in every set, sorted."""
        return sorted(set.intersection(*(set(icons) for icons in self.icons.values())))


def load_sets(folder: Path | None, scratch: Path) -> IconSets:
    """Read the sets at their pinned versions, from a folder of unpacked npm packages or by `npm pack`."""
    icons: dict[str, dict[str, tuple[str, float]]] = {}
    for name, version in SETS.items():
        package = folder / name if folder else _pack(name, version, scratch)
        found = json.loads((package / "package.json").read_text("utf-8"))["version"]
        if found != version:
            sys.exit(f"{package}: version {found}, but the demo is made from {version}")
        record: dict[str, Any] = json.loads((package / "icons.json").read_text("utf-8"))
        side = record.get("width", 16)
        icons[name] = {key: (icon["body"], icon.get("width", side)) for key, icon in record["icons"].items()}
    return IconSets(icons)


def _pack(name: str, version: str, scratch: Path) -> Path:
    command = ["npm", "pack", "--silent", f"@iconify-json/{name}@{version}"]
    subprocess.run(command, cwd=scratch, check=True, capture_output=True)
    with tarfile.open(scratch / f"iconify-json-{name}-{version}.tgz") as archive:
        archive.extractall(scratch / name, filter="data")
    return scratch / name / "package"


def rasterise(body: str, box: float, side: int = SIDE) -> np.ndarray:
    """One drawing, filling a square of `side` pixels => RGBA."""
    import cairosvg  # type: ignore[import-untyped]

    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{side}" '
    svg = f'{head}height="{side}" viewBox="0 0 {box} {box}">{body}</svg>'
    png = cairosvg.svg2png(bytestring=svg.encode())
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def neon(sets: IconSets, name: str, side: int = SIDE) -> np.ndarray:
    """The flat drawing's outlines as glowing tubes, light on black => RGB [side, side, 3]; margins are included.

    Each region's outline has the region's colour at full saturation; greys become white. Screen it over a ground.
    """
    body, box = sets.icons[STYLES["flat"]][name]
    body = body.replace('<g fill="none">', "<g>")
    tube = f'fill="none" stroke-width="{NEON_WIDTH * box / 32}" stroke-linejoin="round" stroke='
    body = re.sub(r'fill="(#[0-9a-fA-F]{3,6})"', lambda found: f'{tube}"{_glowing(found[1])}"', body)
    margin = 0.11 * box
    big = 2 * side  # drawn at twice the size, so that tubes are smooth
    frame = f'<g transform="translate({margin} {margin}) scale({1 - 2 * margin / box})">{body}</g>'
    rgba = rasterise(frame, box, big).astype(np.float32)
    light = rgba[..., :3] * rgba[..., 3:] / 255
    glow = light
    for radius, strength in ((5 * side / 128, 0.9), (14 * side / 128, 0.8)):
        channels = [Image.fromarray(light[..., c].astype(np.uint8)) for c in range(3)]
        blurred = np.stack([np.asarray(c.filter(ImageFilter.GaussianBlur(radius))) for c in channels], axis=-1)
        glow = 255 - (255 - glow) * (1 - np.clip(blurred * strength / 255, 0, 1))
    image = Image.fromarray(np.clip(glow, 0, 255).astype(np.uint8))
    return np.asarray(image.resize((side, side), Image.Resampling.LANCZOS))


def _glowing(colour: str) -> str:
    """A colour as a neon tube has it."""
    digits = colour.lstrip("#")
    digits = "".join(digit * 2 for digit in digits) if len(digits) == 3 else digits
    red, green, blue = (int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    if lightness < 0.2 or saturation < 0.12:
        return "#d9e6ff"
    return "#" + "".join(f"{round(channel * 255):02x}" for channel in colorsys.hls_to_rgb(hue, 0.62, 1.0))


def write_pack(sets: IconSets, path: Path) -> None:
    """Rasterise everything that training needs into one zip of PNG files, KIND/NAME.png.

    Kinds: the styles for SUBJECTS; `other-STYLE` and `other-neon` for drawings of nothing that has a caption, from
    which the VAE alone learns: the denoisers never see a neon outline.
    """
    others = [name for name in sets.common() if name not in SUBJECTS][::2]
    with zipfile.ZipFile(path, "w") as archive:
        for names, prefix in ((SUBJECTS, ""), (others, "other-")):
            for style, source in STYLES.items():
                for name in names:
                    _add(archive, f"{prefix}{style}/{name}.png", rasterise(*sets.icons[source][name]))
        for name in others:
            _add(archive, f"other-neon/{name}.png", neon(sets, name))


def _add(archive: zipfile.ZipFile, name: str, pixels: np.ndarray) -> None:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    archive.writestr(name, out.getvalue())


def read_pack(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """The pack: kind -> name -> RGBA or RGB."""
    kinds: dict[str, dict[str, np.ndarray]] = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            kind, name = entry.removesuffix(".png").split("/")
            kinds.setdefault(kind, {})[name] = np.asarray(Image.open(io.BytesIO(archive.read(entry))))
    return kinds
