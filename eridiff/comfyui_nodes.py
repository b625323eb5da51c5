"""Nodes that load a base and an exported LoRA in a ComfyUI graph (API format), by the files that hold the base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eridiff.family import Scene

Link = list[Any]  # [node number, output]
CLIP_LOADERS = {2: "DualCLIPLoader", 3: "TripleCLIPLoader"}  # by the number of text encoders; the latter has no type


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Nodes 1 to 4, and what the nodes that follow link to."""

    nodes: Mapping[str, dict[str, Any]]
    model: Link  # with the LoRA
    clip: Link
    vae: Link


def load_base(scene: Scene, denoiser: str, encoders: Sequence[str], clip_type: str) -> Loaded:
    """Load base and LoRA: from one checkpoint what lies in it, the rest from files of its own.

    ComfyUI looks for a file that holds more than the denoiser in `checkpoints`, for one with the denoiser alone in
    `diffusion_models`. encoders: the text encoders' components, in the order of ComfyUI's loader.
    """
    files, nodes = scene.files, {}
    main = files[denoiser]
    if main in (files["vae"], *(files[name] for name in encoders)):
        nodes["1"] = node("CheckpointLoaderSimple", ckpt_name=main)
    else:
        nodes["1"] = node("UNETLoader", unet_name=main, weight_dtype="default")
    clip, vae = ["1", 1], ["1", 2]
    if any(files[name] != main for name in encoders):
        names = {f"clip_name{place}": files[name] for place, name in enumerate(encoders, 1)}
        kind = {"type": clip_type} if len(encoders) == 2 else {}
        nodes["2"] = node(CLIP_LOADERS[len(encoders)], **names, **kind)
        clip = ["2", 0]
    if files["vae"] != main:
        nodes["3"] = node("VAELoader", vae_name=files["vae"])
        vae = ["3", 0]
    nodes["4"] = node("LoraLoaderModelOnly", model=["1", 0], lora_name=scene.lora, strength_model=1.0)
    return Loaded(nodes=nodes, model=["4", 0], clip=clip, vae=vae)


def sample_as_trained(model: Link, scheduler_config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The node that tells ComfyUI what a diffusion model predicts, and where its noise ends; None for the usual.

    ComfyUI knows it from tensors of the checkpoint alone: a base that was marked otherwise, or that lies in a model
    folder, would be sampled as if it predicted the noise.
    """
    v = scheduler_config.get("prediction_type") == "v_prediction"
    zero_snr = bool(scheduler_config.get("rescale_betas_zero_snr"))
    if not (v or zero_snr):
        return None
    return node("ModelSamplingDiscrete", model=model, sampling="v_prediction" if v else "eps", zsnr=zero_snr)


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """A node of the graph."""
    return {"class_type": class_type, "inputs": inputs}
