import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from eridiff import export
from eridiff.config import validate
from eridiff.errors import ConfigError, ExportError, TrainError
from eridiff.export import ExportParams, choose_checkpoint, export_checkpoint
from eridiff.families import load_family, load_keys
from eridiff.floats import from_float32, to_float32
from eridiff.tensorfile import RawTensor, TensorFile, load_tensors
from tests.adapters import change, random_adapter, write_checkpoint
from tests.full_size import FLUX_DEV, SD35_MEDIUM, SDXL

SMALL: dict[str, dict[str, Any]] = {
    "sdxl": {
        **SDXL,
        "block_out_channels": (8, 16, 32),
        "attention_head_dim": [1, 2, 2],
        "transformer_layers_per_block": [1, 1, 2],
        "cross_attention_dim": 12,
        "norm_num_groups": 4,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 60,
    },
    "sd35": {
        **SD35_MEDIUM,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "caption_projection_dim": 32,
        "joint_attention_dim": 24,
        "pooled_projection_dim": 20,
        "pos_embed_max_size": 8,
        "dual_attention_layers": (0,),
    },
    "flux": {**FLUX_DEV, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2},
}
# diffusers' loader for kohya's Flux files knows the full width only: one block of each kind, on the meta device.
WIDE_FLUX = {**FLUX_DEV, "num_layers": 1, "num_single_layers": 1}
CLASSES = {"sdxl": "UNet2DConditionModel", "sd35": "SD3Transformer2DModel", "flux": "FluxTransformer2DModel"}
# Rounding of both factors, as a share of a module's change (Frobenius).
ROUNDING = {"fp32": 1e-6, "fp16": 1e-3, "bf16": 8e-3}


def denoiser(family: str, config: dict[str, Any], device: str = "cpu") -> nn.Module:
    import diffusers

    with torch.device(device):
        model: nn.Module = getattr(diffusers, CLASSES[family])(**config)
    return model


@cache
def shapes(family: str, wide: bool = False) -> dict[str, tuple[int, int]]:
    """Trained modules of the small (or the wide) model: all but the dead ones."""
    config = WIDE_FLUX if wide else SMALL[family]
    known = {part for row in load_keys(family).DIALECTS[0].table(config) for part in row.parts}
    known -= set(load_family(family).dead_modules(config))
    modules = denoiser(family, config, "meta").named_modules()
    return {n: (m.out_features, m.in_features) for n, m in modules if isinstance(m, nn.Linear) and n in known}


@cache
def adapter(family: str) -> dict[str, Tensor]:
    return random_adapter(shapes(family), rank=4)


def checkpoint(folder: Path, family: str, **changes: Any) -> Path:
    config = json.loads(json.dumps(SMALL[family]))
    tensors = changes.pop("tensors", None) or adapter(family)
    return write_checkpoint(folder / "step-000120.safetensors", family, config, tensors, **changes)


def exported(tmp_path: Path, family: str, alpha: float = 4.0, **params: Any) -> Path:
    checkpoint(tmp_path / "lora", family, alpha=alpha)
    out = tmp_path / "export"
    export_checkpoint(tmp_path / "lora", ExportParams(**params), out)
    return out


# --- second source: diffusers' own loaders ---


def worst_error(model: nn.Module, tensors: dict[str, Tensor], scale: float) -> float:
    """The largest relative error of the changes that peft merges into a model."""
    modules = dict(model.named_modules())
    names = {name.rsplit(".lora_", 1)[0] for name in tensors}
    assert {name for name, module in modules.items() if hasattr(module, "get_delta_weight")} == names
    errors = []
    for name in names:
        true = change(tensors, name, scale)
        merged = modules[name].get_delta_weight("default_0").detach().float()  # type: ignore[operator]
        errors.append(float((merged - true).norm() / true.norm()))
    return max(errors)


def load_sdxl(path: Path) -> nn.Module:
    from diffusers import StableDiffusionXLPipeline as Pipeline

    unet = denoiser("sdxl", SMALL["sdxl"])
    weights, alphas = Pipeline.lora_state_dict(str(path), unet_config=unet.config)
    Pipeline.load_lora_into_unet(weights, network_alphas=alphas, unet=unet)
    return unet


