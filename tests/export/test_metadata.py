"""What an export says of itself: metadata and workflow."""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from eridiff.bases.marks import TENSORS, Mark, settle_scheduler
from eridiff.family import Scene, load_keys, load_workflow, published
from eridiff.formats.safetensors import TensorFile
from tests.support.exports import SMALL, exported


def kohya_hashes(path: Path) -> tuple[str, str]:
    """sd-scripts' hashes, by the safetensors library."""
    tensors = safetensors.torch.load_file(path)
    metadata = {key: value for key, value in TensorFile(path).metadata.items() if key.startswith("ss_")}
    data = safetensors.torch.save(tensors, metadata)
    body = data[8 + int.from_bytes(data[:8], "little") :]
    legacy = io.BytesIO(data)
    legacy.seek(0x100000)
    return hashlib.sha256(body).hexdigest(), hashlib.sha256(legacy.read(0x10000)).hexdigest()[:8]


@pytest.mark.parametrize("family", SMALL)
def test_metadata(family: str, tmp_path: Path) -> None:
    stated = {"title": "Fox", "author": "me", "license": "mit", "tags": ("fox", "ink"), "date": "2024-06-01"}
    out = exported(tmp_path, family, name="fox", **stated)
    for path in out.glob("*.safetensors"):
        metadata = TensorFile(path).metadata
        spec = {key.removeprefix("modelspec."): value for key, value in metadata.items() if "modelspec" in key}
        whole, legacy = kohya_hashes(path)
        assert metadata["sshs_model_hash"] == whole and metadata["sshs_legacy_hash"] == legacy
        assert spec.pop("hash_sha256") == f"0x{whole}"
        assert spec.pop("architecture") == f"{load_keys(family).architecture(SMALL[family])}/lora"
        assert spec.pop("implementation").startswith("https://github.com/")
        assert spec.pop("prediction_type", "none") == ("epsilon" if family == "sdxl" else "none")
        rest = {"sai_model_spec": "1.0.1", "resolution": "1024x1024", "trigger_phrase": "eridraw"}
        assert spec == {**rest, **{k: ",".join(v) if isinstance(v, tuple) else v for k, v in stated.items()}}
        assert metadata["ss_network_dim"] == "4" and metadata["ss_learning_rate"] == "0.0001"
        assert metadata["ss_epoch"] == "30" and metadata["ss_min_snr_gamma"] == "5.0"
        assert json.loads(metadata["ss_tag_frequency"]) == {"dataset": {"drawing": 8, "red fox": 3}}
        assert json.loads(metadata["ss_bucket_info"])["buckets"]["1"] == {"resolution": [1024, 1024], "count": 5}
        lineage = json.loads(metadata["eridiff"])
        assert lineage["inputs"]["buckets.parquet"] == "b" * 64 and lineage["step"] == 120
        assert all(isinstance(value, str) for value in metadata.values())


SAMPLER = {"model", "seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative"}
SAMPLER |= {"latent_image", "denoise"}
# Class -> (inputs that ComfyUI requires, number of outputs), read off its nodes.
NODES = {
    "CheckpointLoaderSimple": ({"ckpt_name"}, 3),
    "UNETLoader": ({"unet_name", "weight_dtype"}, 1),
    "DualCLIPLoader": ({"clip_name1", "clip_name2", "type"}, 1),
    "TripleCLIPLoader": ({"clip_name1", "clip_name2", "clip_name3"}, 1),
    "VAELoader": ({"vae_name"}, 1),
    "LoraLoaderModelOnly": ({"model", "lora_name", "strength_model"}, 1),
    "ModelSamplingSD3": ({"model", "shift"}, 1),
    "ModelSamplingDiscrete": ({"model", "sampling", "zsnr"}, 1),
    "ModelSamplingFlux": ({"model", "max_shift", "base_shift", "width", "height"}, 1),
    "CLIPTextEncode": ({"clip", "text"}, 1),
    "FluxGuidance": ({"conditioning", "guidance"}, 1),
    "ConditioningZeroOut": ({"conditioning"}, 1),
    "EmptyLatentImage": ({"width", "height", "batch_size"}, 1),
    "EmptySD3LatentImage": ({"width", "height", "batch_size"}, 1),
    "KSampler": (SAMPLER, 1),
    "VAEDecode": ({"samples", "vae"}, 1),
    "SaveImage": ({"images", "filename_prefix"}, 0),
}


