"""The exported files against diffusers' own loaders, and the choice of the checkpoint."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from eridiff.core.config import validate
from eridiff.core.errors import ConfigError, DataError, ExportError
from eridiff.export.export import choose_checkpoint, export_checkpoint
from eridiff.family import load_family, load_keys
from eridiff.formats.seals import MARK
from eridiff.params.export import ExportParams
from eridiff.sampling.sample import Column, with_lora
from tests.support.adapters import change, random_adapter, write_checkpoint
from tests.support.exports import KOHYA, ROUNDING, SMALL, WIDE_FLUX, adapter, checkpoint, denoiser, exported, shapes
from tests.support.tensors import load_tensors


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


@pytest.mark.slow
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
    trained, unused = adapter(family), load_family(family).unused_modules(SMALL[family])
    for row in dialect.table(SMALL[family]):
        down, up, alpha = (tensors.pop(dialect.key(row.target) + end).float() for end in KOHYA)
        changes = [change(trained, p, 0.75) if p not in unused else torch.zeros(32, 32) for p in row.slices]
        true = torch.cat(changes)
        if row.target == "joint_blocks.1.context_block.adaLN_modulation.1":
            true = torch.cat(true.chunk(2)[::-1])
        assert alpha / len(down) == 0.75 and len(down) == 4 * len(row.slices)
        assert (alpha / len(down) * up @ down - true).norm() <= ROUNDING[dtype] * true.norm()
    assert not tensors


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
    with pytest.raises(ExportError, match=r"is 150, but .* has last, best and the steps 100, 200, 300, 1000"):
        chosen(checkpoint=150)
    with pytest.raises(ExportError, match=r"no ema-001000\.safetensors.*train\.ema_decay"):
        chosen(ema=True)
    with pytest.raises(ExportError, match="holds no checkpoint"):
        choose_checkpoint(tmp_path / "nowhere", ExportParams())


def test_a_flipped_bit_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    """In its tensors, its lineage, its mark: export and sample read no damaged LoRA."""
    tensors = random_adapter({"mid_block.attentions.0.proj_in": (4, 4)}, rank=2)
    path = write_checkpoint(tmp_path / "step-000100.safetensors", "sdxl", {}, tensors, step=100, loss=0.3)
    data, pipeline = path.read_bytes(), Mock(get_list_adapters=dict)
    with_lora(pipeline, Column(name="a", label="a", checkpoint=path, strength=1.0))
    assert pipeline.load_lora_weights.call_count == 1
    for place in {*range(0, len(data), 13), *range(data.index(MARK), data.index(MARK) + len(MARK))}:
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        with pytest.raises(DataError, match=r"step-000100\.safetensors is damaged: .* Run `eridiff store repair`"):
            export_checkpoint(tmp_path, ExportParams(), tmp_path / "out")
        with pytest.raises(DataError, match=r"step-000100\.safetensors is damaged: .* Run `eridiff store repair`"):
            with_lora(pipeline, Column(name="a", label="a", checkpoint=path, strength=1.0))
    assert pipeline.load_lora_weights.call_count == 1
    assert not (tmp_path / "out").exists()


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


def test_the_stage_starts_without_torch(tmp_path: Path) -> None:
    checkpoint(tmp_path / "data" / "lora", "sdxl")
    (tmp_path / "eridiff" / "families").mkdir(parents=True)  # a checkout, where bases are looked for
    (tmp_path / "params.yaml").write_text("export: {checkpoint: best, dtype: bf16}\n")
    (tmp_path / "data" / "choices.json").write_text('{"export.ema": false}')
    heavy = "{'torch', 'diffusers', 'transformers', 'peft', 'prefect'} & set(sys.modules)"
    code = f"import sys; from stages.export import main; main(); assert not ({heavy}), {heavy}"
    path = {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={**os.environ, **path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("export: lora.safetensors: ") and "bf16" in done.stdout
    assert (tmp_path / "data" / "export" / "lora.safetensors").exists()