def load_sd35(path: Path) -> nn.Module:
    from diffusers import StableDiffusion3Pipeline as Pipeline

    transformer = denoiser("sd35", SMALL["sd35"])
    Pipeline.load_lora_into_transformer(Pipeline.lora_state_dict(str(path)), transformer=transformer)
    return transformer


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("family", "load"), [("sdxl", load_sdxl), ("sd35", load_sd35)])
def test_diffusers_merges_what_was_trained(
    family: str, load: Callable[[Path], nn.Module], dtype: str, tmp_path: Path
) -> None:
    out = exported(tmp_path, family, dtype=dtype)
    error = worst_error(load(out / "lora.safetensors"), adapter(family), scale=1.0)
    print(f"{family} {dtype}: {error:.1e}")
    assert error == 0.0 if dtype == "fp32" else error < ROUNDING[dtype]


@pytest.mark.parametrize(("family", "load"), [("sdxl", load_sdxl), ("sd35", load_sd35)])
def test_alpha_reaches_diffusers(family: str, load: Callable[[Path], nn.Module], tmp_path: Path) -> None:
    out = exported(tmp_path, family, alpha=2.6, dtype="fp32")
    assert worst_error(load(out / "lora.safetensors"), adapter(family), scale=0.65) < ROUNDING["fp32"]


def test_diffusers_splits_flux_as_trained(tmp_path: Path) -> None:
    from diffusers import FluxPipeline

    trained = random_adapter(shapes("flux", wide=True), rank=2)
    del trained["single_transformer_blocks.0.attn.to_k.lora_A.weight"]  # a part without an adapter
    del trained["single_transformer_blocks.0.attn.to_k.lora_B.weight"]
    write_checkpoint(tmp_path / "lora" / "step-000001.safetensors", "flux", WIDE_FLUX, trained)
    export_checkpoint(tmp_path / "lora", ExportParams(dtype="fp32"), tmp_path / "export")
    loaded = FluxPipeline.lora_state_dict(str(tmp_path / "export" / "lora.safetensors"))
    zero = "transformer.single_transformer_blocks.0.attn.to_k.lora_"
    assert not loaded.pop(f"{zero}A.weight").any() and not loaded.pop(f"{zero}B.weight").any()
    assert loaded.keys() == {f"transformer.{name}" for name in trained}
    assert all(torch.equal(loaded[f"transformer.{name}"], tensor) for name, tensor in trained.items())


def test_diffusers_loads_nothing_of_the_kohya_file_of_sd35(tmp_path: Path) -> None:
    """Why there are two files; when this fails, one may do."""
    from diffusers import StableDiffusion3Pipeline

    out = exported(tmp_path, "sd35")
    loaded = StableDiffusion3Pipeline.lora_state_dict(str(out / "lora-kohya.safetensors"))
    assert not any(name.startswith("transformer.") for name in loaded)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("family", SMALL)
def test_kohya_files_hold_the_change_of_the_joined_weights(family: str, dtype: str, tmp_path: Path) -> None:
    """up @ down * alpha / rank, by hand, against the trained changes stacked as the original models stack them."""
    out = exported(tmp_path, family, alpha=3.0, dtype=dtype)
    dialect = load_keys(family).DIALECTS[-1]
    tensors = load_tensors(out / dialect.file_name("lora"))
    trained, dead = adapter(family), load_family(family).dead_modules(SMALL[family])
    for row in dialect.table(SMALL[family]):
        down, up, alpha = (tensors.pop(dialect.key(row.target) + end).float() for end in KOHYA)
        changes = [change(trained, p, 0.75) if p not in dead else torch.zeros(32, 32) for p in row.parts]
        true = torch.cat(changes)
        if row.target == "joint_blocks.1.context_block.adaLN_modulation.1":
            true = torch.cat(true.chunk(2)[::-1])
        assert alpha / len(down) == 0.75 and len(down) == 4 * len(row.parts)
        assert (alpha / len(down) * up @ down - true).norm() <= ROUNDING[dtype] * true.norm()
    assert not tensors


KOHYA = (".lora_down.weight", ".lora_up.weight", ".alpha")

# --- the gate ---

