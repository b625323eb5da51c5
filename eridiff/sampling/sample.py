"""Samples: the same prompts and seeds with and without the LoRA, for checkpoints and strengths, in one grid."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eridiff.core.errors import ConfigError
from eridiff.core.files import atomic_write, write_text
from eridiff.core.progress import track
from eridiff.family import Family
from eridiff.models.load import load_denoiser, load_vae, make_pipeline
from eridiff.models.lora import read_checkpoint
from eridiff.params.sample import Prompt, SampleParams, check_draw, check_measures, fill_trigger
from eridiff.params.trigger import PLACE, without_trigger
from eridiff.sampling.descriptors import Array, difference, pixels_of
from eridiff.sampling.draw import draw, embed_prompts
from eridiff.sampling.metrics import Measured, figures
from eridiff.weights.pointers import ModelSource

if TYPE_CHECKING:
    import torch
    from PIL import Image


@dataclass(frozen=True)
class Column:
    """One column of the grid: the base, or a checkpoint at a strength.

    name: in metrics.json, as the params say it, so that runs of other lengths stand in one column of a table.
    """

    label: str
    checkpoint: Path | None
    strength: float
    name: str


def plan_columns(folder: Path, params: SampleParams) -> list[Column]:
    """The base, then every checkpoint at every strength.

    Raises: ConfigError where a checkpoint was not kept or no average was trained, with those that exist.
    """
    kind = "ema" if params.ema else "step"
    found = {int(path.stem.split("-")[1]): path for path in sorted(folder.glob(f"{kind}-*.safetensors"))}
    if not found:
        wanted = "no moving average: set train.ema_decay" if params.ema else "no checkpoint: run `dvc repro`"
        raise ConfigError(f"{folder} holds {wanted}.")
    columns = {"base": Column("base", None, 0.0, "base")}
    for named in params.checkpoints:
        step = max(found) if named == "last" else named
        if step not in found:
            kept = ", ".join(map(str, sorted(found)))
            raise ConfigError(f"params.yaml: sample.checkpoints names step {step}, which was not kept. Kept: {kept}.")
        name = "last" if named == "last" else f"step {step}"
        for strength in params.strengths:
            label = f"{kind} {step} x {strength:g}"  # `last` may be named by its step too
            columns.setdefault(label, Column(label, found[step], strength, f"{name} x {strength:g}"))
    return list(columns.values())


@dataclass(frozen=True)
class GridRow:
    """One row of the grid: a prompt with the trigger filled in, and a seed."""

    prompt: Prompt
    seed: int
    plain: Prompt | None = None  # the prompt without the trigger, where it is measured

    @property
    def prompts(self) -> list[Prompt]:
        """What is drawn."""
        return [self.prompt, self.plain] if self.plain else [self.prompt]


def plan_rows(params: SampleParams, trigger: str | None) -> list[GridRow]:
    """Every prompt with every seed."""
    told = fill_trigger(params.prompts, trigger, "params.yaml: sample.prompts")
    plain = [
        prompt.model_copy(update={"prompt": without_trigger(prompt.prompt)})
        if params.measures and PLACE in prompt.prompt
        else None
        for prompt in params.prompts
    ]
    return [GridRow(prompt, seed, other) for prompt, other in zip(told, plain, strict=True) for seed in params.seeds]


Images = dict[tuple[int, int], "Image.Image"]  # (column, row)


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleJob:
    """What is drawn with what. store: as in load_drawing."""

    params: SampleParams
    family: Family
    source: ModelSource
    device: "torch.device"
    store: Path | None = None


def draw_samples(job: SampleJob, checkpoints: Path, out: Path, concept: Sequence[Array] = ()) -> None:
    """Write images/, grid.png and metrics.json into `out`.

    concept: what measures compare with (open_concept).
    """
    from eridiff.models.precision import fix_threads

    params, family, source, device = job.params, job.family, job.source, job.device
    columns = plan_columns(checkpoints, params)
    trigger = read_checkpoint(next(c.checkpoint for c in columns if c.checkpoint))[1].get("trigger")
    check_draw(params, family, params.prompts, "params.yaml: sample")
    check_measures(params)
    rows = plan_rows(params, trigger)
    fix_threads(device)
    embeds = embed_prompts(family, source, params, [p for row in rows for p in row.prompts], device)
    pipeline = load_drawing(params, family, source, device, job.store)
    images: Images = {}
    plain: Images = {}
    total = len(columns) * sum(len(row.prompts) for row in rows)
    for column, number, prompt in track(_work(pipeline, columns, rows), what="samples", total=total, unit="pictures"):
        place = images if prompt is rows[number].prompt else plain
        place[column, number] = draw(pipeline, params, prompt, embeds[prompt], rows[number].seed)
    write_samples(images, columns, rows, out, plain)
    write_metrics(measure(images, plain, columns, params, rows, concept), out)


def load_drawing(
    params: SampleParams, family: Family, source: ModelSource, device: "torch.device", store: Path | None = None
) -> Any:
    """The pipeline that draws from embeddings: denoiser and VAE, without the text encoders.

    store: the store's folder, where a quantised base is kept.
    """
    from eridiff.models.precision import DTYPES
    from eridiff.models.quantise import Storage

    dtype = DTYPES[params.precision]
    storage = Storage(kind=params.quantise, device=device, store=store)
    denoiser = load_denoiser(family, source, dtype, storage)
    vae = load_vae(family, source, dtype)
    pipeline: Any = make_pipeline(family, source, params.scheduler, vae=vae, denoiser=denoiser)
    pipeline.to(device, silence_dtype_warnings=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _work(pipeline: Any, columns: list[Column], rows: list[GridRow]) -> Iterator[tuple[int, int, Prompt]]:
    """Every (column, row, prompt), with the column's LoRA in the pipeline."""
    for number, column in enumerate(columns):
        with_lora(pipeline, column)
        for place, row in enumerate(rows):
            yield from ((number, place, prompt) for prompt in row.prompts)


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
        read_checkpoint(column.checkpoint)  # the library would read a damaged one
        pipeline.load_lora_weights(folder, weight_name=file, adapter_name=name, local_files_only=True)
    pipeline.set_adapters([name], [column.strength])


