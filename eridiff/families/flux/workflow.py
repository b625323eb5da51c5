"""A ComfyUI graph (API format) for Flux.1: transformer, CLIP-L, T5 and VAE in files of their own."""

from typing import Any

from eridiff.comfyui_nodes import load_base, node
from eridiff.family import Scene


def workflow(scene: Scene) -> dict[str, Any]:
    """Load base and LoRA, sample once. Guidance is embedded (dev) or absent (schnell), so cfg is 1."""
    width, height = scene.size
    dev = bool(scene.denoiser_config["guidance_embeds"])
    base = load_base(scene, "transformer", ("text_encoder", "text_encoder_2"), "flux")
    nodes: dict[str, Any] = {
        **base.nodes,
        "5": node("CLIPTextEncode", clip=base.clip, text=scene.prompt),
        "6": node("ConditioningZeroOut", conditioning=["5", 0]),  # not used at cfg 1
        "7": node("EmptySD3LatentImage", width=width, height=height, batch_size=1),
        "8": node(
            "KSampler",
            model=base.model,
            positive=["5", 0],
            negative=["6", 0],
            latent_image=["7", 0],
            seed=0,
            steps=20 if dev else 4,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        ),
        "9": node("VAEDecode", samples=["8", 0], vae=base.vae),
        "10": node("SaveImage", images=["9", 0], filename_prefix="eridiff"),
    }
    if dev:
        nodes["11"] = node("FluxGuidance", conditioning=["5", 0], guidance=3.5)
        nodes["8"]["inputs"]["positive"] = ["11", 0]
        nodes["12"] = node("ModelSamplingFlux", model=base.model, **_shift(scene), width=width, height=height)
        nodes["8"]["inputs"]["model"] = ["12", 0]
    return nodes


def _shift(scene: Scene) -> dict[str, float]:
    """Dev moves its noise levels with the picture's size, as the scheduler of the base says."""
    config = scene.scheduler_config
    return {"max_shift": float(config.get("max_shift", 1.15)), "base_shift": float(config.get("base_shift", 0.5))}
