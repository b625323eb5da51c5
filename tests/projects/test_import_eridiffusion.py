"""Configurations of the predecessor, of both schemas: what each key becomes, and what is refused by name."""

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from eridiff.check import SECTIONS
from eridiff.cli import app
from eridiff.core.errors import ConfigError
from eridiff.projects.eridiffusion_keys import ACTIONS
from eridiff.projects.import_eridiffusion import import_config
from eridiff.projects.presets import find_preset
from tests.conftest import ROOT

JOB = """
job: extension
config:
  name: my first one
  process:
    - type: sd_trainer
      training_folder: out
      device: cuda:0
      low_vram: true
      trigger_word: zwx
      model:
        name_or_path: /models/sd_xl_base_1.0.safetensors
        is_sdxl: true
        is_flux: false
        vae_path: null
        snr_gamma: 4
      network: {type: lora, linear: 24, linear_alpha: 12, conv: null}
      save: {dtype: float16, save_every: 200, max_step_saves_to_keep: 3, push_to_hub: false}
      datasets:
        - {folder_path: /pictures/zwx, caption_ext: txt, caption_dropout_rate: 0.1, shuffle_tokens: true,
           cache_latents_to_disk: true, resolution: [768, 1024]}
      train:
        batch_size: 2
        steps: 1200
        gradient_accumulation: 3
        train_unet: true
        train_text_encoder: false
        gradient_checkpointing: true
        noise_scheduler: ddpm
        optimizer: adamw8bit
        lr: 2e-4
        lr_scheduler: cosine
        lr_warmup_steps: 50
        dtype: bf16
        max_grad_norm: 0.5
        seed: 9
        ema_config: {use_ema: true, ema_decay: 0.99}
      sample:
        sampler: ddim
        sample_every: 100
        sample_steps: 20
        guidance_scale: 6
        prompts: ["{trigger_word} on a bicycle", "a boat"]
        neg: blurry
        width: 1024
        height: 768
        seed: 5
      advanced: {vae_tiling: true, vae_tile_size: 512, lora_dropout: 0.0}
meta: {author: A. Person, version: '1.0'}
"""
SECTIONED = """
model: {type: sd35, variant: large, path: /models/sd3.5_large.safetensors}
text_encoders: {clip_l_path: /models/clip_l.safetensors, t5_path: /models/t5.safetensors}
vae: {path: /models/vae.safetensors, scaling_factor: 1.5305}
lora: {rank: 32, alpha: 16.0, dropout: 0.0, include_mlp: false, target_modules: [joint_blocks.*.attn.qkv]}
training:
  output_dir: out
  num_train_epochs: 5
  batch_size: 1
  gradient_accumulation_steps: 4
  learning_rate: 5.0e-5
  train_text_encoders: false
  mixed_precision: true
  save_steps: 100
  max_grad_norm: 2.0
dataset: {type: directory, path: /pictures, resolution: 512, center_crop: true, random_flip: true, caption_dropout: 0.2}
scheduler: {type: cosine_annealing, num_warmup_steps: 3, num_cycles: 1}
optimizer: {type: adamw, weight_decay: 0.02, betas: [0.9, 0.95], eps: 1.0e-7}
loss: {type: flow_matching, weight: 1.0, reduction: mean}
validation: {prompts: [a robot], num_inference_steps: 14, guidance_scale: 3.5}
resume_from: null
push_to_hub: false
"""


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def write(folder: Path, text: str) -> Path:
    (folder / "old.yaml").write_text(text)
    return folder / "old.yaml"


def params_of(text: str) -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe", pure=True).load(text)
    return found


