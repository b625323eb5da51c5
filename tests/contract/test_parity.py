"""Every family against diffusers' own pipelines and schedulers, on the small bases."""

from pathlib import Path
from typing import Any

import pytest
import torch

from eridiff.family import Sizes, load_family
from eridiff.models.load import load_denoiser, load_text_encoders
from eridiff.models.lora import add_adapter, save_checkpoint, target_modules
from eridiff.models.samplers import make_scheduler
from eridiff.params.sample import DrawParams
from eridiff.params.train import LoraParams
from tests.support.bases import FAMILIES, draw_whole, pipeline, source, whole_pipeline

CAPTIONS = ["eridraw, a red fox", "", "a teapot, drawing, " * 40]


def encode(family: str) -> dict[str, torch.Tensor]:
    module = load_family(family)
    encoders = load_text_encoders(module, source(family), torch.float32)
    with torch.inference_mode():
        return module.encode_text(encoders, CAPTIONS, module.MAX_TOKENS[-1])


def pipeline_embeddings(family: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(prompt_embeds, pooled) of the pipeline's own encode_prompt; the two stand where the shapes say."""
    module = load_family(family)
    arguments: dict[str, Any] = {"prompt": CAPTIONS, "prompt_2": None, "device": torch.device("cpu")}
    if module.NEGATIVE:
        arguments["do_classifier_free_guidance"] = False
    if len(module.PARTS["text"]) > 4:
        arguments["prompt_3"] = None
    if len(module.MAX_TOKENS) > 1:
        arguments["max_sequence_length"] = module.MAX_TOKENS[-1]
    with torch.inference_mode():
        answers = pipeline(family).encode_prompt(**arguments)
    batch = [a for a in answers if a is not None and a.shape[0] == len(CAPTIONS)]
    return next(a for a in batch if a.ndim == 3), next(a for a in batch if a.ndim == 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_equals_encode_prompt(family: str) -> None:
    ours = encode(family)
    prompt_embeds, pooled = pipeline_embeddings(family)
    assert torch.equal(ours["prompt_embeds"], prompt_embeds)
    assert torch.equal(ours["pooled_prompt_embeds"], pooled)
    assert not torch.equal(ours["prompt_embeds"][0], ours["prompt_embeds"][1])
    assert not torch.equal(ours["pooled_prompt_embeds"][0], ours["pooled_prompt_embeds"][1])


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_beyond_the_limit_are_counted(family: str) -> None:
    module = load_family(family)
    encoders = load_text_encoders(module, source(family), torch.float32)
    limit = module.MAX_TOKENS[-1] if 77 in module.MAX_TOKENS else module.MAX_TOKENS[0]
    assert module.tokens_lost(encoders, "a red fox", limit) == 0
    assert module.tokens_lost(encoders, "a red fox, " * 200, limit) > 100


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(128, 128), (96, 160)])
def test_predict_samples_what_the_pipeline_samples(family: str, size: tuple[int, int]) -> None:
    """Two Euler steps without guidance by predict, against the pipeline: the conditioning is the same."""
    module, pipe = load_family(family), pipeline(family)
    width, height = size
    channels = pipe.vae.config.latent_channels
    noise = torch.randn(1, channels, height // 8, width // 8, generator=torch.Generator().manual_seed(1))
    packed = module.pack(noise) if hasattr(module, "pack") else noise
    text = {"prompt": "eridraw, a red fox", "guidance_scale": 1.0, "num_inference_steps": 2}
    if len(module.MAX_TOKENS) > 1:
        text["max_sequence_length"] = 77
    with torch.inference_mode():
        theirs = pipe(**text, width=width, height=height, latents=packed.clone(), output_type="latent").images
        ours = sample_by_predict(family, noise, (width, height))
    theirs = module.unpack(theirs, height // 8, width // 8) if hasattr(module, "unpack") else theirs
    assert torch.allclose(ours, theirs, atol=2e-5, rtol=2e-5)


def sample_by_predict(family: str, noise: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    module = load_family(family)
    scheduler = make_scheduler(module.SCHEDULERS, "euler", source(family).config("scheduler"))
    denoiser = load_denoiser(module, source(family), torch.float32)
    encoders = load_text_encoders(module, source(family), torch.float32)
    text = module.encode_text(encoders, ["eridraw, a red fox"], 77)
    flow = module.OBJECTIVE == "flow"
    if scheduler.config.get("use_dynamic_shifting"):
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        mu = calculate_shift((size[0] // 16) * (size[1] // 16))
        scheduler.set_timesteps(sigmas=[1.0, 0.5], mu=mu)
    else:
        scheduler.set_timesteps(2)
    latents = noise * (1.0 if flow else scheduler.init_noise_sigma)
    for t in scheduler.timesteps:
        level = t.reshape(1) / 1000 if flow else t.reshape(1)
        seen = latents if flow else scheduler.scale_model_input(latents, t)
        sizes = Sizes.of(original=[size], crop=[(0, 0)], target=size)
        prediction = module.predict(denoiser, seen, level, text, sizes, 1.0)
        latents = scheduler.step(prediction, t, latents, return_dict=False)[0]
    return latents


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_adapter_loads_without_any_difference(family: str, tmp_path: Path) -> None:
    """Save -> load_lora_weights: the pipeline's denoiser answers exactly as the trained one."""
    module = load_family(family)
    trained = load_denoiser(module, source(family), torch.float32)
    unused = module.unused_modules(source(family).config(module.DENOISER))
    params = LoraParams(rank=4, alpha=6.0, targets="attention")
    adapters = add_adapter(trained, params, target_modules(trained, module.TARGET_SETS, "attention", unused), seed=0)
    generator = torch.Generator().manual_seed(0)
    for tensor in adapters.values():
        tensor.data += 0.05 * torch.randn(tensor.shape, generator=generator)
    save_checkpoint(tmp_path / "a.safetensors", adapters, prefix=module.DENOISER, params=params, lineage={})
    pipe = whole_pipeline(module, source(family))
    pipe.load_lora_weights(tmp_path, weight_name="a.safetensors", adapter_name="a")
    loaded = getattr(pipe, module.DENOISER)
    config = source(family).config("vae")
    noisy = torch.randn(1, config["latent_channels"], 16, 16, generator=generator)
    text = {name: tensor[:1] for name, tensor in encode(family).items()}
    sizes = Sizes.of(original=[(128, 128)], crop=[(0, 0)], target=(128, 128))
    level = torch.tensor([500 if module.OBJECTIVE == "ddpm" else 0.5])
    with torch.inference_mode():
        ours = module.predict(trained, noisy, level, text, sizes, 1.0)
        theirs = module.predict(loaded, noisy, level, text, sizes, 1.0)
        pipe.disable_lora()
        base = module.predict(loaded, noisy, level, text, sizes, 1.0)
    assert (ours - theirs).abs().max().item() == 0.0
    assert (ours - base).abs().max().item() > 1e-3


CASES = [(family, name) for family in FAMILIES for name in load_family(family).SCHEDULERS]


@pytest.mark.parametrize(("family", "name"), CASES)
@pytest.mark.slow
def test_every_scheduler_draws(family: str, name: str) -> None:
    """Each sampler by name gives a picture, the same at the same seed, another than Euler's."""
    module = load_family(family)
    pipe = pipeline(family)
    params = DrawParams(steps=3, size=(64, 96), precision="fp32", scheduler=name, max_tokens=module.MAX_TOKENS[-1])
    pictures = []
    kept = pipe.scheduler
    try:
        for scheduler in (name, name, "euler"):
            pipe.scheduler = make_scheduler(module.SCHEDULERS, scheduler, source(family).config("scheduler"))
            pictures.append(draw_whole(pipe, module, params, "a red fox", seed=3))
    finally:
        pipe.scheduler = kept
    assert pictures[0].size == (64, 96)
    assert pictures[0].tobytes() == pictures[1].tobytes()
    assert (pictures[0].tobytes() == pictures[2].tobytes()) == (name == "euler")


@pytest.mark.parametrize("family", [f for f in FAMILIES if "heun" in load_family(f).SCHEDULERS])
def test_heun_is_exact_on_a_straight_path(family: str) -> None:
    """On a constant velocity Heun lands where Euler lands; its levels are Euler's, inner ones twice."""
    module = load_family(family)
    config = source(family).config("scheduler")
    euler, heun = (make_scheduler(module.SCHEDULERS, name, config) for name in ("euler", "heun"))
    arguments = {"mu": 0.7} if config.get("use_dynamic_shifting") else {}
    for scheduler in (euler, heun):
        scheduler.set_timesteps(4, **arguments)
    assert len(heun.timesteps) == 7
    start, velocity = torch.ones(1, 2, 2, 2), torch.full((1, 2, 2, 2), 0.3)
    ends = []
    for scheduler in (euler, heun):
        x = start
        for t in scheduler.timesteps:
            x = scheduler.step(velocity, t, x, return_dict=False)[0]
        ends.append(x)
    assert torch.allclose(ends[0], ends[1], atol=1e-6)
    assert torch.allclose(ends[0], start - velocity, atol=1e-5)
