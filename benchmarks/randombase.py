"""Bases with random weights, made on the device in seconds, and made-up caches for them, held in memory.

Configs are the published ones, or those of the small bases in git. Matrices keep the size of what goes through, so
that activations stay finite in bf16.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eridiff.family import Family, load_family, published
from eridiff.models.assemble import build_empty
from eridiff.models.load import find_class, frozen
from eridiff.models.precision import DTYPES
from eridiff.training.data import Sample, TrainingSet
from eridiff.weights.components import Component
from eridiff.weights.pointers import ModelSource, Pointer, empty_source

BASES = Path(__file__).parent.parent / "data" / "bases"
PICTURES = 16
CLIP_TOKENS = 77
Settle = Callable[[nn.Module, str], None]


@dataclass(frozen=True, kw_only=True)
class RandomBase:
    """A base without files: a family, its configs, and the side of its pictures in pixels."""

    name: str
    family: Family
    configs: Mapping[str, Mapping[str, Any]]
    side: int
    tokens: int  # of T5, or of CLIP where there is none
    precision: str  # of training

    @property
    def dtype(self) -> torch.dtype:
        """The format of the frozen weights."""
        return DTYPES[self.precision]

    @property
    def denoiser_config(self) -> dict[str, Any]:
        """The config of the component that is trained."""
        return dict(self.configs[self.family.DENOISER])

    @property
    def source(self) -> ModelSource:
        """The configs, as training asks for them."""
        components = {
            name: Component(name=name, config=dict(config), files={}, digest="")
            for name, config in self.configs.items()
        }
        return empty_source([Pointer(base="", family="", part="denoiser", components=components)])

    def denoiser(
        self, device: torch.device, settle: Settle | None = None, place: torch.device | None = None, seed: int = 0
    ) -> nn.Module:
        """The denoiser, frozen; equal seeds give equal weights on devices of one kind.

        Tensors are made on `device` one by one, as a loader brings them, and stay there or go to `place`; after each
        settle(model, name) may quantise its layer, so that no more is ever in memory than stays there.
        """
        kind = find_class(self.family.MODELS[self.family.DENOISER])
        generator = torch.Generator(device).manual_seed(seed)
        return frozen(filled(build_empty(kind, self.denoiser_config, self.dtype), generator, settle, place))

    def latent_shape(self) -> tuple[int, int, int]:
        """C, H, W of one picture's latents."""
        vae = self.configs["vae"]
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        return int(vae["latent_channels"]), self.side // factor, self.side // factor

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of one caption's embeddings."""
        config = self.denoiser_config
        width = config.get("joint_attention_dim") or config["cross_attention_dim"]
        pooled = config.get("pooled_projection_dim")
        if pooled is None:
            pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        clip_beside = CLIP_TOKENS if "text_encoder_3" in self.family.PARTS["text"] else 0
        return {"prompt_embeds": (clip_beside + self.tokens, width), "pooled_prompt_embeds": (pooled,)}

    def training_set(self, seed: int) -> TrainingSet:
        """Pictures of one bucket with a caption each, over caches in memory."""
        latents, texts, samples = MemoryCache(), MemoryCache(), []
        generator = torch.Generator().manual_seed(seed)
        shape, dtype = self.latent_shape(), torch.float16  # of the cache
        texts.entries[""] = _embeds(self.text_shapes(), generator)
        for number in range(PICTURES):
            path = f"{number:02d}.png"
            mean, std = (torch.randn(shape, generator=generator) for _ in range(2))
            latents.entries[path] = {"mean": mean.to(dtype), "std": (0.1 * std.abs()).to(dtype)}
            texts.entries[path] = _embeds(self.text_shapes(), generator)
            samples.append(
                Sample(
                    path=path,
                    bucket=(self.side, self.side),
                    original=(self.side + 8 * number, self.side),
                    crops=((4 * number, 0),),
                    repeats=1,
                    latent_keys=(path,),
                    texts=(path,),
                )
            )
        keys = {text: text for text in texts.entries}
        return TrainingSet(samples, keys, latents, texts, seed, 0.0)  # type: ignore[arg-type]


class MemoryCache:
    """Entries as eridiff.store.reader.Cache gives them, without files."""

    def __init__(self) -> None:
        self.entries: dict[str, dict[str, Tensor]] = {}

    def tensors(self, key: str) -> dict[str, Tensor]:
        """One entry's tensors by name."""
        return self.entries[key]


def _embeds(shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> dict[str, Tensor]:
    """Random embeddings in the format that the text stage writes."""
    return {name: torch.randn(shape, generator=generator).to(torch.bfloat16) for name, shape in shapes.items()}


def filled(
    model: nn.Module, generator: torch.Generator, settle: Settle | None = None, place: torch.device | None = None
) -> nn.Module:
    """A model of torch's meta device with random weights, made on the generator's device."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        path, _, last = name.rpartition(".")
        module, value = model.get_submodule(path), _random(name, tensor, generator).to(place or generator.device)
        if last in module._parameters:
            module._parameters[last] = nn.Parameter(value, requires_grad=False)
        else:
            module._buffers[last] = value
        if settle is not None:
            settle(model, name)
    return model


def _random(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Random matrices that keep the size of what goes through; norms and biases that do nothing."""
    value = torch.empty(tensor.shape, dtype=tensor.dtype, device=generator.device)
    if tensor.dim() >= 2:
        return value.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
    return value.fill_(1.0 if name.endswith("weight") else 0.0)


def random_base(family_name: str, model: str, *, tiny: bool) -> RandomBase:
    """The base of a published model; `tiny`: of the family's small base instead."""
    family = load_family(family_name)
    if not tiny:
        configs = published(family_name).models[model]
        return RandomBase(
            name=model, family=family, configs=configs, side=1024, tokens=family.MAX_TOKENS[0], precision="bf16"
        )
    small: dict[str, Any] = {}
    for part in ("vae", "denoiser"):
        record = json.loads((BASES / f"tiny-{family_name}" / f"{part}.json").read_text("utf-8"))
        small |= {name: component["config"] for name, component in record["components"].items()}
    tokens = family.MAX_TOKENS[-1] if len(family.MAX_TOKENS) == 1 else 8
    return RandomBase(
        name=f"tiny-{family_name}", family=family, configs=small, side=64, tokens=tokens, precision="fp32"
    )