def write_samples(
    images: Images, columns: list[Column], rows: list[GridRow], out: Path, plain: Mapping[tuple[int, int], Any]
) -> None:
    """Every picture and the labelled grid; pictures without the trigger stand beside theirs, not in the grid."""
    for pictures, end in ((images, ""), (plain, "-without")):
        for (number, row), image in sorted(pictures.items()):
            label = columns[number].label.replace(" x ", "-x").replace(" ", "-")
            save_png(image, out / "images" / f"{row:02d}-{label}{end}.png")
    save_png(draw_grid(images, columns, rows), out / "grid.png")


def measure(
    images: Images,
    plain: Images,
    columns: list[Column],
    params: SampleParams,
    rows: list[GridRow],
    concept: Sequence[Array],
) -> dict[str, Any]:
    """moved_from_base: how far each column is from the base (mean |difference|, 0..1); and the figures, if asked."""
    pixels = {place: pixels_of(image) for place, image in images.items()}
    moved = {
        column.name: difference(*([pixels[n, row] for row in range(len(rows))] for n in (number, 0)))
        for number, column in enumerate(columns)
        if column.checkpoint is not None
    }
    if not params.measures:
        return {"moved_from_base": moved}
    numbers = range(len(columns))
    measured = [
        Measured(
            group=row.prompt.group,
            subject=row.plain.prompt,
            seed=row.seed,
            told=[pixels[number, place] for number in numbers],
            plain=[pixels_of(plain[number, place]) for number in numbers],
        )
        for place, row in enumerate(rows)
        if row.plain
    ]
    return {"moved_from_base": moved, **figures([column.name for column in columns], measured, concept)}


def write_metrics(values: Mapping[str, Any], out: Path) -> None:
    """metrics.json."""
    write_text(out / "metrics.json", json.dumps(values, indent=1, sort_keys=True) + "\n")


def save_png(image: "Image.Image", path: Path) -> None:
    """Write a PNG atomically, without metadata."""
    with atomic_write(path) as file:
        image.convert("RGB").save(file, format="PNG")


def draw_grid(images: Images, columns: list[Column], rows: list[GridRow]) -> "Image.Image":
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
    for place, row in enumerate(rows):
        top = line + place * (height + line + gap)
        pen.text((2, top), f"{row.prompt.prompt} (seed {row.seed})", fill="black", font=font)
        for number in range(len(columns)):
            grid.paste(images[number, place], (number * (width + gap), top + line))
    return grid
