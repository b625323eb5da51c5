"""What `eridiff inspect` says of LoRA files: ours, in every dialect that we write, and those of other trainers."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from eridiff.bases.inspect import inspect_path
from eridiff.bases.lora_files import all_models, fitting_models, is_lora, read_modules
from eridiff.bases.recognise import components_in
from eridiff.cli import app
from eridiff.core.errors import BaseError
from eridiff.export.export import export_checkpoint
from eridiff.family import load_keys, published
from eridiff.formats.safetensors import raw_tensors, write_tensors
from eridiff.params.export import ExportParams
from eridiff.weights.files import open_weights
from tests.support.adapters import random_adapter, write_checkpoint
from tests.support.exports import SMALL
from tests.support.originals import Header, write_header


def told(path: Path) -> str:
    """What the command prints; its exit code is 0."""
    done = CliRunner().invoke(app, ["inspect", str(path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def write(path: Path, header: Header, metadata: Mapping[str, str] | None = None) -> Path:
    """A LoRA of zeros, with an alpha of half the rank."""
    tensors = {name: torch.zeros(shape, dtype=torch.float16) for name, (_, shape) in header.items()}
    for name in [name for name in tensors if name.endswith(".alpha")]:
        tensors[name] = torch.tensor(8.0, dtype=torch.float16)
    write_tensors(path, raw_tensors(tensors), dict(metadata or {}))
    return path


def kohya(modules: list[str], rank: int = 16, prefix: str = "lora_unet_") -> Header:
    found: Header = {}
    for module in modules:
        stem = prefix + module.replace(".", "_")
        found[stem + ".lora_down.weight"] = ("F16", (rank, 4))
        found[stem + ".lora_up.weight"] = ("F16", (4, rank))
        found[stem + ".alpha"] = ("F16", ())
    return found


def published_targets(family: str, variant: str, dialect: int = 0) -> list[str]:
    keys = load_keys(family)
    component = next(name for name, kind in keys.COMPONENTS.items() if kind.kind == "denoiser")
    table = keys.DIALECTS[dialect].table(published(family).models[variant][component])
    return [row.target for row in table]


@pytest.mark.parametrize("family", SMALL)
def test_ones_own_in_every_dialect(family: str, tmp_path: Path) -> None:
    """A checkpoint of train, and each file of the export: rank, alpha, base, trigger, steps and lineage."""
    shapes = {"down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (16, 16)}
    if family != "sdxl":
        shapes = {f"transformer_blocks.0.attn.{name}": (32, 32) for name in ("to_q", "to_k", "to_v")}
    tensors = random_adapter(shapes, 4)
    folder = tmp_path / "lora"
    path = write_checkpoint(folder / "step-000120.safetensors", family, SMALL[family], tensors, alpha=2.0)
    checkpoint = told(path)
    assert "  LoRA: diffusers' names (PEFT); F32" in checkpoint
    assert "  rank 4; alpha 2, by lora_adapter_metadata" in checkpoint
    export_checkpoint(folder, ExportParams(name="mine"), tmp_path / "out")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) == len(load_keys(family).DIALECTS)
    for text in (checkpoint, *map(told, files)):
        assert f"  base: tiny-{family} ({family}), by its lineage" in text
        assert f"all of the denoiser's modules are those of {family} (" in text
        assert "  trigger: eridraw\n" in text
        assert "  steps: 120 of 200, by its lineage\n" in text
        assert "  lineage: made by eridiff from " in text and "images.parquet aaaaaaaaaaaa" in text
        assert "cccccccccccc" in text


FULL = {
    "sdxl": ("sdxl", "sdxl", ["sdxl"]),
    "flux-dev": ("flux", "flux-dev", ["flux-dev", "flux-schnell"]),
    "sd35-medium": ("sd35", "sd35-medium", ["sd35-medium"]),
    "sd35-large": ("sd35", "sd35-large", ["sd35-large"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("model", FULL)
def test_the_base_by_the_names_of_the_modules(model: str, tmp_path: Path) -> None:
    """In kohya's, ComfyUI's and PEFT's names, whatever the metadata say."""
    family, variant, variants = FULL[model]
    expected = [(family, name) for name in variants]
    targets = published_targets(family, variant, len(load_keys(family).DIALECTS) - 1)
    for prefix in ("lora_unet_", "lora_transformer_", "lycoris_"):
        modules = read_modules(open_weights(write_header(tmp_path / "a.safetensors", kohya(targets, 16, prefix))))
        assert len(modules) == len(targets)
        assert fitting_models(modules, all_models()) == (expected, 1.0)
    dotted: Header = {f"diffusion_model.{name}.lora_A.weight": ("BF16", (8, 4)) for name in targets}
    modules = read_modules(open_weights(write_header(tmp_path / "b.safetensors", dotted)))
    assert fitting_models(modules, all_models())[1] == 1.0


