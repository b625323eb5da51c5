"""Do a base's samples show what was asked for? Their nearest drawing, among all that were asked for, tells.

python -m data.demo.accuracy FOLDER --drawings drawings.zip --sheet samples.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data.demo.captions import STYLE_NAMES, spoken, with_article
from data.demo.drawings import STYLES, SUBJECTS, read_pack
from data.demo.layouts import write

CHECKED = SUBJECTS[::4][:54]  # every fourth subject, of every kind
REFERENCES = Path(__file__).with_name("references.png")  # what the tests compare with
SMALL, SIDE, STEPS, GUIDANCE, BATCH = 32, 128, 20, 4.0, 27


def prompt(subject: str, style: str) -> str:
    """What is asked for."""
    return f"{with_article(spoken(subject))}, {STYLE_NAMES[style]}, white background"


def smaller(image: Image.Image) -> Image.Image:
    """A picture of SMALL x SMALL; drawings then need not be in the same place exactly."""
    return image.convert("RGB").resize((SMALL, SMALL), Image.Resampling.BOX)


def shrink(image: Image.Image) -> np.ndarray:
    """A picture as it is compared: [SMALL, SMALL, 3], 0..1."""
    return np.asarray(smaller(image), dtype=np.float32) / 255


def reference(rgba: np.ndarray) -> Image.Image:
    """A drawing as a sample shows it: on white, a little smaller than the picture."""
    inner = round(0.82 * SIDE)
    drawing = Image.fromarray(rgba).resize((inner, inner), Image.Resampling.BOX)
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    canvas.paste(drawing, ((SIDE - inner) // 2,) * 2, drawing)
    return canvas


def write_references(pack: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """The drawings that samples are compared with, as one small picture: a row a style, a column a subject."""
    page = Image.new("RGB", (SMALL * len(CHECKED), SMALL * len(STYLES)))
    for row, style in enumerate(STYLES):
        for column, name in enumerate(CHECKED):
            page.paste(smaller(reference(pack[style][name])), (column * SMALL, row * SMALL))
    page.save(path, optimize=True)


def read_references(path: Path) -> np.ndarray:
    """The same, [style and subject, SMALL, SMALL, 3], 0..1."""
    pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255
    cells = pixels.reshape(len(STYLES), SMALL, len(CHECKED), SMALL, 3).transpose(0, 2, 1, 3, 4)
    return cells.reshape(-1, SMALL, SMALL, 3)


def nearest(samples: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Number of the nearest reference (mean square of pixels) of each sample: [N, h, w, 3], [M, h, w, 3] => [N]."""
    flat, known = samples.reshape(len(samples), -1), references.reshape(len(references), -1)
    squares = (flat**2).sum(1)[:, None] + (known**2).sum(1)[None] - 2 * flat @ known.T
    return squares.argmin(axis=1)


def sample(pipeline: Any, prompts: list[str], *, guidance: float = GUIDANCE, steps: int = STEPS) -> list[Image.Image]:
    """One picture a prompt, in batches, each from its own seed."""
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), BATCH):
        some = prompts[start : start + BATCH]
        seeds = [torch.Generator().manual_seed(start + i) for i in range(len(some))]
        with torch.inference_mode():
            answer = pipeline(
                prompt=some,
                generator=seeds,
                num_inference_steps=steps,
                guidance_scale=guidance,
                width=SIDE,
                height=SIDE,
                **({} if "XL" in type(pipeline).__name__ else {"max_sequence_length": 77}),
            )
        pictures += answer.images
    return pictures


def sheet(pictures: list[Image.Image], columns: int) -> Image.Image:
    """Pictures in rows."""
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * (SIDE + 2), rows * (SIDE + 2)), "white")
    for number, picture in enumerate(pictures):
        page.paste(picture, (number % columns * (SIDE + 2), number // columns * (SIDE + 2)))
    return page


def load_pipeline(folder: Path, device: torch.device) -> Any:
    """The folder's own diffusers pipeline, in fp32."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description="How often a base's samples are nearest to what was asked for.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--drawings", type=Path, required=True)
    parser.add_argument("--sheet", type=Path, help="a picture of all samples")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pack = read_pack(arguments.drawings)
    pipeline = load_pipeline(arguments.folder, device)
    references = np.stack([shrink(reference(pack[style][name])) for style in STYLES for name in CHECKED])
    report, pictures = {}, []
    for style in STYLES:
        drawn = sample(pipeline, [prompt(name, style) for name in CHECKED])
        found = nearest(np.stack([shrink(picture) for picture in drawn]), references) % len(CHECKED)
        report[style] = float((found == np.arange(len(CHECKED))).mean())
        pictures += drawn
    print(f"{arguments.folder.name}: {json.dumps(report)}", flush=True)
    write(arguments.folder / "accuracy.report.json", {style: round(share, 3) for style, share in report.items()})
    if arguments.sheet:
        sheet(pictures, 27).save(arguments.sheet)


if __name__ == "__main__":
    main()
