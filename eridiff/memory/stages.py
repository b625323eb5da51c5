"""What the stages that encode and draw take on a device, from the models' shapes. Training: train.py beside it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eridiff.caching.latents.vae import encode, prepare_vae
from eridiff.family import Family, Sizes
from eridiff.memory.trace import Traced, trace
from eridiff.memory.train import META, MemoryEstimate, held
from eridiff.models.load import load_denoiser, load_text_encoders, load_vae
from eridiff.models.precision import DTYPES
from eridiff.models.quantise import Storage
from eridiff.params.latents import LatentParams
from eridiff.params.sample import DrawParams
from eridiff.params.text import TextParams, choose_max_tokens
from eridiff.sampling.draw import is_guided
from eridiff.training.data import Batch
from eridiff.weights.pointers import ModelSource

Shape = tuple[int, ...]


def latents_estimate(
    params: LatentParams, family: Family, source: ModelSource, size: tuple[int, int]
) -> MemoryEstimate:
    """Encoding one picture of (width, height) in a batch."""
    plain = params.model_copy(update={"compile": False})
    vae = prepare_vae(load_vae(family, source, DTYPES[params.dtype]), plain, META)
    pixels = torch.empty(params.batch_size, 3, size[1], size[0], device=META)
    traced = trace(lambda: encode(vae, pixels, plain))
    return _share_of(traced, held(vae), params.batch_size, compiled=params.compile)


def text_estimate(params: TextParams, family: Family, source: ModelSource) -> tuple[MemoryEstimate, dict[str, Shape]]:
    """Encoding one caption in a batch; and the shapes of its embeddings."""
    encoders = load_text_encoders(family, source, DTYPES[params.dtype])
    embeds: dict[str, Tensor] = {}

    def work() -> None:
        with torch.no_grad():
            embeds.update(family.encode_text(encoders, [""] * params.batch_size, choose_max_tokens(params, family)))

    traced = trace(work)
    weights = sum(map(held, encoders.encoders.values()))
    found = _share_of(traced, weights, params.batch_size, compiled=params.compile)
    return found, {name: tuple(tensor.shape[1:]) for name, tensor in embeds.items()}


def _share_of(traced: Traced, weights: int, batch_size: int, *, compiled: bool) -> MemoryEstimate:
    """What one of a traced batch takes."""
    flops, calls = traced.flops / batch_size, 0.0 if compiled else traced.calls / batch_size
    return MemoryEstimate(weights=weights, work=traced.peak, flops=flops, calls=calls)


def sample_estimate(
    params: DrawParams, family: Family, source: ModelSource, text: Mapping[str, Shape]
) -> MemoryEstimate:
    """Drawing one picture from embeddings: denoiser and VAE stay, steps and decoding come one after the other."""
    dtype = DTYPES[params.precision]
    storage = Storage(kind=params.quantise and "int8", device=META)
    denoiser = load_denoiser(family, source, dtype, storage)
    vae: Any = load_vae(family, source, dtype)
    guided = 2 if is_guided(params, family) else 1
    batch = made_up_batch(guided, family, vae.config, text, params.size)
    embeds = {name: tensor.to(dtype) for name, tensor in batch.text.items()}
    level = torch.zeros(guided, device=META)

    def step() -> None:
        with torch.no_grad():
            family.predict(denoiser, batch.mean.to(dtype), level, embeds, batch.sizes, 1.0)

    def decode() -> None:
        with torch.no_grad():
            vae.decode(batch.mean[:1].to(dtype), return_dict=False)

    steps, decoding = trace(step), trace(decode)
    return MemoryEstimate(
        weights=held(denoiser, params.quantise) + held(vae),
        work=max(steps.peak, decoding.peak),
        flops=params.steps * steps.flops + decoding.flops,
        calls=params.steps * steps.calls + decoding.calls,
    )


def made_up_batch(
    count: int, family: Family, vae: Mapping[str, Any], text: Mapping[str, Shape], size: tuple[int, int]
) -> Batch:
    """A micro-batch of shapes alone, of pictures of (width, height)."""
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    latents = torch.empty(count, vae["latent_channels"], size[1] // factor, size[0] // factor, device=META)
    return Batch(
        mean=latents,
        std=latents,
        text={name: torch.empty(count, *shape, device=META) for name, shape in text.items()},
        sizes=Sizes.of(original=[size] * count, crop=[(0, 0)] * count, target=size).map(lambda pairs: pairs.to(META)),
        paths=[""] * count,
        captions=[""] * count,
        indices=list(range(count)),
    )
