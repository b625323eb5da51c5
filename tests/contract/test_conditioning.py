"""What only `predict` knows: packing, ids, sizes, levels and guidance, as the denoiser receives them."""

import copy
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import nn

from eridiff.family import Sizes, load_family
from tests.support import training
from tests.support.bases import FAMILIES, pipeline, source

PACKING = [family for family in FAMILIES if hasattr(load_family(family), "pack")]
WITH_SIZES = [family for family in FAMILIES if hasattr(load_family(family), "time_ids")]
FLOW = [family for family in FAMILIES if load_family(family).OBJECTIVE == "flow"]


class Spy(nn.Module):
    """A denoiser that keeps what it was given."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.given: dict[str, Any] = {}

    def forward(self, *arguments: Any, **named: Any) -> Any:
        self.given = {**dict(enumerate(arguments)), **named}
        return self.denoiser(*arguments, **named)

    def get_submodule(self, target: str) -> nn.Module:
        return self.denoiser.get_submodule(target)


def predicted(
    family: str, level: torch.Tensor, sizes: Sizes, denoiser: nn.Module, guidance: float = 1.0
) -> dict[str, Any]:
    """What the denoiser was given for noisy latents of its own number format."""
    dtype = next(denoiser.parameters()).dtype
    width, height = sizes.target
    channels = source(family).config("vae")["latent_channels"]
    noisy = torch.randn(len(level), channels, height // 8, width // 8).to(dtype)
    text = {name: torch.randn(len(level), *shape).to(dtype) for name, shape in training.text_shapes(family).items()}
    spy = Spy(denoiser)
    with torch.no_grad():
        answer = load_family(family).predict(spy, noisy, level, text, sizes, guidance)
    assert answer.shape == noisy.shape
    return spy.given


def plain_sizes(count: int, width: int = 96, height: int = 64) -> Sizes:
    return Sizes.of(original=[(width, height)] * count, crop=[(0, 0)] * count, target=(width, height))


@pytest.mark.parametrize("family", PACKING)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 22), (30, 2)])
def test_packing_and_ids_equal_diffusers(family: str, height: int, width: int) -> None:
    module: Any = load_family(family)
    latents = torch.randn(2, 16, height, width)
    packed = module.pack(latents)
    assert torch.equal(packed, FluxPipeline._pack_latents(latents, 2, 16, height, width))
    assert packed.shape == (2, height * width // 4, 64)
    assert torch.equal(module.unpack(packed, height, width), latents)
    assert torch.equal(FluxPipeline._unpack_latents(packed, height * 8, width * 8, 8), latents)
    theirs = FluxPipeline._prepare_latent_image_ids(2, height // 2, width // 2, torch.device("cpu"), torch.float32)
    assert torch.equal(module.image_ids(height, width, torch.device("cpu")), theirs)


@pytest.mark.parametrize("family", WITH_SIZES)
def test_time_ids_are_exact(family: str) -> None:
    """(original h, w, crop top, left, target h, w) as the pipeline has them; 1023 stays 1023 in a bf16 training."""
    sizes = Sizes.of(original=[(1023, 771), (515, 2049)], crop=[(3, 5), (0, 129)], target=(96, 64))
    denoiser = copy.deepcopy(training.base_denoiser(family)).to(torch.bfloat16)
    ids = predicted(family, torch.tensor([1, 999]), sizes, denoiser)["added_cond_kwargs"]["time_ids"]
    assert ids.dtype == torch.float32
    assert ids.tolist() == [[771, 1023, 5, 3, 64, 96], [2049, 515, 129, 0, 64, 96]]
    pipe = pipeline(family)
    projection = int(pipe.text_encoder_2.config.projection_dim)
    for row, (original, crop) in enumerate(zip(sizes.original.tolist(), sizes.crop.tolist(), strict=True)):
        theirs = pipe._get_add_time_ids(tuple(original[::-1]), tuple(crop[::-1]), (64, 96), torch.float32, projection)
        assert torch.equal(ids[row : row + 1], theirs)


@pytest.mark.parametrize("family", FLOW)
def test_levels_reach_the_denoiser_in_fp32(family: str) -> None:
    """Of sigma or sigma * 1000, as the model wants it: the same as diffusers' scheduler gives the pipeline."""
    level = torch.tensor([0.1234567, 0.7654321])
    given = predicted(family, level, plain_sizes(2), copy.deepcopy(training.base_denoiser(family)).to(torch.bfloat16))
    assert given["timestep"].dtype == torch.float32
    scale = 1 if load_family(family).GUIDANCE else 1000
    assert torch.equal(given["timestep"], level * scale)


@pytest.mark.parametrize("family", [family for family in FAMILIES if load_family(family).GUIDANCE])
def test_embedded_guidance(family: str) -> None:
    """A vector [B] in fp32 where the base embeds a guidance; none where it does not."""
    level = torch.tensor([0.25, 0.5])
    given = predicted(family, level, plain_sizes(2), training.base_denoiser(family), guidance=3.5)
    assert (given["guidance"].dtype, given["guidance"].tolist()) == (torch.float32, [3.5, 3.5])
    assert torch.equal(given["txt_ids"], torch.zeros(training.TOKENS, 3))
    config = {**source(family).config(load_family(family).DENOISER), "guidance_embeds": False}
    without = FluxTransformer2DModel.from_config(config)
    assert predicted(family, level, plain_sizes(2), without, guidance=3.5)["guidance"] is None


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_of_a_batch_do_not_mix(family: str) -> None:
    """Row 1 of a batch is answered as alone: its own level, text and sizes."""
    module, denoiser = load_family(family), training.base_denoiser(family)
    generator = torch.Generator().manual_seed(0)
    channels = source(family).config("vae")["latent_channels"]
    noisy = torch.randn(2, channels, 8, 12, generator=generator)
    text = {name: torch.randn(2, *shape, generator=generator) for name, shape in training.text_shapes(family).items()}
    level = torch.tensor([10, 900]) if module.OBJECTIVE == "ddpm" else torch.tensor([0.1, 0.9])
    sizes = Sizes.of(original=[(96, 64), (300, 200)], crop=[(0, 0), (7, 9)], target=(96, 64))
    alone = sizes.map(lambda pairs: pairs[1:])
    with torch.no_grad():
        both = module.predict(denoiser, noisy, level, text, sizes, 1.0)
        one = module.predict(denoiser, noisy[1:], level[1:], {k: v[1:] for k, v in text.items()}, alone, 1.0)
    assert torch.allclose(both[1:], one, atol=1e-4)
    assert (both[0] - both[1]).abs().max() > 0.01