def test_a_file_of_kohya(tmp_path: Path) -> None:
    header = kohya(published_targets("sdxl", "sdxl")[:10]) | kohya(
        ["text_model_encoder_layers_0_mlp_fc1"], 8, "lora_te1_"
    )
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_sd_model_name": "noobaiXL.safetensors",
        "ss_steps": "1600",
        "ss_output_name": "mine",
        "ss_tag_frequency": json.dumps({"10_cat": {"zwxcat": 20, "sofa": 3}, "5_dog": {"sofa": 4}}),
        "modelspec.author": "me\x1b[2J",
    }
    text = told(write(tmp_path / "k.safetensors", header, metadata))
    assert text.splitlines()[1:] == [
        "  LoRA: kohya's names; F16 x 33",
        "  modules: 10 of the denoiser, 1 of the text encoder 1 (lora_te1_text_model_encoder_layers_0_mlp_fc1, "
        "lora_unet_input_blocks_4_1_proj_in, lora_unet_input_blocks_4_1_proj_out and 8 more)",
        "  rank 8 x 1, 16 x 10; alpha 8",
        "  base: sdxl_base_v1-0 (ss_base_model_version); noobaiXL.safetensors (ss_sd_model_name); all of the "
        "denoiser's modules are those of sdxl (sdxl)",
        "  trigger: none is named; its most frequent tags are zwxcat (20), sofa (7)",
        "  steps: 1600 (ss_steps)",
        "  origin: made by sd-scripts or what writes its keys (networks.lora), author me?[2J, output_name mine",
    ]


OTHER = {
    "LoHa": ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"],
    "LoKr": ["lokr_w1", "lokr_w2_a", "lokr_w2_b"],
    "DoRA": ["lora_down.weight", "lora_up.weight", "dora_scale"],
    "OFT": ["oft_blocks"],
}


@pytest.mark.parametrize("method", OTHER)
def test_other_methods_are_named(method: str, tmp_path: Path) -> None:
    module = "lora_unet_double_blocks_0_img_attn_qkv"
    header: Header = {f"{module}.{ending}": ("F16", (8, 8)) for ending in OTHER[method]} | {
        f"{module}.alpha": ("F16", ())
    }
    path = write(tmp_path / "x.safetensors", header)
    text = told(path)
    assert f"  {method}: kohya's names" in text
    assert ("rank none" if method == "OFT" else "rank 8; alpha 8 (alpha / rank 1)") in text
    with pytest.raises(BaseError, match=r"x\.safetensors is a LoRA"):
        components_in(open_weights(path))


DIALECTS = {
    "lora_unet_input_blocks_4_1_proj_in.lora_down.weight": "kohya's names",
    "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": "diffusers' names (PEFT)",
    "transformer.transformer_blocks.0.attn.to_q.lora_A.default.weight": "diffusers' names (PEFT)",
    "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight": "PEFT's names",
    "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": "ComfyUI's names",
    "lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight": "OneTrainer's names",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight": (
        "diffusers' names (PEFT)"
    ),
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight": "diffusers' names (PEFT)",
    "transformer_blocks.0.attn.to_q.lora_linear_layer.down.weight": "names without a prefix",
}


@pytest.mark.parametrize("name", DIALECTS)
def test_dialects(name: str, tmp_path: Path) -> None:
    assert is_lora([name])
    text = told(write(tmp_path / "x.safetensors", {name: ("F16", (4, 4))}))
    assert f"  LoRA: {DIALECTS[name]}; F16 x 1" in text
    assert "all of the denoiser's modules are those of" in text
    assert "rank 4; alpha is not in the file: readers take the rank" in text
    assert "steps: not said" in text and "origin: the file says nothing" in text


def test_strangers(tmp_path: Path) -> None:
    """A LoRA of another model, and metadata that are not what they should be."""
    header = kohya([f"down_blocks_0_attentions_0_transformer_blocks_0_attn{n}_to_q" for n in (1, 2)])
    metadata = {
        "eridiff": "[" * 5000,
        "ss_tag_frequency": "[1]",
        "lora_adapter_metadata": "{",
        "training_info": '{"step": 500}',
        "software": '{"name": "ai-toolkit"}',
        "modelspec.title": "x" * 50_000,
    }
    text = told(write(tmp_path / "x.safetensors", header, metadata))
    assert "its modules are of none of the models that are trained here" in text
    assert "steps: 500 (training_info)" in text and "made by ai-toolkit" in text
    assert max(map(len, text.splitlines())) < 400
    for name in ("model.diffusion_model.out.2.weight", "x.alpha", ".lora_down.weight", "a.diff"):
        assert not is_lora([name])
    assert inspect_path(tmp_path / "x.safetensors")


@pytest.mark.parametrize("value", ["[]", "{}", "[1]", "1" + "0" * 400, "1e999", '"x"', "null", "true", "-1"])
def test_metadata_of_any_kind(value: str, tmp_path: Path) -> None:
    lineage = f'{{"base": {value}, "family": {value}, "step": {value}, "params": {value}, "pointer": {value}}}'
    metadata = {
        "eridiff": lineage,
        "lora_adapter_metadata": f'{{"unet.lora_alpha": {value}, "x.lora_alpha": {value}}}',
        "ss_tag_frequency": f'{{"a": {value}, "b": {{"tag": {value}}}}}',
        "training_info": f'{{"step": {value}}}',
        "software": f'{{"name": {value}}}',
    }
    header: Header = {"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": ("F16", (4, 4))}
    assert "  rank 4; alpha " in told(write(tmp_path / "x.safetensors", header, metadata))
    del metadata["eridiff"]
    assert "  trigger: " in told(write(tmp_path / "x.safetensors", header, metadata))


def test_what_the_file_says_decides_between_models_of_the_same_names(tmp_path: Path) -> None:
    header = kohya(published_targets("flux", "flux-dev")[:3])
    text = told(write(tmp_path / "x.safetensors", header))
    assert "are those of flux (flux-dev) or flux (flux-schnell)\n" in text
    text = told(write(tmp_path / "x.safetensors", header, {"modelspec.architecture": "flux-1-schnell/lora"}))
    assert "base: flux-1-schnell/lora (modelspec.architecture); all of" in text
    assert "are those of flux (flux-schnell)\n" in text
