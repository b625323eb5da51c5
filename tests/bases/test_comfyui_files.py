"""Exported workflows name files that people have, in the loaders that read them."""

import json
from pathlib import Path
from typing import Any

import pytest

from eridiff.bases.comfyui_files import comfy_files
from eridiff.core.files import write_text
from eridiff.family import Scene, family_names, load_family, load_keys, load_workflow, published
from eridiff.machine.local import bases_dir
from eridiff.weights.components import Component
from eridiff.weights.pointers import Pointer, pointer_text
from tests.support.checkouts import make_checkout
from tests.support.exports import exported

PUBLISHED = [(family, variant) for family in family_names() for variant in published(family).models]
CLIPS = {"clip_name1": "clip_l.safetensors", "clip_name2": "clip_g.safetensors"}
T5 = "t5xxl_fp16.safetensors"
# What ComfyUI's own examples load for these models.
MAKERS = {
    "sdxl": {"CheckpointLoaderSimple": {"ckpt_name": "sd_xl_base_1.0.safetensors"}},
    "sd35-medium": {
        "CheckpointLoaderSimple": {"ckpt_name": "sd3.5_medium.safetensors"},
        "TripleCLIPLoader": {**CLIPS, "clip_name3": T5},
    },
    "sd35-large": {
        "CheckpointLoaderSimple": {"ckpt_name": "sd3.5_large.safetensors"},
        "TripleCLIPLoader": {**CLIPS, "clip_name3": T5},
    },
    "flux-dev": {
        "UNETLoader": {"unet_name": "flux1-dev.safetensors", "weight_dtype": "default"},
        "DualCLIPLoader": {"clip_name1": "clip_l.safetensors", "clip_name2": T5, "type": "flux"},
        "VAELoader": {"vae_name": "ae.safetensors"},
    },
    "flux-schnell": {
        "UNETLoader": {"unet_name": "flux1-schnell.safetensors", "weight_dtype": "default"},
        "DualCLIPLoader": {"clip_name1": "clip_l.safetensors", "clip_name2": T5, "type": "flux"},
        "VAELoader": {"vae_name": "ae.safetensors"},
    },
}


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_checkout(tmp_path / "checkout", monkeypatch)


def denoiser_config(family: str, variant: str) -> dict[str, Any]:
    return dict(published(family).models[variant][load_family(family).DENOISER])


def add_pointers(family: str, variant: str, files: dict[str, tuple[str, ...]]) -> None:
    """Pointers of a base `mine` whose components lie in these files."""
    for part, names in load_family(family).PARTS.items():
        components = {
            name: Component(name=name, config={}, files=dict.fromkeys(files.get(name, ()), 1), digest="0")
            for name in names
        }
        pointer = Pointer(base="mine", family=family, part=part, components=components)
        write_text(bases_dir() / "mine" / f"{part}.json", pointer_text(pointer))


def loaders(family: str, variant: str, base: str = "mine") -> dict[str, Any]:
    """Loader -> its inputs, less that of the LoRA."""
    config = denoiser_config(family, variant)
    files = comfy_files(base, family, config).files
    scene = Scene(lora="l", files=files, prompt="", size=(64, 64), denoiser_config=config, scheduler_config={})
    nodes = load_workflow(family).workflow(scene).values()
    found = {node["class_type"]: node["inputs"] for node in nodes if "Loader" in node["class_type"]}
    return {name: inputs for name, inputs in found.items() if "Lora" not in name}


@pytest.mark.parametrize(("family", "variant"), PUBLISHED)
def test_a_folder_is_loaded_from_the_makers_files(family: str, variant: str) -> None:
    assert loaders(family, variant) == MAKERS[variant]  # no pointer at all
    components = load_keys(family).COMPONENTS
    add_pointers(family, variant, dict.fromkeys(components, ("model.fp16.safetensors",)))
    assert loaders(family, variant) == MAKERS[variant]
    shards = tuple(f"diffusion_pytorch_model-{part:05d}-of-00002.safetensors" for part in (1, 2))
    add_pointers(family, variant, dict.fromkeys(components, shards))
    assert loaders(family, variant) == MAKERS[variant]


@pytest.mark.parametrize(("family", "variant"), PUBLISHED)
def test_one_file_with_all_in_it_is_a_checkpoint(family: str, variant: str) -> None:
    add_pointers(family, variant, dict.fromkeys(load_keys(family).COMPONENTS, ("dream v2.safetensors",)))
    assert loaders(family, variant) == {"CheckpointLoaderSimple": {"ckpt_name": "dream v2.safetensors"}}
    assert comfy_files("mine", family, {}).source == "as base 'mine' was added"


@pytest.mark.parametrize(("family", "variant"), PUBLISHED)
def test_files_of_their_own_have_loaders_of_their_own(family: str, variant: str) -> None:
    add_pointers(family, variant, {name: (f"my_{name}.safetensors",) for name in load_keys(family).COMPONENTS})
    found = loaders(family, variant)
    assert len(found) == 3 and found["VAELoader"] == {"vae_name": "my_vae.safetensors"}
    assert found["UNETLoader"]["unet_name"] == f"my_{load_family(family).DENOISER}.safetensors"
    clips = next(inputs for name, inputs in found.items() if "CLIPLoader" in name)
    encoders = [name for name in load_keys(family).COMPONENTS if name.startswith("text_encoder")]
    assert [value for name, value in clips.items() if name != "type"] == [f"my_{name}.safetensors" for name in encoders]


def test_a_checkpoint_without_text_encoders() -> None:
    """SD 3.5 as its makers have it: the encoders are added from ComfyUI's folder."""
    files = dict.fromkeys(("transformer", "vae"), ("fine.safetensors",))
    add_pointers("sd35", "sd35-medium", {**files, "text_encoder_3": ("t5xxl_fp8_e4m3fn.safetensors",)})
    found = loaders("sd35", "sd35-medium")
    assert found["CheckpointLoaderSimple"] == {"ckpt_name": "fine.safetensors"}
    assert found["TripleCLIPLoader"] == {**CLIPS, "clip_name3": "t5xxl_fp8_e4m3fn.safetensors"}


@pytest.mark.parametrize("family", family_names())
def test_the_card_says_where_names_come_from(family: str, tmp_path: Path) -> None:
    """A model of sizes that nobody published: no file of it can be known."""
    out = exported(tmp_path, family)
    card = (out / "README.md").read_text()
    assert f"`tiny-{family}.safetensors` (no file of base 'tiny-{family}' is known to ComfyUI's users" in card
    assert f"tiny-{family}.safetensors" in json.dumps(json.loads((out / "workflow.json").read_text()))
