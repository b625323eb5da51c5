"""What each stage takes on a device: memory and operations, from the models' shapes, through the code that will run.

Nothing is loaded: models are made of their pointers' configs on torch's meta device (eridiff/tracing.py).
Memory is in bytes, operations are multiplications and additions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from eridiff.activations import LEVELS, set_activations, waiting
from eridiff.config import Activations, Quantised
from eridiff.data import Batch
from eridiff.draw import DrawParams
from eridiff.families import Family, Sizes
from eridiff.latents import LatentParams
from eridiff.precision import DTYPES
from eridiff.quantise import RowScaledLinear, Storage
from eridiff.sources import ModelSource
from eridiff.texts import TextParams, choose_max_tokens
from eridiff.tracing import trace
from eridiff.train import prepare_run, train_step
from eridiff.trainparams import TrainParams
from eridiff.vae import encode, prepare_vae

META = torch.device("meta")
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a weight: four bits, an 8-bit scale for 64, a 32-bit one for 256 of those
FLOAT_BYTES = 4  # of an adapter, its gradient, and each moment of AdamW
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What one unit of a stage's work takes: a picture, a caption, a step, a picture drawn."""

    weights: int  # bytes that stay
    work: int  # bytes beyond them, at most
    flops: float

    @property
    def memory(self) -> int:
        """Bytes in all."""
        return self.weights + self.work


def latents_footprint(params: LatentParams, family: Family, source: ModelSource, size: tuple[int, int]) -> Footprint:
    """Encoding one picture of (width, height) in a batch."""
    plain = params.model_copy(update={"compile": False})
    vae = prepare_vae(family.load_vae(source, DTYPES[params.dtype]), plain, META)
    pixels = torch.empty(params.batch_size, 3, size[1], size[0], device=META)
    traced = trace(lambda: encode(vae, pixels, plain))
    return Footprint(weights=held(vae), work=traced.peak, flops=traced.flops / params.batch_size)


def text_footprint(params: TextParams, family: Family, source: ModelSource) -> tuple[Footprint, dict[str, Shape]]:
    """Encoding one caption in a batch; and the shapes of its embeddings."""
    encoders = family.load_text_encoders(source, DTYPES[params.dtype])
    embeds: dict[str, Tensor] = {}

    def work() -> None:
        with torch.no_grad():
            embeds.update(family.encode_text(encoders, [""] * params.batch_size, choose_max_tokens(params, family)))

    traced = trace(work)
    weights = sum(map(held, encoders.encoders.values()))
    flops = traced.flops / params.batch_size
    return Footprint(weights=weights, work=traced.peak, flops=flops), {k: tuple(v.shape[1:]) for k, v in embeds.items()}


def train_footprints(
    params: TrainParams, family: Family, source: ModelSource, batch: Batch, levels: Sequence[Activations] = LEVELS
) -> Iterator[tuple[Activations, Footprint]]:
    """One micro-batch with activations at each level, in order; the adapters' moments stay."""
    traceable = params.model_copy(update={"quantise": params.quantise and "int8"})  # the same expanded weights
    facts = {"scaling_factor": 1.0, "shift_factor": 0.0}
    run, here = prepare_run(traceable, family, source, facts, META, levels[0]), batch.to(META)
    adapters = sum(tensor.numel() for tensor in run.adapters.values())
    moments = 2 * (1 if params.optimizer.name == "adamw8bit" else FLOAT_BYTES)
    average = FLOAT_BYTES if params.ema_decay is not None else 0
    weights = held(run.denoiser, params.quantise) + adapters * (moments + average)
    for level in levels:
        set_activations(run.denoiser, level)
        for tensor in run.adapters.values():
            tensor.grad = None

        def work(level: Activations = level) -> None:
            with waiting(level, META):
                train_step(run, here, 1)

        traced = trace(work)
        yield level, Footprint(weights=weights, work=traced.peak, flops=traced.flops)


def first_level(
    params: TrainParams, family: Family, source: ModelSource, batch: Batch, memory: int
) -> tuple[Activations, Footprint]:
    """The first level of activations with which a micro-batch fits into memory (bytes); else the last."""
    found = []
    for level in train_footprints(params, family, source, batch):
        found.append(level)
        if level[1].memory <= memory:
            break
    return found[-1]


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
        sizes=Sizes(original=[size] * count, crop=[(0, 0)] * count, target=size),
        paths=[""] * count,
        captions=[""] * count,
        indices=list(range(count)),
    )


def sample_footprint(params: DrawParams, family: Family, source: ModelSource, text: Mapping[str, Shape]) -> Footprint:
    """Drawing one picture from embeddings: denoiser and VAE stay, steps and decoding come one after the other."""
    dtype = DTYPES[params.precision]
    storage = Storage(kind=params.quantise and "int8", device=META, components=frozenset({family.DENOISER}))
    denoiser = family.load_denoiser(replace(source, storage=storage), dtype)
    vae: Any = family.load_vae(source, dtype)
    guided = 2 if family.NEGATIVE and params.guidance_scale > 1 else 1
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
    return Footprint(
        weights=held(denoiser, params.quantise) + held(vae),
        work=max(steps.peak, decoding.peak),
        flops=params.steps * steps.flops + decoding.flops,
    )


def held(model: nn.Module, quantise: Quantised | None = None) -> int:
    """Bytes of a model's weights; layers that are traced as int8 count as what they are quantised to."""
    total = 0.0
    for module in model.modules():
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if quantise == "nf4" and isinstance(module, RowScaledLinear):
            total += module.weight.numel() * NF4_BYTES - module.weight.nbytes - module.get_buffer("scale").nbytes
        total += sum(tensor.nbytes for tensor in own)
    return int(total)
