"""Pictures while training runs, into runs/previews: they change no result; only local.yaml speaks of them."""

from pathlib import Path
from typing import TYPE_CHECKING

from eridiff.config import ModelParams
from eridiff.draw import DrawParams, Prompt, draw
from eridiff.errors import ConfigError, DataError
from eridiff.families import load_family
from eridiff.progress import say
from eridiff.project import LocalConfig
from eridiff.sources import find_source, pointers_of

if TYPE_CHECKING:
    from torch import nn

    from eridiff.train import Preview


def make_previewer(
    local: LocalConfig, model: ModelParams, precision: str, denoiser: "nn.Module", size: tuple[int, int]
) -> "Preview | None":
    """A function of the step that draws local.yaml's prompts every `preview_every` steps; None where it is 0.

    The VAE and the text encoders are loaded for each preview and dropped after it: the memory is the training's.
    """
    if not local.preview_every:
        return None
    if not local.preview_prompts:
        raise ConfigError("local.yaml: preview_every is set, but preview_prompts names nothing to draw.")
    family = load_family(model.family)
    source = find_source(pointers_of(model.base, family.PARTS, model.family).values())
    params = DrawParams(scheduler="euler", steps=local.preview_steps, size=size)

    def preview(step: int) -> None:
        import torch

        from eridiff.precision import DTYPES

        if step % local.preview_every:
            return
        pipeline = family.load_pipeline(source, DTYPES[precision], params.scheduler, denoiser)
        pipeline = pipeline.to(next(denoiser.parameters()).device)
        pipeline.set_progress_bar_config(disable=True)
        with torch.random.fork_rng():
            for number, text in enumerate(local.preview_prompts):
                path = Path("runs/previews") / f"step-{step:06d}-{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    draw(pipeline, family, params, Prompt(prompt=text), seed=number).save(path)
                except DataError as error:
                    say(f"train: no preview at step {step}: {error}")
        say(f"train: previews of step {step} in runs/previews")

    return preview
