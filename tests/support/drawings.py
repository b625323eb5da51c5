"""Drawings of a dozen things, filled or as neon outlines: what a base and a LoRA might draw, made from polygons."""

import math
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Array = np.ndarray[Any, np.dtype[Any]]
Points = list[tuple[float, float]]

SIDE = 128
FINE = 3  # drawn so much larger, then made smaller
DARK = (12, 10, 30)
GROUNDS = ("white", "#bfe8d4", "#203060", "#f5e6c8", "#101010", "#a8cdf0")
PAINTS = ("#d83a3a", "#f0a020", "#f4e04d", "#3fa34d", "#2f7fd0", "#8a4fc0", "#7a4a2a", "#e070a0")
TUBES = ("#ff5050", "#ffb040", "#fff060", "#50ff80", "#50b0ff", "#c080ff", "#ff9060", "#ff80c0")


def ngon(count: int, radius: float, x: float = 0, y: float = 0, squash: float = 1, turn: float = 0) -> Points:
    angles = [2 * math.pi * (k + turn) / count for k in range(count)]
    return [(x + radius * math.sin(a), y - squash * radius * math.cos(a)) for a in angles]


def star(count: int, inner: float) -> Points:
    return [
        (r * math.sin(math.pi * k / count), -r * math.cos(math.pi * k / count))
        for k in range(2 * count)
        for r in [0.85 if k % 2 == 0 else inner]
    ]


def box(left: float, top: float, right: float, bottom: float) -> Points:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


THINGS: dict[str, list[Points]] = {
    "a star": [star(5, 0.35)],
    "a house": [box(-0.6, -0.1, 0.6, 0.8), [(-0.8, -0.1), (0, -0.85), (0.8, -0.1)], box(-0.15, 0.3, 0.15, 0.8)],
    "a fish": [ngon(24, 0.55, -0.2, 0, 0.6), [(0.3, 0), (0.85, -0.45), (0.85, 0.45)], ngon(12, 0.08, -0.5, -0.1)],
    "a tree": [box(-0.12, 0.4, 0.12, 0.9), [(-0.6, 0.5), (0, -0.3), (0.6, 0.5)], [(-0.45, 0), (0, -0.85), (0.45, 0)]],
    "a cup": [box(-0.55, -0.5, 0.35, 0.7), ngon(20, 0.3, 0.5, 0.1), ngon(20, 0.17, 0.5, 0.1)],
    "a key": [
        ngon(20, 0.35, -0.5, 0),
        ngon(16, 0.15, -0.5, 0),
        box(-0.15, -0.08, 0.85, 0.08),
        box(0.5, 0.08, 0.7, 0.4),
    ],
    "a boat": [[(-0.85, 0.3), (0.85, 0.3), (0.5, 0.75), (-0.5, 0.75)], [(0, -0.85), (0, 0.2), (0.6, 0.2)]],
    "a flower": [ngon(16, 0.22, 0.4 * math.sin(a), -0.4 * math.cos(a)) for a in (0, 1.26, 2.51, 3.77, 5.03)]
    + [ngon(16, 0.22)],
    "an arrow": [[(-0.85, -0.2), (0.1, -0.2), (0.1, -0.6), (0.85, 0), (0.1, 0.6), (0.1, 0.2), (-0.85, 0.2)]],
    "a snowman": [
        ngon(24, 0.45, 0, 0.45),
        ngon(24, 0.3, 0, -0.25),
        box(-0.3, -0.6, 0.3, -0.5),
        box(-0.18, -0.9, 0.18, -0.6),
    ],
    "a cross": [box(-0.25, -0.85, 0.25, 0.85), box(-0.85, -0.25, 0.85, 0.25)],
    "an umbrella": [[(-0.85, 0), (-0.5, -0.6), (0, -0.8), (0.5, -0.6), (0.85, 0)], box(-0.05, 0, 0.05, 0.85)],
}


def placed(points: Points, shift: tuple[float, float]) -> Points:
    half = SIDE * FINE / 2
    return [(half * (1 + 0.8 * x) + FINE * shift[0], half * (1 + 0.8 * y) + FINE * shift[1]) for x, y in points]


def draw_thing(name: str, seed: int, *, lit: bool) -> Array:
    """RGB [SIDE, SIDE, 3] in 0..1; a seed has its place, ground, colours and noise, the same for both kinds."""
    generator = np.random.default_rng([seed, list(THINGS).index(name)])
    shift = tuple(generator.uniform(-3, 3, 2).tolist())
    ground = GROUNDS[generator.integers(len(GROUNDS))]
    colours = generator.permutation(len(PAINTS))
    image = Image.new("RGB", (SIDE * FINE,) * 2, "black" if lit else ground)
    pen = ImageDraw.Draw(image)
    for number, points in enumerate(THINGS[name]):
        outline = placed(points, (shift[0], shift[1]))
        if lit:
            tube = TUBES[colours[number % len(TUBES)]]
            pen.line([*outline, *outline[:2]], fill=tube, width=round(2.6 * FINE), joint="curve")
        else:
            pen.polygon(outline, fill=PAINTS[colours[number % len(PAINTS)]])
    image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    if lit:
        for radius in (4, 10):
            image = ImageChops.screen(image, image.filter(ImageFilter.GaussianBlur(radius)))
        image = ImageChops.screen(image, Image.new("RGB", image.size, DARK))
    pixels = np.asarray(image, dtype=np.float32) / 255 + 0.01 * generator.standard_normal((SIDE, SIDE, 3))
    return (np.clip(pixels, 0, 1) * 255).round().astype(np.float32) / 255
