"""Quantised bases: what is stored, how far it is from the base, and that gradients are those of what is stored."""

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from accelerate import init_empty_weights
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from eridiff.family import load_family
from eridiff.models.load import load_denoiser, load_text_encoders
from eridiff.models.lora import add_adapter, target_modules
from eridiff.models.quantise import RowScaledLinear, Storage, expand_rows, quantise_rows
from eridiff.params.train import LoraParams
from eridiff.sampling.sample import draw_samples
from eridiff.training.train import train
from tests.conftest import ROOT
from tests.sampling import test_sample as test_sample
from tests.support import training
from tests.support.bases import source
from tests.support.originals import write_header

CPU = torch.device("cpu")
KINDS = ("fp8", "int8", "nf4")
ERROR = {"fp8": (0.02, 0.03), "int8": (0.003, 0.012), "nf4": (0.08, 0.11)}  # of a weight, relative (Frobenius)
BITS = {"fp8": 8 + 32 / 64, "int8": 8 + 32 / 64, "nf4": 4 + 8 / 64}  # a weight of 64 inputs, with its scale


def stack(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Two equal blocks and a last layer."""
    torch.manual_seed(0)
    model = nn.Module()
    model.blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)) for _ in range(2))
    model.out = nn.Linear(64, 8)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)  # as trained weights are spread
    return model.requires_grad_(False).to(dtype)


def quantise(model: nn.Module, kind: Any) -> nn.Module:
    """All of a model."""
    return Storage(kind=kind, device=CPU).settle_all(model)


def stored_weight(layer: nn.Module) -> Tensor:
    """What a quantised layer's weight stands for, by the library's own function or the definition, fp32."""
    weight: Any = layer.weight
    if isinstance(layer, RowScaledLinear):
        return (weight.view(torch.float8_e4m3fn) if weight.dtype == torch.uint8 else weight).float() * layer.scale
    return bnb.functional.dequantize_4bit(weight.data, weight.quant_state).float()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_are_quantised_and_nothing_else(kind: Any, dtype: torch.dtype) -> None:
    plain, model = stack(dtype), quantise(stack(dtype), kind)
    for name in ("blocks.0.0", "blocks.0.2", "blocks.1.0", "blocks.1.2"):
        before, layer = plain.get_submodule(name), model.get_submodule(name)
        assert isinstance(layer, nn.Linear) and type(layer) is not nn.Linear
        assert layer.weight.dtype == (torch.int8 if kind == "int8" else torch.uint8)
        assert not layer.weight.requires_grad
        assert (layer.in_features, layer.out_features) == (before.in_features, before.out_features)
        low, high = ERROR[kind]
        weight = before.weight.float()
        assert low < (stored_weight(layer) - weight).norm() / weight.norm() < high
        assert layer.bias is not None and torch.equal(layer.bias, before.bias)
    assert torch.equal(model.out.weight, plain.out.weight)


def test_rows_by_the_definition() -> None:
    """Whole numbers come back whole; a row of zeros stays one; rows have scales of their own."""
    weight = torch.tensor([[127.0, -3.0, 64.0], [0.0, 0.0, 0.0], [0.0127, 0.0001, -0.0127]])
    stored, scale = quantise_rows(weight, "int8")
    assert stored.tolist() == [[127, -3, 64], [0, 0, 0], [127, 1, -127]]
    assert torch.allclose(expand_rows(stored, scale, torch.float32), weight, atol=1e-7)
    stored, scale = quantise_rows(weight, "fp8")
    numbers = stored.view(torch.float8_e4m3fn).float()
    assert numbers[:2].tolist() == [[448, -11, 224], [0, 0, 0]]  # of -10.58 and 225.8
    assert (scale.ravel() * 448)[[0, 2]].tolist() == pytest.approx([127, 0.0127])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_product_and_gradient_are_those_of_the_stored_weight(kind: Any, dtype: torch.dtype) -> None:
    layer = quantise(stack(dtype), kind).get_submodule("blocks.0.0")
    values = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours, theirs = values.clone().requires_grad_(), values.double().requires_grad_()
    answer = layer(ours)
    expected = theirs @ stored_weight(layer).double().T + layer.bias.double()
    direction = torch.randn(answer.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    answer.backward(direction)
    expected.backward(direction.double())
    assert answer.dtype == dtype and ours.grad is not None and theirs.grad is not None
    near = 1e-5 if dtype == torch.float32 else 1e-2
    assert (answer.double() - expected).norm() < near * expected.norm()
    assert (ours.grad.double() - theirs.grad).norm() < near * theirs.grad.norm()


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_small_rows_keep_their_digits_in_fp16(kind: Any) -> None:
    """Their scales are below what fp16 holds with all its digits, or at all."""
    rows = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)) * torch.tensor([[1e-6], [1e-4], [1.0]])
    stored, scale = quantise_rows(rows, kind)
    expected = expand_rows(stored, scale, torch.float32).half()
    assert torch.equal(expand_rows(stored, scale, torch.float16), expected)
    assert scale[0] < 6e-8 or kind == "int8"


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_autograd_keeps_no_expanded_weight(kind: Any) -> None:
    """Else a training would hold the base in full between the two passes."""
    layer = quantise(stack(), kind).get_submodule("blocks.0.0")
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.randn(2, 64, requires_grad=True))
    assert sum(tensor.nbytes for tensor in kept) == layer.weight.nbytes + layer.scale.nbytes


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_changes_nothing_and_layers_lose_their_old_weights(kind: Any) -> None:
    assert all(type(module) is not RowScaledLinear for module in quantise(stack(), None).modules())
    plain = stack()
    old = [module for name, module in plain.named_modules() if name in ("blocks.0.0", "blocks.1.2")]
    quantise(plain, kind)
    assert [module.weight.numel() for module in old] == [0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_takes(kind: Any) -> None:
    """Bits a weight, scales counted."""
    layer = quantise(stack(), kind).get_submodule("blocks.0.0")
    weight: Any = layer.weight
    state = weight.quant_state.absmax.nbytes if kind == "nf4" else layer.scale.nbytes
    assert 8 * (weight.nbytes + state) / (64 * 128) == BITS[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["flux", "sd35", "sdxl"])
@pytest.mark.slow
def test_adapters_are_those_of_the_plain_base(kind: Any, family: str) -> None:
    """Same modules, same first values, in fp32; every one gets a gradient."""
    module = load_family(family)
    plain = copy.deepcopy(training.base_denoiser(family))
    model = quantise(copy.deepcopy(plain), kind)
    lora = LoraParams(rank=4, alpha=4.0, targets="all-linear" if "all-linear" in module.TARGET_SETS else "attention")
    unused = module.unused_modules(source(family).config(module.DENOISER))
    names = target_modules(plain, module.TARGET_SETS, lora.targets, unused)
    assert target_modules(model, module.TARGET_SETS, lora.targets, unused) == names
    expected, found = (add_adapter(one, lora, names, seed=3) for one in (plain, model))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) and found[name].dtype == torch.float32 for name in expected)


def expanded(plain: nn.Module, kind: Any) -> nn.Module:
    """The plain model with what a quantised one's weights stand for as its weights."""
    model = quantise(copy.deepcopy(plain), kind)
    for name, layer in model.named_modules():
        before = plain.get_submodule(name)
        if isinstance(layer, nn.Linear) and type(layer) is not type(before):
            before.weight.data = stored_weight(layer).to(before.weight.dtype)
    return plain


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["flux", "sd35", "sdxl"])
@pytest.mark.slow
def test_a_training_is_that_on_the_expanded_weights(
    kind: Any, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients of the first step and the losses of six; and they are not the plain base's."""
    twin = expanded(copy.deepcopy(training.base_denoiser(family)), kind)
    losses, gradients = [], []
    for number, (base, quantised) in enumerate(((None, None), (twin, None), (None, kind))):
        with monkeypatch.context() as patch:
            if base is not None:
                patch.setattr(training, "base_denoiser", lambda _, base=base: base)
            run = training.start(family, params := training.params_of({"quantise": quantised, "steps": 6}))
        data = training.random_set(family, tmp_path / f"data-{number}", params)
        training.do_step(run, data.batch([0, 1], 0, 1), 1)
        gradients.append(torch.cat([t.grad.flatten() for t in run.adapters.values() if t.grad is not None]))
        for tensor in run.adapters.values():
            tensor.grad = None
        table, _ = train(run, data, tmp_path / f"state-{number}", 100)
        losses.append(table["loss"])
    plain, theirs, ours = gradients
    assert (ours - theirs).norm() < 1e-4 * theirs.norm() < (ours - plain).norm()
    assert losses[2] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_text_of_quantised_encoders(kind: Any) -> None:
    """As that of the expanded weights. T5's `wo` stays: its code casts what goes in to that weight's format."""
    family = load_family("flux")
    plain, encoders = (load_text_encoders(family, source("flux"), torch.float32) for _ in range(2))
    for encoder in encoders.encoders.values():
        quantise(encoder, kind)
    t5 = encoders.encoders["text_encoder_2"]
    feed = t5.get_submodule("encoder.block.0.layer.1.DenseReluDense")
    assert type(feed.get_submodule("wo")) is nn.Linear and type(feed.get_submodule("wi_0")) is not nn.Linear
    tokens = family.MAX_TOKENS[-1]
    for encoder in plain.encoders.values():
        expanded(encoder, kind)
    with torch.no_grad():
        expected, found = (family.encode_text(one, ["a red fox"], tokens) for one in (plain, encoders))
    for name in expected:
        assert (found[name] - expected[name]).norm() < 1e-4 * expected[name].norm()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_samples_of_a_quantised_pipeline(kind: Any, tmp_path: Path) -> None:
    """The checkpoint loads into it and moves its pictures, about as far as the plain pipeline's."""
    folder = tmp_path / "lora"
    folder.mkdir()
    test_sample.checkpoint(folder, 5, 0.5)
    moved = []
    for quantised in (None, kind):
        out = tmp_path / str(quantised)
        chosen = test_sample.params(quantise=quantised)
        draw_samples(test_sample.job_of(chosen), folder, out)
        moved.append(json.loads((out / "metrics.json").read_text())["moved_from_base"]["last x 1"])
    assert 0 < moved[1] == pytest.approx(moved[0], rel=0.3)
    pictures = [(tmp_path / str(quantised) / "images/00-base.png").read_bytes() for quantised in (None, kind)]
    assert pictures[0] != pictures[1]


@pytest.mark.parametrize("kind", [None, *KINDS])
@pytest.mark.parametrize("family", ["flux", "sd35", "sdxl"])
@pytest.mark.slow
def test_a_denoiser_is_quantised_as_it_is_loaded(kind: Any, family: str) -> None:
    """Tensor by tensor out of its folder: the same as one that is loaded whole by diffusers, then quantised."""
    module = load_family(family)
    whole = quantise(load_denoiser(module, source(family), torch.bfloat16), kind)
    storage = Storage(kind=kind, device=CPU)
    streamed = load_denoiser(module, source(family), torch.bfloat16, storage)
    expected, found = whole.state_dict(), streamed.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in streamed.parameters())
    assert not streamed.training


