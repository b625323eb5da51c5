"""A ComfyUI graph (API format) for SDXL, whose checkpoint holds UNet, text encoders and VAE."""

from typing import Any

from eridiff.comfyui_nodes import load_base, node, sample_as_trained
from eridiff.family import Scene


def workflow(scene: Scene) -> dict[str, Any]:
    """Load base and LoRA, sample once.

    Where the noise has no end, sigmas by Karras would spend most steps beyond what the model was trained on: such bases
    are sampled at evenly spaced timesteps.
    """
    width, height = scene.size
    base = load_base(scene, "unet", ("text_encoder", "text_encoder_2"), "sdxl")
    nodes: dict[str, Any] = {
        **base.nodes,
        "5": node("CLIPTextEncode", clip=base.clip, text=scene.prompt),
        "6": node("CLIPTextEncode", clip=base.clip, text=""),
        "7": node("EmptyLatentImage", width=width, height=height, batch_size=1),
        "8": node(
            "KSampler",
            model=base.model,
            positive=["5", 0],
            negative=["6", 0],
            latent_image=["7", 0],
            seed=0,
            steps=30,
            cfg=6.0,
            sampler_name="dpmpp_2m",
            scheduler="karras",
            denoise=1.0,
        ),
        "9": node("VAEDecode", samples=["8", 0], vae=base.vae),
        "10": node("SaveImage", images=["9", 0], filename_prefix="eridiff"),
    }
    if sampling := sample_as_trained(base.model, scene.scheduler_config):
        nodes["11"] = sampling
        nodes["8"]["inputs"]["model"] = ["11", 0]
        if sampling["inputs"]["zsnr"]:
            nodes["8"]["inputs"] |= {"sampler_name": "euler", "scheduler": "sgm_uniform"}
    return nodes