def test_a_job(tmp_path: Path) -> None:
    imported = import_config(write(tmp_path, JOB))
    params = params_of(imported.text)
    train, sample = params["train"], params["sample"]
    assert params["model"] == {"family": "sdxl", "base": "sdxl"}
    assert (params["captions"]["trigger"], params["captions"]["shuffle_tags"]) == ("zwx", True)
    assert (params["buckets"]["resolution"], params["buckets"]["more_resolutions"]) == (1024, [768])
    assert params["latents"]["tile"] == 512
    assert {key: train[key] for key in ("steps", "batch_size", "accumulation", "seed", "save_every", "keep")} == {
        "steps": 1200, "batch_size": 2, "accumulation": 3, "seed": 9, "save_every": 200, "keep": 3
    }  # fmt: skip
    assert (train["caption_dropout"], train["ema_decay"], train["precision"]) == (0.1, 0.99, "bf16")
    assert train["lora"] == {"rank": 24, "alpha": 12.0, "targets": "attention"}
    assert train["optimizer"] == {
        "name": "adamw8bit", "lr": 2e-4, "schedule": "cosine", "warmup_steps": 50, "max_grad_norm": 0.5
    }  # fmt: skip
    assert train["ddpm"] == {"loss_weight": "min_snr", "min_snr_gamma": 4.0}
    assert sample["prompts"] == [
        {"prompt": "[trigger] on a bicycle", "negative": "blurry"},
        {"prompt": "a boat", "negative": "blurry"},
    ]
    assert (sample["size"], sample["steps"], sample["seeds"]) == ([1024, 768], 20, [5])
    assert (sample["scheduler"], sample["guidance_scale"]) == ("ddim", 6.0)
    export = params["export"]
    assert (export["name"], export["dtype"], export["author"]) == ("my-first-one", "fp16", "A. Person")
    assert imported.next_steps == [
        "eridiff base add sdxl /models/sd_xl_base_1.0.safetensors",
        "eridiff new NAME --images /pictures/zwx --params PARAMS",
    ]


def test_sections(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(9):
        (pictures / f"{number}.png").touch()
    (pictures / "0.txt").touch()
    imported = import_config(write(tmp_path, SECTIONED), pictures)
    params = params_of(imported.text)
    train = params["train"]
    assert params["model"] == {"family": "sd35", "base": "sd35-large"}
    assert train["steps"] == 5 * 3  # nine pictures in steps of four
    assert train["lora"] == {"rank": 32, "alpha": 16.0, "targets": "attention"}
    assert train["optimizer"] == {
        "name": "adamw", "lr": 5e-5, "schedule": "cosine", "warmup_steps": 3, "max_grad_norm": 2.0,
        "weight_decay": 0.02, "betas": [0.9, 0.95], "eps": 1e-7,
    }  # fmt: skip
    assert (params["buckets"]["resolution"], params["latents"]["flip"]) == (512, True)
    assert (params["sample"]["prompts"], params["sample"]["steps"]) == ([{"prompt": "a robot"}], 14)
    weights = (
        "/models/sd3.5_large.safetensors /models/clip_l.safetensors /models/t5.safetensors /models/vae.safetensors"
    )
    assert imported.next_steps[0] == f"eridiff base add sd35-large {weights}"
    assert any(line.startswith("epochs: 5 of 9 pictures -> train.steps = 15") for line in imported.lines)
    without = import_config(write(tmp_path, SECTIONED))
    assert params_of(without.text)["train"]["steps"] == 1500  # the preset's
    assert any("--images FOLDER calculates them" in line for line in without.lines)


def leaves(value: Any) -> list[str]:
    """Names of all keys that hold a value rather than keys."""
    if isinstance(value, list):
        return [name for item in value for name in leaves(item)]
    inner = {key: leaves(item) for key, item in value.items()} if isinstance(value, dict) else {}
    return [name for key, names in inner.items() for name in names or [key]]


@pytest.mark.parametrize("text", [JOB, SECTIONED], ids=["job", "sections"])
def test_every_key_is_accounted_for(text: str, tmp_path: Path) -> None:
    """A line for each, in order."""
    lines = import_config(write(tmp_path, text)).lines
    keys = leaves(params_of(text))
    assert sorted(line.partition(":")[0].rpartition(".")[2] for line in lines[: len(keys)]) == sorted(keys)
    assert [line.partition(":")[0] for line in lines[len(keys) : -1]] == ["epochs"] * ("epochs" in text)
    assert lines[-1].startswith("all other keys are those of presets/")


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("type: lora, linear", "type: lokr, linear", "network.type: lokr: adapters of this kind are not here"),
        ("conv: null", "conv: 8", "network.conv: 8: it is not here"),
        ("dtype: bf16", "dtype: fp8", "train.dtype: fp8: training in this format is not here. Known: bf16, bf"),
        ("train_text_encoder: false", "train_text_encoder: true", "train.train_text_encoder: true: text encoders are"),
        ("optimizer: adamw8bit", "optimizer: prodigy", "train.optimizer: prodigy: it is not here. Known: adamw, "),
        ("sampler: ddim", "sampler: plms", "sample.sampler: plms: there is no such sampler. Known: ddim"),
        ("noise_scheduler: ddpm", "noise_scheduler: flowmatch", "this family is trained by ddpm"),
        ("gradient_accumulation: 3", "gradient_acumulation: 3", "train.gradient_acumulation: unknown. Did you mean"),
        ("trigger_word: zwx", "trigger_word: null", "a prompt has a place for the trigger, but there is no"),
        ("is_sdxl: true", "is_sdxl: false", "does not say which model it is for"),
        ("is_flux: false", "is_flux: true", "says sdxl, flux"),
        ("linear: 24", "linear: 0", "train.lora.rank"),
    ],
)
def test_what_is_not_here_is_named(before: str, after: str, words: str, tmp_path: Path) -> None:
    assert before in JOB
    with pytest.raises(ConfigError) as caught:
        import_config(write(tmp_path, JOB.replace(before, after)))
    assert words in str(caught.value)


