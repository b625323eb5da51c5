"""Frozen layers that multiply in eight bits: both passes against float64, the plain layer, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eridiff.core.errors import ConfigError
from eridiff.models import quantise
from eridiff.models.lora import add_adapter
from eridiff.models.quantise import RowScaledLinear, Storage, storage_of
from eridiff.models.quantised_product import FP8, quantise_tokens
from eridiff.params.model import QuantisedArithmetic
from eridiff.params.train import LoraParams
from eridiff.training.train import train
from tests.support import training

CPU, META = torch.device("cpu"), torch.device("meta")
KINDS = ("fp8", "int8")
COSINE = {"fp8": 0.999, "int8": 0.9998}  # of both passes with the plain layer, random weights and inputs
INSIDE, OUTSIDE = 64, 96


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def plain_layer(dtype: torch.dtype = torch.float32, sides: tuple[int, int] = (INSIDE, OUTSIDE)) -> nn.Linear:
    """A frozen layer whose rows differ in size, as a trained one's do."""
    linear = nn.Linear(*sides)
    linear.weight.data = normal(sides[1], sides[0], seed=1) * torch.logspace(-3, 0, sides[1])[:, None]
    linear.bias.data = normal(sides[1], seed=2) * 0.1
    return linear.requires_grad_(False).to(dtype)


def quantised(linear: nn.Linear, kind: Any, compute: bool = True) -> RowScaledLinear:
    """The layer as one of a stack, quantised as it is loaded."""
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Sequential(linear)])
    Storage(kind=kind, device=CPU, compute=compute).settle_all(model)
    layer = model.get_submodule("blocks.0.0")
    assert isinstance(layer, RowScaledLinear)
    return layer


