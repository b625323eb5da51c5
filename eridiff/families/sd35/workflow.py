"""A ComfyUI graph (API format) for SD 3.5, whose checkpoint holds transformer and VAE, some also text encoders."""

from typing import Any

from eridiff.comfyui_nodes import load_base, node
from eridiff.family import Scene


def workflow(scene: Scene) -> dict[str, Any]:
    """Load base and LoRA, sample once."""
    width, height = scene.size
    medium = bool(scene.denoiser_config.get("dual_attention_layers"))
    base = load_base(scene, "transformer", ("text_encoder", "text_encoder_2", "text_encoder_3"), "sd3")
    return {
        **base.nodes,
        "5": node("ModelSamplingSD3", model=base.model, shift=float(scene.scheduler_config.get("shift", 3.0))),
        "6": node("CLIPTextEncode", clip=base.clip, text=scene.prompt),
        "7": node("CLIPTextEncode", clip=base.clip, text=""),
        "8": node("EmptySD3LatentImage", width=width, height=height, batch_size=1),
        "9": node(
            "KSampler",
            model=["5", 0],
            positive=["6", 0],
            negative=["7", 0],
            latent_image=["8", 0],
            seed=0,
            steps=40 if medium else 28,
            cfg=4.5 if medium else 3.5,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        ),
        "10": node("VAEDecode", samples=["9", 0], vae=base.vae),
        "11": node("SaveImage", images=["10", 0], filename_prefix="eridiff"),
    }