@pytest.mark.parametrize("family", SMALL)
def test_workflow(family: str, tmp_path: Path) -> None:
    graph = json.loads((exported(tmp_path, family, name="fox") / "workflow.json").read_text())
    for node in graph.values():
        assert node["inputs"].keys() == NODES[node["class_type"]][0]
        for link in (value for value in node["inputs"].values() if isinstance(value, list)):
            assert link[1] < NODES[graph[link[0]]["class_type"]][1]
    linked = {value[0] for node in graph.values() for value in node["inputs"].values() if isinstance(value, list)}
    assert {node["class_type"] for key, node in graph.items() if key not in linked} == {"SaveImage"}
    values = [value for node in graph.values() for value in node["inputs"].values()]
    assert "fox.safetensors" in values and "eridraw" in values and values.count(1024) >= 2


def test_the_schnell_graph_has_no_guidance() -> None:
    config, files = {"guidance_embeds": False}, dict.fromkeys(load_keys("flux").COMPONENTS, "b.safetensors")
    scene = Scene(lora="l", files=files, prompt="p", size=(64, 64), denoiser_config=config, scheduler_config={})
    classes = {node["class_type"] for node in load_workflow("flux").workflow(scene).values()}
    assert "FluxGuidance" not in classes and "ModelSamplingFlux" not in classes


@pytest.mark.parametrize(
    ("tensors", "sampling", "zsnr", "scheduler"),
    [(["v_pred", "ztsnr"], "v_prediction", True, "sgm_uniform"), (["v_pred"], "v_prediction", False, "karras")],
)
def test_the_graph_samples_as_a_base_is_marked(tensors: list[str], sampling: str, zsnr: bool, scheduler: str) -> None:
    marks = [Mark(where=f"tensor {name}", changes=TENSORS[name]) for name in tensors]
    config, _ = settle_scheduler(published("sdxl").models["sdxl"]["scheduler"], marks, "ddpm", "b")
    graph = load_workflow("sdxl").workflow(diffusion_scene(config))
    found = [key for key, node in graph.items() if node["class_type"] == "ModelSamplingDiscrete"]
    (lora,) = (key for key, node in graph.items() if node["class_type"] == "LoraLoaderModelOnly")
    (sampler,) = (node["inputs"] for node in graph.values() if node["class_type"] == "KSampler")
    assert [graph[key]["inputs"] for key in found] == [{"model": [lora, 0], "sampling": sampling, "zsnr": zsnr}]
    assert graph[found[0]]["inputs"].keys() == NODES["ModelSamplingDiscrete"][0]
    assert sampler["model"] == [found[0], 0] and sampler["scheduler"] == scheduler


def test_the_graph_of_a_base_that_predicts_the_noise_is_as_before() -> None:
    graph = load_workflow("sdxl").workflow(diffusion_scene(published("sdxl").models["sdxl"]["scheduler"]))
    assert "ModelSamplingDiscrete" not in {node["class_type"] for node in graph.values()}
    (sampler,) = (node["inputs"] for node in graph.values() if node["class_type"] == "KSampler")
    assert (sampler["model"], sampler["sampler_name"], sampler["scheduler"]) == (["4", 0], "dpmpp_2m", "karras")


def diffusion_scene(scheduler_config: Mapping[str, Any]) -> Scene:
    files = dict.fromkeys(load_keys("sdxl").COMPONENTS, "b.safetensors")
    return Scene(
        lora="l", files=files, prompt="p", size=(64, 64), denoiser_config={}, scheduler_config=scheduler_config
    )