def passes(layer: nn.Module, values: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's answer, and the gradient of its input where that of the answer is `direction`."""
    values = values.clone().requires_grad_()
    answer = layer(values)
    answer.backward(direction)
    assert values.grad is not None
    return answer.detach(), values.grad


def cosine(one: Tensor, other: Tensor) -> float:
    one, other = one.double().flatten(), other.double().flatten()
    return (one @ other / (one.norm() * other.norm())).item()


def numbers(stored: Tensor) -> Tensor:
    """What the eight bits stand for, float64."""
    return (stored.view(FP8) if stored.dtype == torch.uint8 else stored).double()


def rounded(rows: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Rows [M, K] by the definition, one by one: numbers and scales, float64."""
    largest = {"fp8": 448.0, "int8": 127.0}[kind]
    scales = torch.tensor([[max(float(value.abs()) for value in row) / largest] for row in rows])
    scaled = rows.float() / scales
    return (scaled.to(FP8).double() if kind == "fp8" else scaled.round().double()), scales.double()


def rounded_rows(rows: Tensor, kind: str) -> Tensor:
    """What rows are multiplied as; of few rows with what the first rounding left over, rounded as well."""
    numbers, scales = rounded(rows, kind)
    once = numbers * scales
    if len(rows) > 16:
        return once
    numbers, scales = rounded(rows - once.float(), kind)
    return once + numbers * scales


@pytest.mark.parametrize("rows", [(1,), (2, 8), (17,), (3, 7), (64,), (2, 40)])
@pytest.mark.parametrize("kind", KINDS)
def test_both_passes_by_the_definition(kind: str, rows: tuple[int, ...]) -> None:
    """Products in float64 of the very numbers that are multiplied; the number of rows needs to be no multiple."""
    layer = quantised(plain_layer(), kind)
    values, direction = normal(*rows, INSIDE, seed=3), normal(*rows, OUTSIDE, seed=4)
    answer, gradient = passes(layer, values, direction)
    weight, scale = numbers(layer.weight), layer.scale.double()
    expected = (rounded_rows(values.reshape(-1, INSIDE), kind) @ weight.T) * scale.T + layer.bias.double()
    assert torch.allclose(answer.double(), expected.reshape(answer.shape), rtol=1e-4, atol=1e-5)
    expected = rounded_rows((direction * layer.scale.ravel()).reshape(-1, OUTSIDE), kind) @ weight
    assert torch.allclose(gradient.double(), expected.reshape(gradient.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e-12, 1e12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_both_passes_are_near_the_plain_layers(kind: str, dtype: torch.dtype, size: float) -> None:
    """Gradients of any size: a loss is a mean over many numbers."""
    plain = plain_layer(dtype)
    layer = quantised(plain_layer(dtype), kind)
    values, direction = normal(50, INSIDE, seed=5, dtype=dtype), normal(50, OUTSIDE, seed=6, dtype=dtype) * size
    for ours, theirs in zip(passes(layer, values, direction), passes(plain, values, direction), strict=True):
        assert ours.dtype == dtype
        assert cosine(ours, theirs) > COSINE[kind]
        assert ours.norm().item() == pytest.approx(theirs.norm().item(), rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_few_rows_are_hardly_rounded(kind: str) -> None:
    """A modulation concerns every token: what is left of its error is that of the stored weight."""
    layer, stored = quantised(plain_layer(), kind), quantised(plain_layer(), kind, compute=False)
    for rows, nearest, farthest in ((16, 0.0, 0.002), (17, 0.002, 0.03)):
        values, direction = normal(rows, INSIDE, seed=13), normal(rows, OUTSIDE, seed=14)
        for ours, theirs in zip(passes(layer, values, direction), passes(stored, values, direction), strict=True):
            assert nearest < (ours - theirs).norm() / theirs.norm() < farthest


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_weight_of_the_forward_pass(kind: str) -> None:
    """Turned numbers are the stored ones, so a gradient that needs no rounding comes out exact."""
    layer = quantised(plain_layer(), kind)
    assert torch.equal(layer.turned, layer.weight.T)
    one = torch.zeros(OUTSIDE, OUTSIDE)
    one.fill_diagonal_(1.0)
    gradient = passes(layer, normal(OUTSIDE, INSIDE, seed=7), one)[1]
    assert torch.allclose(gradient.double(), numbers(layer.weight) * layer.scale.double(), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_zeros_and_what_is_not_finite(kind: str) -> None:
    """Zeros give the bias; one number that is none spoils its own row, and is never hidden."""
    layer = quantised(plain_layer(), kind)
    values = normal(4, INSIDE, seed=8)
    values[0], values[1, 3], values[2, 5] = 0.0, float("nan"), float("inf")
    answer = layer(values)
    assert torch.equal(answer[0], layer.bias)
    assert not answer[1].isfinite().any() and not answer[2].isfinite().any()
    assert answer[3].isfinite().all()


def test_token_scales_by_the_definition() -> None:
    values = torch.tensor([[127.0, -3.0], [0.0, 0.0], [-0.127, 0.001]])
    found, scale = quantise_tokens(values, "int8")
    assert found.tolist() == [[127, -3], [0, 0], [-127, 1]]
    assert scale[[0, 2], 0].tolist() == pytest.approx([1.0, 0.001])
    found, scale = quantise_tokens(values, "fp8")
    assert found[:2].float().tolist() == [[448, -11], [0, 0]]  # of -10.58


@pytest.mark.parametrize("sides", [(24, 64), (64, 24)])
@pytest.mark.parametrize("kind", KINDS)
def test_sides_that_tensor_cores_do_not_take_are_expanded(kind: str, sides: tuple[int, int]) -> None:
    asked, stored = (quantised(plain_layer(sides=sides), kind, compute) for compute in (True, False))
    values, direction = normal(5, sides[0], seed=9), normal(5, sides[1], seed=10)
    assert not asked.compute
    for ours, theirs in zip(passes(asked, values, direction), passes(stored, values, direction), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_is_that_of_storage_alone(kind: str) -> None:
    """So both read one file of the store; the turned numbers are made of it, and take as much again."""
    asked, stored = (quantised(plain_layer(), kind, compute) for compute in (True, False))
    expected, found = stored.state_dict(), asked.state_dict()
    assert found.keys() == expected.keys() == {"weight", "scale", "bias"}
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    again = RowScaledLinear.restored(nn.Linear(INSIDE, OUTSIDE), found, compute=True)
    assert torch.equal(again.turned, asked.turned) and again.turned.nbytes == again.weight.nbytes


@pytest.mark.parametrize("kind", KINDS)
def test_autograd_keeps_nothing_of_the_input(kind: str) -> None:
    layer = quantised(plain_layer(), kind)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.randn(50, INSIDE, requires_grad=True))
    held = {layer.turned.data_ptr(), layer.scale.data_ptr(), layer.ones.data_ptr()}
    assert {tensor.data_ptr() for tensor in kept} == held


@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_strides_can_be_traced_without_a_device(kind: Any, rows: int) -> None:
    """As the memory estimate does. Unlike a CPU, it wants what CUDA wants: rows that lie as such."""
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Sequential(nn.Linear(INSIDE, OUTSIDE, device="meta", dtype=torch.bfloat16))])
    layer = Storage(kind=kind, device=META, compute=True).settle_all(model).get_submodule("blocks.0.0")
    answer, gradient = passes(
        layer,
        torch.empty(1, INSIDE, rows, device=META, dtype=torch.bfloat16).mT,
        torch.empty(1, OUTSIDE, rows, device=META, dtype=torch.bfloat16).mT,
    )
    assert (answer.shape, gradient.shape) == ((1, rows, OUTSIDE), (1, rows, INSIDE))
    assert answer.dtype == gradient.dtype == torch.bfloat16


class Block(nn.Module):
    """Attention and a feed-forward, with a residual each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, values: Tensor) -> Tensor:
        normed = self.norm(values)
        heads = (linear(normed).unflatten(-1, (4, -1)).transpose(1, 2) for linear in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(*heads)
        values = values + self.out(mixed.transpose(1, 2).flatten(2))
        return values + self.down(nn.functional.gelu(self.up(self.norm(values))))


def transformer(count: int = 3) -> nn.Module:
    """Three blocks with random weights."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.blocks = nn.ModuleList(Block(64) for _ in range(count))
    model.forward = lambda values: [values := block(values) for block in model.blocks][-1]
    return model.requires_grad_(False)


def adapter_gradients(storage: Storage, compiled: str | None = None) -> dict[str, Tensor]:
    """Of every adapter of a small transformer, one step from a random adapter."""
    model = storage.settle_all(transformer())
    names = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    adapters = add_adapter(model, LoraParams(rank=4, alpha=4.0), names, seed=3)
    for number, (name, tensor) in enumerate(adapters.items()):
        if ".lora_B." in name:
            tensor.data = normal(*tensor.shape, seed=number) * 0.02
    if compiled:
        for block in model.blocks:
            block.compile(fullgraph=True, dynamic=False, backend=compiled)
    values, target = normal(2, 50, 64, seed=11), normal(2, 50, 64, seed=12)
    (model(values) - target).square().mean().backward()
    return {name: tensor.grad for name, tensor in adapters.items() if tensor.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_adapters(kind: Any) -> None:
    """Every adapter that peft puts around such layers, against the plain base."""
    plain = adapter_gradients(Storage(kind=None, device=CPU))
    found = adapter_gradients(Storage(kind=kind, device=CPU, compute=True))
    assert found.keys() == plain.keys() and len(found) == 3 * 6 * 2
    assert min(cosine(found[name], plain[name]) for name in plain) > {"fp8": 0.99, "int8": 0.999}[kind]


@pytest.mark.parametrize(
    ("kind", "capability", "way"),
    [
        ("fp8", (8, 6), "has 8.6. Take train.quantise: {storage: int8, compute: int8}, or fp8, which stores in fp8"),
        ("fp8", (7, 0), "has 7.0. Take train.quantise: fp8, which stores in fp8"),
        ("int8", (7, 0), "has 7.0. Take train.quantise: int8, which stores in int8"),
    ],
)
def test_older_cards_are_refused_by_name(
    kind: Any, capability: tuple[int, int], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantise.torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(quantise.torch.cuda, "get_device_name", lambda _: "Some Card")
    with pytest.raises(ConfigError) as caught:
        storage_of(QuantisedArithmetic(storage=kind, compute=kind), torch.device("cuda"))
    assert f"compute: {kind}, which needs compute capability" in str(caught.value)
    assert f"but Some Card {way}" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "capability"), [("fp8", (8, 9)), ("fp8", (12, 0)), ("int8", (7, 5)), ("int8", (8, 6))]
)
def test_cards_that_can(kind: Any, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise.torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(quantise.torch.cuda, "get_device_name", lambda _: "Some Card")
    assert storage_of(QuantisedArithmetic(storage=kind, compute=kind), torch.device("cuda")).compute


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_a_training_is_near_that_of_storage_alone(kind: str, tmp_path: Path) -> None:
    """Every block layer of a small base multiplies in eight bits, and what is learned in four steps is the same."""
    losses = []
    for number, way in enumerate((kind, {"storage": kind, "compute": kind})):
        params = training.params_of({"precision": "bf16", "quantise": way})
        run = training.start("flux", params)
        layers = [module for module in run.denoiser.modules() if isinstance(module, RowScaledLinear)]
        assert layers and {layer.compute for layer in layers} == {isinstance(way, dict)}
        data = training.random_set("flux", tmp_path / f"data-{number}", params)
        losses.append(train(run, data, tmp_path / f"state-{number}", 100)[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.01) and losses[1] != losses[0]