def test_all_faults_at_once(tmp_path: Path) -> None:
    text = JOB.replace("conv: null", "conv: 8").replace("dtype: bf16", "dtype: fp8")
    with pytest.raises(ConfigError, match=r"(?s)network\.conv: 8.*train\.dtype: fp8"):
        import_config(write(tmp_path, text))


def test_flow_has_no_min_snr_and_flux_no_negative(tmp_path: Path) -> None:
    text = JOB.replace("is_sdxl: true", "is_v3: true").replace("ddpm", "flowmatch").replace("ddim", "flowmatch")
    text = text.replace("sd_xl_base_1.0", "sd3.5_medium")
    imported = import_config(write(tmp_path, text))
    params = params_of(imported.text)
    assert params["model"]["base"] == "sd35-medium" and "ddpm" not in params["train"]
    assert params["sample"]["scheduler"] == "euler"
    assert "model.snr_gamma: 4: this family is trained by flow, which has no such weight" in imported.lines
    text = text.replace("is_v3: true", "is_flux: true").replace("is_flux: false", "is_v3: false")
    params = params_of(import_config(write(tmp_path, text.replace("sd3.5_medium", "flux1-schnell"))).text)
    assert params["model"]["base"] == "flux-schnell"
    assert params["sample"]["prompts"][1] == {"prompt": "a boat"}


@pytest.mark.parametrize(
    "name", ["sdxl_lora_24gb_optimized", "sd35_lora_training", "flux_lora_24gb", "example_sdxl_lora"]
)
def test_old_names_of_presets(name: str) -> None:
    assert find_preset(name).is_file()


def test_an_empty_trigger_is_none(tmp_path: Path) -> None:
    text = JOB.replace("trigger_word: zwx", "trigger_word: ''").replace("{trigger_word} on", "a man on")
    assert params_of(import_config(write(tmp_path, text)).text)["captions"]["trigger"] is None


def test_switches_that_turn_another_key_off(tmp_path: Path) -> None:
    text = JOB.replace("use_ema: true", "use_ema: false").replace("vae_tiling: true", "vae_tiling: false")
    params = params_of(import_config(write(tmp_path, text)).text)
    assert params["train"]["ema_decay"] is None and params["latents"]["tile"] is None


def test_the_command_writes_once(tmp_path: Path) -> None:
    old, out = write(tmp_path, JOB), tmp_path / "new.yaml"
    ran = CliRunner().invoke(app, ["import-config", str(old), "--out", str(out)], catch_exceptions=False)
    assert ran.exit_code == 0
    assert "  train.lr: 0.0002 -> train.optimizer.lr = 0.0002" in ran.output.splitlines()
    assert f"  eridiff new NAME --images /pictures/zwx --params {out}" in ran.output.splitlines()
    assert set(params_of(out.read_text())) == set(SECTIONS)
    with pytest.raises(ConfigError, match=r"new\.yaml is there already: choose another name with --out"):
        CliRunner().invoke(app, ["import-config", str(old), "--out", str(out)], catch_exceptions=False)


def test_every_action_says_something() -> None:
    """Words for why a key is not needed, or keys of params.yaml that exist."""
    assert len(ACTIONS) > 150
    assert all(re.fullmatch(r"[a-z_]+(\.\w+)*", key) for key in ACTIONS)
