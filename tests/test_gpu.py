"""The same small bases on a CUDA device: `pytest -m gpu`. Run by hand where there is one."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from eridiff.caching.latents.vae import encode, prepare_vae
from eridiff.family import load_family
from eridiff.models.load import load_denoiser, load_text_encoders, load_vae
from eridiff.models.precision import choose_device, describe_backend
from eridiff.models.quantise import Storage, storage_of
from eridiff.params.latents import LatentParams
from eridiff.params.model import QuantisedArithmetic
from eridiff.params.sample import Prompt, SampleParams
from eridiff.sampling.draw import draw, embed_prompts
from eridiff.sampling.sample import load_drawing
from eridiff.training.run import Machine, prepare_run
from eridiff.training.train import Table, train
from tests import gpugoldens
from tests.support.bases import FAMILIES, source
from tests.support.training import params_of, random_set

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device as stages choose it, with what they allow there."""
    monkeypatch.setenv("ERIDIFF_DEVICE", "cuda")
    choose_device(allow_cpu=False)


def losses(family: str, place: Path, device: torch.device, changes: dict[str, Any]) -> Table:
    params = params_of(changes)
    facts = source(family).config("vae")
    run = prepare_run(params, load_family(family), source(family), facts, Machine(device=device))
    return train(run, random_set(family, place, params), place / "state", 50)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_training_on_cuda_is_training_on_a_cpu(family: str, tmp_path: Path) -> None:
    there = losses(family, tmp_path / "cuda", CUDA, {"deterministic": True})
    here = losses(family, tmp_path / "cpu", torch.device("cpu"), {})
    assert there["loss"] == pytest.approx(here["loss"], rel=2e-3)
    assert there["lr"] == here["lr"]


@pytest.mark.parametrize("family", FAMILIES)
def test_deterministic_training_gives_the_same_bits(family: str, tmp_path: Path) -> None:
    first, second = (losses(family, tmp_path / name, CUDA, {"deterministic": True}) for name in ("a", "b"))
    assert first == second


