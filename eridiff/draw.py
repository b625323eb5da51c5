"""One picture from a pipeline: prompt and seed in, image out. Used by the sample stage and by previews."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from eridiff.errors import DataError
from eridiff.families import Family
from eridiff.load import load_text_encoders, make_pipeline
from eridiff.nonfinite import blame
from eridiff.params_sample import DrawParams, Prompt
from eridiff.pointers import ModelSource

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Embeds = Mapping[str, "Tensor"]  # argument of the pipeline -> a prompt's embeddings [1, ...]


def embed_prompts(
    family: Family, source: ModelSource, params: DrawParams, prompts: Iterable[Prompt], device: "torch.device"
) -> dict[Prompt, Embeds]:
    """Each prompt's embeddings on the device; the text encoders are there for as long as that takes, and alone."""
    import torch

    from eridiff.precision import DTYPES

    text = load_text_encoders(family, source, DTYPES[params.precision]).to(device)
    pipeline = make_pipeline(family, source, params.scheduler, text=text)
    with torch.inference_mode():
        return {prompt: embed(pipeline, family, params, prompt) for prompt in dict.fromkeys(prompts)}


def embed(pipeline: Any, family: Family, params: DrawParams, prompt: Prompt) -> Embeds:
    """One prompt's embeddings [1, ...], by the names of the pipeline's arguments."""
    tokens = params.max_tokens or family.MAX_TOKENS[0]
    return family.embed_prompt(pipeline, prompt.prompt, prompt.negative, is_guided(params, family), tokens)


def is_guided(params: DrawParams, family: Family) -> bool:
    """Whether the denoiser is asked twice a step, with the prompt and with the negative one."""
    return family.NEGATIVE and params.guidance_scale > 1


def draw(pipeline: Any, params: DrawParams, prompt: Prompt, embeds: Embeds, seed: int) -> Any:
    """One PIL image; the first noise is drawn on the CPU from the seed.

    Raises: DataError where the pipeline's numbers are not finite: as a picture they would just be black.
    """
    import numpy as np
    import torch
    from PIL import Image

    def work() -> Any:
        with torch.inference_mode():
            return pipeline(
                **embeds,
                num_inference_steps=params.steps,
                guidance_scale=params.guidance_scale,
                width=params.size[0],
                height=params.size[1],
                generator=torch.Generator().manual_seed(seed),
                output_type="np",  # [B, H, W, 3], 0..1
            ).images[0]

    with decoded_finite(pipeline) as finite:
        pixels_HWC = work()
    if not (all(finite) and np.isfinite(pixels_HWC).all()):
        raise DataError(
            f"the pipeline drew numbers that are not finite for {prompt.prompt!r}. "
            f"{_why(pipeline, params, embeds, work)}"
        )
    return Image.fromarray((pixels_HWC * 255).round().astype("uint8"))


@contextmanager
def decoded_finite(pipeline: Any) -> "Iterator[list[Tensor]]":
    """Whether what the VAE decodes is finite, call by call: the pipeline cuts to 0..1, where infinity looks sound."""
    finite: list[Tensor] = []
    vae = pipeline.components.get("vae")
    hook = vae and vae.decoder.register_forward_hook(lambda _, given, pixels: finite.append(pixels.isfinite().all()))
    try:
        yield finite
    finally:
        if hook:
            hook.remove()


def _why(pipeline: Any, params: DrawParams, embeds: Embeds, work: Callable[[], Any]) -> str:
    """Why a picture is not finite."""
    from torch import nn

    if any(not tensor.isfinite().all() for tensor in embeds.values()):
        return (
            "The text encoders gave such numbers for the prompt already: their weights, or the number format "
            f"(precision is {params.precision}), are the cause. `eridiff base add` names weights that are not finite."
        )
    models = {name: model for name, model in pipeline.components.items() if isinstance(model, nn.Module)}
    return blame(models, "precision", params.precision, work)