Tensors = dict[str, RawTensor]


def wrong_alpha(tensors: Tensors, key: str) -> None:
    tensors[key + ".alpha"] = from_float32(1.1 * to_float32(tensors[key + ".alpha"]), "fp32")


def misspelt_key(tensors: Tensors, key: str) -> None:
    for end in KOHYA:
        tensors[key.replace("attn1", "atn1") + end] = tensors.pop(key + end)


def zeroed_up(tensors: Tensors, key: str) -> None:
    up = tensors[key + ".lora_up.weight"]
    tensors[key + ".lora_up.weight"] = RawTensor(up.dtype, up.shape, bytes(len(up.data)))


def missing_module(tensors: Tensors, key: str) -> None:
    for end in KOHYA:
        del tensors[key + end]


def missing_tensor(tensors: Tensors, key: str) -> None:
    del tensors[key + ".lora_down.weight"]


def swapped_with_another(tensors: Tensors, key: str) -> None:
    end, other = ".lora_up.weight", key.replace("to_q", "to_k")
    tensors[key + end], tensors[other + end] = tensors[other + end], tensors[key + end]


@pytest.mark.parametrize(
    ("tamper", "named"),
    [
        (wrong_alpha, "mid_block.attentions.0.transformer_blocks.0.attn1.to_q would change its weight otherwise"),
        (misspelt_key, "no reader finds the key .*atn1_to_q.*Did you mean .*attn1_to_q"),
        (zeroed_up, "would not change mid_block.attentions.0.transformer_blocks.0.attn1.to_q"),
        (missing_module, "would not change mid_block.attentions.0.transformer_blocks.0.attn1.to_q"),
        (missing_tensor, "lacks .*attn1_to_q.lora_down.weight"),
        (swapped_with_another, "attn1.to_k would change its weight otherwise"),
    ],
)
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_tampered_file_fails_the_gate_and_leaves_nothing(
    tamper: Callable[[Tensors, str], None], named: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = export.make_tensors

    def tampered(*args: Any) -> Tensors:
        tensors = make(*args)
        tamper(tensors, "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q")
        return tensors

    monkeypatch.setattr(export, "make_tensors", tampered)
    with pytest.raises(ExportError, match=named):
        exported(tmp_path, "sdxl", dtype=dtype)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora"]


def test_a_failure_leaves_the_earlier_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = exported(tmp_path, "sdxl")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(export, "make_tensors", lambda *args: {})
    with pytest.raises(ExportError, match=r"would not change .* and \d+ more"):
        export_checkpoint(tmp_path / "lora", ExportParams(), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "lora"]


def test_both_files_of_a_family_pass_or_none_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = export.make_tensors
    monkeypatch.setattr(export, "make_tensors", lambda d, *args: make(d, *args) if not d.ending else {})
    with pytest.raises(ExportError, match=r"lora-kohya\.safetensors would not change"):
        exported(tmp_path, "sd35")
    assert not (tmp_path / "export").exists()


def with_up(family: str, module: str, value: float) -> dict[str, Tensor]:
    name = f"{module}.lora_B.weight"
    return {**adapter(family), name: torch.full_like(adapter(family)[name], value)}


def test_a_module_that_was_never_trained_is_named(tmp_path: Path) -> None:
    module = "mid_block.attentions.0.proj_in"
    checkpoint(tmp_path, "sdxl", tensors=with_up("sdxl", module, 0.0))
    with pytest.raises(ExportError, match=f"never trained, .*: {module}. Train more"):
        export_checkpoint(tmp_path, ExportParams(), tmp_path / "export")


def test_dead_modules_may_be_zero(tmp_path: Path) -> None:
    (dead,) = load_family("sd35").dead_modules(SMALL["sd35"])
    zero = {f"{dead}.lora_A.weight": torch.ones(4, 32), f"{dead}.lora_B.weight": torch.zeros(32, 4)}
    checkpoint(tmp_path / "lora", "sd35", tensors={**adapter("sd35"), **zero})
    export_checkpoint(tmp_path / "lora", ExportParams(), tmp_path / "export")


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (float("nan"), "fp32", "mid_block.attentions.0.proj_in holds NaN or infinity"),
        (1e6, "fp16", "middle_block_1_proj_in holds numbers that are not finite"),
        (1e-9, "fp16", "would not change mid_block.attentions.0.proj_in: missing, or zero in fp16"),
        (1e-7, "fp16", "mid_block.attentions.0.proj_in is too small for fp16"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(value: float, dtype: str, message: str, tmp_path: Path) -> None:
    tensors = with_up("sdxl", "mid_block.attentions.0.proj_in", value)
    checkpoint(tmp_path / "lora", "sdxl", tensors=tensors)
    with pytest.raises(ExportError, match=message):
        export_checkpoint(tmp_path / "lora", ExportParams(dtype=dtype), tmp_path / "export")  # type: ignore[arg-type]
    if value < 1:
        export_checkpoint(tmp_path / "lora", ExportParams(dtype="bf16"), tmp_path / "export")


def test_modules_without_a_name_are_refused(tmp_path: Path) -> None:
    extra = random_adapter({"time_embedding.linear_1": (32, 8)}, rank=4)
    checkpoint(tmp_path / "lora", "sdxl", tensors={**adapter("sdxl"), **extra})
    with pytest.raises(ExportError, match=r"time_embedding\.linear_1 was trained, but files for .* have no name"):
        export_checkpoint(tmp_path / "lora", ExportParams(), tmp_path / "export")


def test_other_adapters_are_refused(tmp_path: Path) -> None:
    extra = {"mid_block.attentions.0.proj_in.lora_magnitude_vector.weight": torch.ones(32)}
    checkpoint(tmp_path / "lora", "sdxl", tensors={**adapter("sdxl"), **extra})
    with pytest.raises(ExportError, match="is no part of a plain LoRA on unet"):
        export_checkpoint(tmp_path / "lora", ExportParams(), tmp_path / "export")


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "step-000001.safetensors")
    with pytest.raises(TrainError, match="no checkpoint"):
        export_checkpoint(tmp_path, ExportParams(), tmp_path / "export")


# --- which checkpoint ---


def test_choice_of_the_checkpoint(tmp_path: Path) -> None:
    tensors = random_adapter({"mid_block.attentions.0.proj_in": (4, 4)}, rank=2)
    for step, loss in {100: 0.3, 200: 0.1, 300: 0.1, 1000: 0.2}.items():
        write_checkpoint(tmp_path / f"step-{step:06d}.safetensors", "sdxl", {}, tensors, step=step, loss=loss)
    write_checkpoint(tmp_path / "ema-000300.safetensors", "sdxl", {}, tensors, step=300, ema=True)

    def chosen(**params: Any) -> str:
        return choose_checkpoint(tmp_path, ExportParams(**params)).name

    assert chosen() == "step-001000.safetensors"
    assert chosen(checkpoint="best") == "step-000300.safetensors"  # a tie goes to the later
    assert chosen(checkpoint=100) == "step-000100.safetensors"
    assert chosen(checkpoint="best", ema=True) == "ema-000300.safetensors"
    with pytest.raises(ExportError, match="is 150, but .* has last, best and the steps 100, 200, 300, 1000"):
        chosen(checkpoint=150)
    with pytest.raises(ExportError, match=r"no ema-001000\.safetensors.*train\.ema_decay"):
        chosen(ema=True)
    with pytest.raises(ExportError, match="holds no checkpoint"):
        choose_checkpoint(tmp_path / "nowhere", ExportParams())


def test_params_are_strict() -> None:
    good = {"checkpoint": 120, "ema": True, "name": "my-lora_2.0", "date": "2024-06-01", "tags": ["a", "b"]}
    assert validate(ExportParams, good, where="params.yaml", prefix="export").checkpoint == 120
    bad = [
        {"checkpoint": "lst"},
        {"checkpoint": -1},
        {"name": "a/b"},
        {"name": ".."},
        {"date": "June"},
        {"dtype": "f16"},
    ]
    for data in bad:
        with pytest.raises(ConfigError, match=rf"export\.{next(iter(data))}"):
            validate(ExportParams, data, where="params.yaml", prefix="export")


# --- what the files say ---


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


@pytest.mark.parametrize(
    ("dtype", "kind"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_tensors_are_as_readers_expect(dtype: str, kind: torch.dtype, tmp_path: Path) -> None:
    for name, tensor in load_tensors(exported(tmp_path, "flux", dtype=dtype) / "lora.safetensors").items():
        alpha = name.endswith(".alpha")
        assert tensor.is_contiguous() and tensor.ndim == (0 if alpha else 2)
        assert tensor.dtype == (torch.float32 if alpha else kind)


@pytest.mark.parametrize("family", SMALL)
def test_export_is_a_function_of_its_inputs(family: str, tmp_path: Path) -> None:
    first, second = exported(tmp_path / "a", family), exported(tmp_path / "elsewhere" / "b", family)
    files = {path.name: path.read_bytes() for path in first.iterdir()}
    assert files == {path.name: path.read_bytes() for path in second.iterdir()}
    assert not any(str(tmp_path).encode() in data for data in files.values())
    second_file = {"lora-kohya.safetensors"} if family == "sd35" else set()
    assert files.keys() == {"lora.safetensors", "workflow.json", "README.md"} | second_file


# Class -> (inputs that ComfyUI requires, number of outputs), read off its nodes.
NODES = {
    "CheckpointLoaderSimple": ({"ckpt_name"}, 3),
    "UNETLoader": ({"unet_name", "weight_dtype"}, 1),
    "DualCLIPLoader": ({"clip_name1", "clip_name2", "type"}, 1),
    "TripleCLIPLoader": ({"clip_name1", "clip_name2", "clip_name3"}, 1),
    "VAELoader": ({"vae_name"}, 1),
    "LoraLoaderModelOnly": ({"model", "lora_name", "strength_model"}, 1),
    "ModelSamplingSD3": ({"model", "shift"}, 1),
    "ModelSamplingFlux": ({"model", "max_shift", "base_shift", "width", "height"}, 1),
    "CLIPTextEncode": ({"clip", "text"}, 1),
    "FluxGuidance": ({"conditioning", "guidance"}, 1),
    "ConditioningZeroOut": ({"conditioning"}, 1),
    "EmptyLatentImage": ({"width", "height", "batch_size"}, 1),
    "EmptySD3LatentImage": ({"width", "height", "batch_size"}, 1),
    "KSampler": (
        set(["model", "seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative", "latent_image", "denoise"]),
        1,
    ),
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
    from eridiff.families import Scene, load_workflow

    config = {"guidance_embeds": False}
    scene = Scene(lora="l", base="b", prompt="p", size=(64, 64), denoiser_config=config, scheduler_config={})
    classes = {node["class_type"] for node in load_workflow("flux").workflow(scene).values()}
    assert "FluxGuidance" not in classes and "ModelSamplingFlux" not in classes


def test_model_card(tmp_path: Path) -> None:
    out = exported(tmp_path, "sd35", title="A | Fox", license="mit", description="Foxes in ink.", tags=("ink",))
    card = (out / "README.md").read_text()
    wanted = ["# A | Fox", "Foxes in ink.", "Trigger: `eridraw`", 'license: "mit"', '["lora", "ink"]']
    wanted += ["| `lora-kohya.safetensors` | Forge", "8 pictures.", "| 832 x 1216 | 3 |", "drawing (8), red fox (3)"]
    wanted += ["| optimizer.lr | 0.0001 |", "| lora.rank | 4 |", f"| buckets.parquet | `{'b' * 64}` |"]
    wanted += ["tiny-sd35 (sd35): the adapters after 120 steps"]
    assert [text for text in wanted if text not in card] == []


# --- the stage ---


def test_the_stage_starts_without_torch(tmp_path: Path) -> None:
    checkpoint(tmp_path / "data" / "lora", "sdxl")
    (tmp_path / "params.yaml").write_text("export: {checkpoint: best, dtype: bf16}\n")
    heavy = "{'torch', 'diffusers', 'transformers', 'peft', 'prefect'} & set(sys.modules)"
    code = f"import sys; from stages.export import main; main(); assert not ({heavy}), {heavy}"
    path = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={**os.environ, **path},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("export: lora.safetensors: ") and "bf16" in done.stdout
    assert (tmp_path / "data" / "export" / "lora.safetensors").exists()
