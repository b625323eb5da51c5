"""The bases of tests/small, opened for tests: the current folder is a checkout that has them (conftest.py)."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import torch

from eridiff.bases.find import find_source
from eridiff.bases.pointer_files import pointers_of
from eridiff.family import Family, family_names, load_family
from eridiff.models.load import load_denoiser, load_text_encoders, load_vae, make_pipeline
from eridiff.params.sample import DrawParams
from eridiff.weights.pointers import ModelSource

FAMILIES = family_names()


@cache
def source(family: str) -> ModelSource:
    pointers = pointers_of(f"tiny-{family}", load_family(family).PARTS, family)
    return find_source(pointers.values())


def raised(family: Family, name: str) -> Any:
    """A family with one of its versions raised."""
    versions = family.VERSIONS
    numbers = versions.family.model_copy(update={name: versions.numbers[f"family.{name}"] + 1})
    return SimpleNamespace(**{**vars(family), "VERSIONS": versions.model_copy(update={"family": numbers})})


def whole_pipeline(family: Family, source: ModelSource, scheduler: str = "euler") -> Any:
    """A pipeline with everything in it, in fp32 on the CPU."""
    made = make_pipeline(
        family,
        source,
        scheduler,
        text=load_text_encoders(family, source, torch.float32),
        vae=load_vae(family, source, torch.float32),
        denoiser=load_denoiser(family, source, torch.float32),
    )
    made.set_progress_bar_config(disable=True)
    return made


@cache
def pipeline(family: str, scheduler: str = "euler") -> Any:
    """A pipeline with nothing adapted; tests that adapt load their own."""
    return whole_pipeline(load_family(family), source(family), scheduler)


def draw_whole(pipeline: Any, family: Family, params: DrawParams, prompt: str, seed: int, **more: Any) -> Any:
    """A picture as diffusers draws it: the pipeline makes the embeddings itself, and there is no code of ours."""
    import numpy as np
    from PIL import Image

    limit = {"max_sequence_length": params.max_tokens or family.MAX_TOKENS[0]} if len(family.MAX_TOKENS) > 1 else {}
    with torch.inference_mode():
        pixels = pipeline(
            prompt,
            num_inference_steps=params.steps,
            guidance_scale=params.guidance_scale,
            width=params.size[0],
            height=params.size[1],
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
            **limit,
            **more,
        ).images[0]
    return Image.fromarray((np.asarray(pixels) * 255).round().astype("uint8"))