def test_attention_that_no_fused_kernel_takes_is_an_error() -> None:
    """Masked and in a format that only the plain one takes: slow and large, so not without a word."""
    device = choose_device(allow_cpu=False)
    assert "math" not in describe_backend(device, "bf16")["attention"]
    assert describe_backend(device, "bf16")["card"] == torch.cuda.get_device_name()
    query = torch.randn(1, 2, 8, 16, device=device, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"No available kernel|Invalid backend"):
        torch.nn.functional.scaled_dot_product_attention(query, query, query)


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_with_eight_bit_adamw_stays_finite(family: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    changes = {"precision": "bf16", "optimizer": {"name": "adamw8bit", "lr": 1e-3}}
    table = losses(family, tmp_path, CUDA, changes)
    assert all(0 < value < 100 for value in table["loss"])


@pytest.mark.parametrize(("precision", "near"), [("bf16", 0.05), ("fp16", 0.01)])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_near_fp32(family: str, precision: str, near: float, tmp_path: Path) -> None:
    half, full = (losses(family, tmp_path / p, CUDA, {"precision": p}) for p in (precision, "fp32"))
    assert half["loss"] == pytest.approx(full["loss"], rel=near)


@pytest.mark.filterwarnings("ignore:inner dimension .* is not aligned:UserWarning")  # of bitsandbytes: a small base
@pytest.mark.parametrize("kind", ["fp8", "int8", "nf4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_fp16_over_a_quantised_base(family: str, kind: str, tmp_path: Path) -> None:
    half, full = (losses(family, tmp_path / p, CUDA, {"precision": p, "quantise": kind}) for p in ("fp16", "fp32"))
    assert half["loss"] == pytest.approx(full["loss"], rel=0.01)
    assert half["loss_scale"] == [2.0**16] * 4


@pytest.mark.parametrize("family", FAMILIES)
def test_encoders_on_cuda_are_those_on_a_cpu(family: str) -> None:
    module, params = load_family(family), LatentParams(batch_size=2)
    pixels = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = {}
    for device in (CUDA, torch.device("cpu")):
        vae = prepare_vae(load_vae(module, source(family), torch.float32), params, device)
        encoders = load_text_encoders(module, source(family), torch.float32).to(device)
        with torch.inference_mode():
            texts = module.encode_text(encoders, ["a red fox", ""], 77)
        tensors = {**encode(vae, pixels.to(device), params), **texts}
        found[device.type] = {name: tensor.cpu() for name, tensor in tensors.items()}
    for name, tensor in found["cpu"].items():
        assert torch.allclose(found["cuda"][name], tensor, atol=2e-3, rtol=2e-3), name


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_are_drawn_on_cuda(family: str) -> None:
    module = load_family(family)
    prompt, tokens = Prompt(prompt="a red fox"), module.MAX_TOKENS[-1]
    params = SampleParams(steps=3, size=(64, 96), precision="fp32", max_tokens=tokens, prompts=(prompt,))
    embeds = embed_prompts(module, source(family), params, [prompt], CUDA)
    pipeline = load_drawing(params, module, source(family), CUDA)
    pictures = [draw(pipeline, params, prompt, embeds[prompt], seed) for seed in (0, 0, 1)]
    assert pictures[0].size == (64, 96)
    assert pictures[0].tobytes() == pictures[1].tobytes() != pictures[2].tobytes()


def test_memory_that_runs_out_on_cuda(tmp_path: Path) -> None:
    """With less memory than all activations take, training goes on with fewer, and to the same losses.

    In one small base that takes pictures so large that activations are most of its memory.
    """
    family = "flux"
    params = params_of({"steps": 2, "batch_size": 4})
    data = random_set(family, tmp_path, params, ((1024, 1024),))
    facts, module = source(family).config("vae"), load_family(family)
    prepared = prepare_run(params, module, source(family), facts, Machine(device=CUDA, fixed=False))
    again = copy.deepcopy(prepared.adapters)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    expected, _ = train(prepared, data, tmp_path / "plenty", 100)
    assert prepared.kept.described() == "none"
    activations, total = torch.cuda.max_memory_reserved() - before, torch.cuda.mem_get_info()[1]
    for name, tensor in prepared.adapters.items():
        tensor.data.copy_(again[name])
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((before + 0.8 * activations) / total)
    try:
        found, _ = train(prepared, data, tmp_path / "little", 100)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert prepared.kept.described() != "none"
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)


@pytest.mark.parametrize("kind", ["fp8", "int8", "nf4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_quantised_base_is_kept_on_cuda(family: str, kind: Any, tmp_path: Path) -> None:
    """Read back out of the store: every tensor as it was made from the base."""
    module, loaded = load_family(family), []
    storage = Storage(kind=kind, device=CUDA, store=tmp_path)
    for _ in range(2):
        denoiser = load_denoiser(module, source(family), torch.bfloat16, storage)
        loaded.append(denoiser.state_dict())
        assert {parameter.device.type for parameter in denoiser.parameters()} == {"cuda"}
    assert len(list(tmp_path.glob("bases/*.safetensors"))) == 1
    assert loaded[0].keys() == loaded[1].keys()
    assert all(torch.equal(tensor, loaded[1][name]) for name, tensor in loaded[0].items())


@pytest.mark.parametrize("rows", [1, 17, 77, 4096])
@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_products_in_eight_bits_on_cuda_are_those_of_a_cpu(kind: Any, rows: int) -> None:
    """Both passes: the tensor cores multiply the very numbers that the CPU does."""
    asked = QuantisedArithmetic(storage=kind, compute=kind)
    generator = torch.Generator().manual_seed(1)
    values, direction = (torch.randn(rows, side, generator=generator).bfloat16() for side in (512, 768))
    weight, bias = torch.randn(768, 512, generator=generator) * 0.02, torch.randn(768, generator=generator)
    found = []
    for device in (torch.device("cpu"), CUDA):
        model, linear = torch.nn.Module(), torch.nn.Linear(512, 768)
        linear.weight.data, linear.bias.data = weight.clone(), bias.clone()
        model.blocks = torch.nn.ModuleList([torch.nn.Sequential(linear.requires_grad_(False).bfloat16())])
        layer = storage_of(asked, device).settle_all(model).get_submodule("blocks.0.0")
        inputs = values.clone().to(device).requires_grad_()
        answer = layer(inputs)
        answer.backward(direction.to(device))
        assert inputs.grad is not None
        found.append((answer.detach().cpu().double(), inputs.grad.cpu().double()))
    for there, here in zip(*found, strict=True):
        assert (there - here).norm() < 5e-3 * here.norm()  # of bf16 at the end, and of sums in fewer bits


@pytest.mark.parametrize("kind", ["fp8", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_training_in_eight_bits_on_cuda_is_training_on_a_cpu(family: str, kind: str, tmp_path: Path) -> None:
    asked = {"precision": "bf16", "quantise": {"storage": kind, "compute": kind}}
    there = losses(family, tmp_path / "cuda", CUDA, asked)
    here = losses(family, tmp_path / "cpu", torch.device("cpu"), asked)
    assert there["loss"] == pytest.approx(here["loss"], rel=2e-2)


@pytest.mark.filterwarnings("ignore:inner dimension .* is not aligned:UserWarning")  # of bitsandbytes: a small base
@pytest.mark.parametrize("family", FAMILIES)
def test_results_of_cuda_are_those_of_their_versions(family: str, tmp_path: Path) -> None:
    """`python -m tests.gpugoldens` records them, and notes when and on what they passed."""
    if gpugoldens.read_record()[family]["versions"] != gpugoldens.numbers(family):
        pytest.skip("nothing is recorded at these versions: run `python -m tests.gpugoldens` on a CUDA device")
    assert gpugoldens.differing(family, gpugoldens.outs(family, tmp_path)) == []
