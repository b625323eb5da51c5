"""Samples: the same prompts and seeds with and without the LoRA, for checkpoints and strengths, in one grid."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from eridiff.draw import DrawParams, Prompt, check_draw, draw, fill_trigger
from eridiff.errors import ConfigError
from eridiff.families import Family
from eridiff.files import atomic_write, write_text
from eridiff.lora import read_checkpoint
from eridiff.progress import track
from eridiff.sources import ModelSource

if TYPE_CHECKING:
    import torch
    from PIL import Image


class SampleParams(DrawParams):
    """Which pictures show what the LoRA learned."""

    prompts: Annotated[tuple[Prompt, ...], Field(min_length=1)]
    """Prompts to draw."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    """Seeds of the first noise; every prompt is drawn with each."""
    checkpoints: Annotated[tuple[Literal["last"] | int, ...], Field(min_length=1)] = ("last",)
    """Checkpoints by step, or `last`."""
    strengths: Annotated[tuple[float, ...], Field(min_length=1)] = (1.0,)
    """Strengths of the LoRA; the base without it is always drawn."""
    ema: bool = False
    """Draw with the moving average of the adapters (train.ema_decay)."""


@dataclass(frozen=True)
class Column:
    """One column of the grid: the base, or a checkpoint at a strength."""

    label: str
    checkpoint: Path | None
    strength: float


def plan_columns(folder: Path, params: SampleParams) -> list[Column]:
    """The base, then every checkpoint at every strength.

    Raises: ConfigError where a checkpoint was not kept or no average was trained, with those that exist.
    """
    kind = "ema" if params.ema else "step"
    found = {int(path.stem.split("-")[1]): path for path in sorted(folder.glob(f"{kind}-*.safetensors"))}
    if not found:
        wanted = "no moving average: set train.ema_decay" if params.ema else "no checkpoint: run `dvc repro`"
        raise ConfigError(f"{folder} holds {wanted}.")
    columns = [Column("base", None, 0.0)]
    for name in params.checkpoints:
        step = max(found) if name == "last" else name
        if step not in found:
            kept = ", ".join(map(str, sorted(found)))
            raise ConfigError(f"params.yaml: sample.checkpoints names step {step}, which was not kept. Kept: {kept}.")
        columns += [Column(f"{kind} {step} x {strength:g}", found[step], strength) for strength in params.strengths]
    return list(dict.fromkeys(columns))  # `last` may be named by its step too


def draw_samples(
    params: SampleParams,
    family: Family,
    source: ModelSource,
    device: "torch.device",
    checkpoints: Path,
    out: Path,
) -> None:
    """Write images/, grid.png and metrics.json into `out`."""
    from eridiff.precision import DTYPES, fix_threads

    columns = plan_columns(checkpoints, params)
    trigger = read_checkpoint(next(c.checkpoint for c in columns if c.checkpoint))[1].get("trigger")
    prompts = fill_trigger(params.prompts, trigger, "params.yaml: sample.prompts")
    check_draw(params, family, prompts, "params.yaml: sample")
    fix_threads(device)
    pipeline = family.load_pipeline(source, DTYPES[params.precision], params.scheduler).to(device)
    pipeline.set_progress_bar_config(disable=True)
    rows = [(prompt, seed) for prompt in prompts for seed in params.seeds]
    work = _work(pipeline, columns, rows)
    images: dict[tuple[int, int], Image.Image] = {}
    for column, row in track(work, what="samples", total=len(columns) * len(rows), unit="pictures"):
        prompt, seed = rows[row]
        images[column, row] = draw(pipeline, family, params, prompt, seed)
    write_samples(images, columns, rows, out)


def _work(pipeline: Any, columns: list[Column], rows: list[tuple[Prompt, int]]) -> Iterator[tuple[int, int]]:
    """Every (column, row), with the column's LoRA in the pipeline."""
    for number, column in enumerate(columns):
        with_lora(pipeline, column)
        yield from ((number, row) for row in range(len(rows)))


def with_lora(pipeline: Any, column: Column) -> None:
    """Put a column's LoRA into the pipeline, at its strength, in place of the one before."""
    if column.checkpoint is None:
        return
    name = column.checkpoint.stem
    loaded = {name for names in pipeline.get_list_adapters().values() for name in names}
    if name not in loaded:
        if loaded:
            pipeline.delete_adapters(sorted(loaded))
        folder, file = column.checkpoint.parent, column.checkpoint.name
        pipeline.load_lora_weights(folder, weight_name=file, adapter_name=name, local_files_only=True)
    pipeline.set_adapters([name], [column.strength])


def write_samples(
    images: "dict[tuple[int, int], Image.Image]",
    columns: list[Column],
    rows: list[tuple[Prompt, int]],
    out: Path,
) -> None:
    """Every picture, the labelled grid, and how far each column moved from the base (mean of |difference|, 0..1)."""
    import numpy as np

    pixels = {place: np.asarray(image.convert("RGB"), dtype=np.float32) / 255 for place, image in images.items()}
    moved = {
        column.label: float(np.mean([np.abs(pixels[number, row] - pixels[0, row]).mean() for row in range(len(rows))]))
        for number, column in enumerate(columns)
        if column.checkpoint is not None
    }
    for (number, row), image in sorted(images.items()):
        label = columns[number].label.replace(" x ", "-x").replace(" ", "-")
        save_png(image, out / "images" / f"{row:02d}-{label}.png")
    save_png(draw_grid(images, columns, rows), out / "grid.png")
    write_text(out / "metrics.json", json.dumps({"moved_from_base": moved}, indent=1, sort_keys=True) + "\n")


def save_png(image: "Image.Image", path: Path) -> None:
    """Write a PNG atomically, without metadata."""
    with atomic_write(path) as file:
        image.convert("RGB").save(file, format="PNG")


def draw_grid(
    images: "dict[tuple[int, int], Image.Image]", columns: list[Column], rows: list[tuple[Prompt, int]]
) -> "Image.Image":
    """Columns side by side, a row for each prompt and seed, labels above."""
    from PIL import Image, ImageDraw, ImageFont

    width, height = images[0, 0].size
    font = ImageFont.load_default(size=max(11, width // 20))
    line = max(16, width // 14)
    gap = 4
    grid = Image.new("RGB", (len(columns) * (width + gap), line + len(rows) * (height + line + gap)), "white")
    pen = ImageDraw.Draw(grid)
    for number, column in enumerate(columns):
        pen.text((number * (width + gap) + 2, 1), column.label, fill="black", font=font)
    for row, (prompt, seed) in enumerate(rows):
        top = line + row * (height + line + gap)
        pen.text((2, top), f"{prompt.prompt} (seed {seed})", fill="black", font=font)
        for number in range(len(columns)):
            grid.paste(images[number, row], (number * (width + gap), top + line))
    return grid
