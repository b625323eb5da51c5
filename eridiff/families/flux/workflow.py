"""A ComfyUI graph (API format) for Flux.1: transformer, CLIP-L, T5 and VAE in files of their own."""

from typing import Any

from eridiff.families import Scene


def workflow(scene: Scene) -> dict[str, Any]:
    """Load base and LoRA, sample once. Guidance is embedded (dev) or absent (schnell), so cfg is 1."""
    width, height = scene.size
    dev = bool(scene.denoiser_config["guidance_embeds"])
    encoders = {"clip_name1": "clip_l.safetensors", "clip_name2": "t5xxl_fp16.safetensors", "type": "flux"}
    nodes: dict[str, Any] = {
        "1": {
            "class_type": "UNETLoader",
            "inputs": {"unet_name": f"{scene.base}.safetensors", "weight_dtype": "default"},
        },
        "2": {"class_type": "DualCLIPLoader", "inputs": encoders},
        "3": {"class_type": "VAELoader", "inputs": {"vae_name": "ae.safetensors"}},
        "4": {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"model": ["1", 0], "lora_name": scene.lora, "strength_model": 1.0},
        },
        "5": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 0], "text": scene.prompt}},
        "6": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["5", 0]}},  # not used at cfg 1
        "7": {
            "class_type": "EmptySD3LatentImage",
            "inputs": {"width": width, "height": height, "batch_size": 1},
        },
        "8": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["4", 0],
                "positive": ["5", 0],
                "negative": ["6", 0],
                "latent_image": ["7", 0],
                "seed": 0,
                "steps": 20 if dev else 4,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        },
        "9": {"class_type": "VAEDecode", "inputs": {"samples": ["8", 0], "vae": ["3", 0]}},
        "10": {"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "eridiff"}},
    }
    if dev:
        nodes["11"] = {"class_type": "FluxGuidance", "inputs": {"conditioning": ["5", 0], "guidance": 3.5}}
        nodes["8"]["inputs"]["positive"] = ["11", 0]
        nodes["12"] = {"class_type": "ModelSamplingFlux", "inputs": _shift(scene)}
        nodes["8"]["inputs"]["model"] = ["12", 0]
    return nodes


def _shift(scene: Scene) -> dict[str, Any]:
    """Dev moves its noise levels with the picture's size, as the scheduler of the base says."""
    config, (width, height) = scene.scheduler_config, scene.size
    shifts = {
        "max_shift": float(config.get("max_shift", 1.15)),
        "base_shift": float(config.get("base_shift", 0.5)),
    }
    return {"model": ["4", 0], **shifts, "width": width, "height": height}