LOAD = """
import json, sys, threading, time
from pathlib import Path
import torch
from eridiff.models.assemble import assemble
from eridiff.weights.files import Weights
from eridiff.weights.component_tensors import FolderTensors
from eridiff.models.quantise import Storage
from eridiff.formats.safetensors import TensorFile
import bitsandbytes
from diffusers import FluxTransformer2DModel

def resident():  # bytes of this process that are no file's
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) * 1024

kind, config, path = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
storage = Storage(kind=kind, device=torch.device("cpu"))
tensors = FolderTensors(component="transformer", weights=Weights((TensorFile(path),)))
peak = before = resident()
done = threading.Event()

def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, resident())

watcher = threading.Thread(target=watch)
watcher.start()
model = assemble(FluxTransformer2DModel, config, tensors, torch.bfloat16, storage)
done.set()
watcher.join()
print(peak - before, sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())))
"""


@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["fp8", "nf4"])
def test_memory_while_it_is_loaded(kind: Any, tmp_path: Path) -> None:
    """Besides the quantised model no more than a few tensors: less than the base would take in bf16."""
    config = {**source("flux").config("transformer"), "num_attention_heads": 8, "attention_head_dim": 64}
    config |= {"num_layers": 1, "num_single_layers": 20, "axes_dims_rope": [16, 24, 24]}
    with init_empty_weights():
        model = FluxTransformer2DModel.from_config(config)
    shapes = {name: ("F32", tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    path = write_header(tmp_path / "model.safetensors", shapes)
    command = [sys.executable, "-c", LOAD, kind, json.dumps(config), str(path)]
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}  # what is freed goes back at once, and is not counted
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env, timeout=300)
    peak, kept = map(int, ran.stdout.splitlines()[-1].split())  # after the lines of progress, if it took long
    largest = 4 * max(math.prod(shape) for _, shape in shapes.values())
    assert kept < peak < kept + 8 * largest < path.stat().st_size / 2
