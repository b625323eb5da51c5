"""Pictures while training runs, into runs/previews: they change no result; only local.yaml speaks of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from eridiff.bases.find import find_source
from eridiff.bases.pointer_files import pointers_of
from eridiff.core.errors import ConfigError, DataError
from eridiff.core.progress import say
from eridiff.family import Family, load_family
from eridiff.machine.local import LocalConfig
from eridiff.models.load import load_vae, make_pipeline
from eridiff.params.model import ModelParams
from eridiff.params.sample import DrawParams, Prompt
from eridiff.sampling.draw import Embeds, draw, embed_prompts
from eridiff.weights.pointers import ModelSource

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Previews:
    """What is drawn with the denoiser in training. The VAE is loaded for each preview and dropped after it."""

    family: Family
    source: ModelSource
    params: DrawParams
    embeds: Mapping[Prompt, Embeds]
    every: int  # steps

    def draw(self, denoiser: "nn.Module", step: int) -> None:
        """Draw every prompt, if it is time to."""
        import torch

        from eridiff.models.precision import DTYPES

        if step % self.every:
            return
        device = next(denoiser.parameters()).device
        vae = load_vae(self.family, self.source, DTYPES[self.params.precision]).to(device)
        pipeline = make_pipeline(self.family, self.source, self.params.scheduler, vae=vae, denoiser=denoiser)
        pipeline.set_progress_bar_config(disable=True)
        with torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):  # pictures have other shapes
            for number, (prompt, embeds) in enumerate(self.embeds.items()):
                path = Path("runs/previews") / f"step-{step:06d}-{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    draw(pipeline, self.params, prompt, embeds, seed=number).save(path)
                except DataError as error:
                    say(f"train: no preview at step {step}: {error}")
        say(f"train: previews of step {step} in runs/previews")


def prepare_previews(
    local: LocalConfig,
    model: ModelParams,
    precision: Literal["fp32", "bf16", "fp16"],
    size: tuple[int, int],
    device: "torch.device",
) -> Previews | None:
    """Embed local.yaml's prompts, before the denoiser takes the device's memory; None where nothing is to be drawn."""
    if not local.preview_every:
        return None
    if not local.preview_prompts:
        raise ConfigError("local.yaml: preview_every is set, but preview_prompts names nothing to draw.")
    family = load_family(model.family)
    source = find_source(pointers_of(model.base, family.PARTS, model.family).values())
    params = DrawParams(scheduler="euler", steps=local.preview_steps, size=size, precision=precision)
    prompts = [Prompt(prompt=text) for text in local.preview_prompts]
    embeds = embed_prompts(family, source, params, prompts, device)
    return Previews(family=family, source=source, params=params, embeds=embeds, every=local.preview_every)
