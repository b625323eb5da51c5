"""A ComfyUI graph (API format) for SD 3.5: transformer, three text encoders and VAE in files of their own."""

from typing import Any

from eridiff.families import Scene


def workflow(scene: Scene) -> dict[str, Any]:
    """Load base and LoRA, sample once."""
    width, height = scene.size
    medium = bool(scene.denoiser_config.get("dual_attention_layers"))
    encoders = {"clip_name1": "clip_l.safetensors", "clip_name2": "clip_g.safetensors"}
    return {
        "1": {
            "class_type": "UNETLoader",
            "inputs": {"unet_name": f"{scene.base}.safetensors", "weight_dtype": "default"},
        },
        "2": {
            "class_type": "TripleCLIPLoader",
            "inputs": {**encoders, "clip_name3": "t5xxl_fp16.safetensors"},
        },
        "3": {"class_type": "VAELoader", "inputs": {"vae_name": "sd3_vae.safetensors"}},
        "4": {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"model": ["1", 0], "lora_name": scene.lora, "strength_model": 1.0},
        },
        "5": {
            "class_type": "ModelSamplingSD3",
            "inputs": {"model": ["4", 0], "shift": float(scene.scheduler_config.get("shift", 3.0))},
        },
        "6": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 0], "text": scene.prompt}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 0], "text": ""}},
        "8": {
            "class_type": "EmptySD3LatentImage",
            "inputs": {"width": width, "height": height, "batch_size": 1},
        },
        "9": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["5", 0],
                "positive": ["6", 0],
                "negative": ["7", 0],
                "latent_image": ["8", 0],
                "seed": 0,
                "steps": 40 if medium else 28,
                "cfg": 4.5 if medium else 3.5,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        },
        "10": {"class_type": "VAEDecode", "inputs": {"samples": ["9", 0], "vae": ["3", 0]}},
        "11": {"class_type": "SaveImage", "inputs": {"images": ["10", 0], "filename_prefix": "eridiff"}},
    }
