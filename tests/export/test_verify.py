"""What the export refuses: tampered files, adapters that were never moved, numbers that do not fit."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from eridiff.core.errors import DataError, ExportError
from eridiff.export import export
from eridiff.export.export import export_checkpoint
from eridiff.family import load_family
from eridiff.formats.floats import from_float32, to_float32
from eridiff.formats.safetensors import RawTensor
from eridiff.params.export import ExportParams
from tests.support.adapters import random_adapter
from tests.support.exports import KOHYA, SMALL, adapter, checkpoint, exported

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
        (missing_tensor, "is missing .*attn1_to_q.lora_down.weight"),
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
    with pytest.raises(ExportError, match=rf"never trained, .*: {re.escape(module)}\. Train more"):
        export_checkpoint(tmp_path, ExportParams(), tmp_path / "export")


def test_dead_modules_may_be_zero(tmp_path: Path) -> None:
    (unused,) = load_family("sd35").unused_modules(SMALL["sd35"])
    zero = {f"{unused}.lora_A.weight": torch.ones(4, 32), f"{unused}.lora_B.weight": torch.zeros(32, 4)}
    checkpoint(tmp_path / "lora", "sd35", tensors={**adapter("sd35"), **zero})
    export_checkpoint(tmp_path / "lora", ExportParams(), tmp_path / "export")


def test_dead_modules_that_moved_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (unused,) = load_family("sd35").unused_modules(SMALL["sd35"])
    moved = random_adapter({unused: (32, 32)}, rank=4)
    checkpoint(tmp_path / "lora", "sd35", tensors={**adapter("sd35"), **moved})
    make = export.make_tensors
    monkeypatch.setattr(
        export, "make_tensors", lambda *args: {name: t for name, t in make(*args).items() if unused not in name}
    )
    with pytest.raises(ExportError, match=f"would not change {re.escape(unused)}"):
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
    with pytest.raises(DataError, match=r"step-000001\.safetensors .* carries no checksum, and dvc\.lock does not"):
        export_checkpoint(tmp_path, ExportParams(), tmp_path / "export")
