"""A frozen base in eight or four bits: its layers' weights are stored small and computed with in the base's format;
or, asked for by params, in their own eight bits (eridiff/models/quantised_product.py).

Quantised are the linear layers of the repeated blocks, where nearly all weights are; embeddings and the last layer stay
as they are. A layer is quantised on the device as soon as its weight has come there (eridiff/models/assemble.py),
before the next is read.

    fp8   float8_e4m3fn with one scale a row: half of bf16; 2.6 % rounding error a weight
    int8  whole numbers with one scale a row: half of bf16; 0.5 to 1 %
    nf4   bitsandbytes' four bits with an eight-bit scale for every 64 weights: 0.26 of bf16; 9 to 10 %

Legend: O I outputs and inputs of a layer.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from eridiff.core.errors import ConfigError
from eridiff.models.quantised_product import FP8, LARGEST, fits, quantised_product
from eridiff.params.model import Quantised, QuantisedArithmetic, Stored

INSIDE_A_STACK = re.compile(r"\.\d+\.")  # in a module's path: part of one of many equal blocks
FIRST_CARDS = {"fp8": (8, 9), "int8": (7, 5)}  # compute capability with tensor cores for the format: Ada, Turing


class RowScaledLinear(nn.Linear):
    """A frozen linear layer whose weight [O, I] is stored in eight bits, with a scale for each row.

    Both ways the weight is expanded to the input's format for as long as one product takes: autograd keeps the stored
    one, so that training, too, holds no expanded weights. With `compute` nothing is expanded, and the weight is held
    transposed as well: the same numbers, which the state_dict leaves out.
    """

    scale: Tensor
    turned: Tensor  # [I, O], with `compute` alone, as is `ones` [I, 1]
    ones: Tensor

    def __init__(self, linear: nn.Linear, stored: Tensor, scale: Tensor, compute: bool = False) -> None:
        """linear: whose bias is taken over. stored [O, I] and scale [O, 1]: of quantise_rows.

        compute: also multiply in eight bits. Sides that the tensor cores do not take are expanded all the same.
        """
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.register_buffer("scale", scale)
        self.compute = compute and fits(self.in_features, self.out_features)
        if self.compute:
            self.register_buffer("turned", stored.t().contiguous(), persistent=False)
            self.register_buffer("ones", scale.new_ones(self.in_features, 1), persistent=False)
        self.bias = linear.bias

    @classmethod
    def restored(cls, linear: nn.Linear, tensors: dict[str, Tensor], compute: bool = False) -> "RowScaledLinear":
        """A layer out of its own tensors."""
        _set_bias(linear, tensors)
        return cls(linear, tensors["weight"], tensors["scale"], compute)

    def forward(self, input: Tensor) -> Tensor:
        """[..., I] => [..., O], in the input's format."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        if self.compute:
            return quantised_product(input, self.weight, self.turned, self.scale, self.ones, bias)
        product: Tensor = _ExpandedProduct.apply(input, self.weight, self.scale, bias)  # type: ignore[no-untyped-call]
        return product


class _ExpandedProduct(torch.autograd.Function):
    """input times the transposed expanded weight, plus the bias; only the input gets a gradient."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, stored: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(stored, scale)
        return functional.linear(input, expand_rows(stored, scale, input.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        stored, scale = ctx.saved_tensors
        (gradient,) = gradients
        return gradient @ expand_rows(stored, scale, gradient.dtype, again=True), None, None, None


def quantise_rows(weight: Tensor, kind: Literal["fp8", "int8"]) -> tuple[Tensor, Tensor]:
    """weight [O, I] => stored [O, I], scale [O, 1] in fp32: each row's largest number becomes the format's largest.

    fp8 is stored as the bytes (uint8) that it is: peft gives adapters the format of a weight that is a float.
    """
    rows = weight.detach().float()
    scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / LARGEST[kind]
    scaled = rows / scale
    return scaled.round().to(torch.int8) if kind == "int8" else scaled.to(FP8).view(torch.uint8), scale


def expand_rows(stored: Tensor, scale: Tensor, dtype: torch.dtype, again: bool = False) -> Tensor:
    """The weight [O, I] in a format to compute with. Scales are too small for fp16, so that product is made in fp32.

    again: for the second time, with the factors in the other order. In a compiled block the two would be one node of
    the graph otherwise, which torch's partitioner keeps from the forward to the backward pass: the base in full.
    """
    numbers = (stored.view(FP8) if stored.dtype == torch.uint8 else stored).to(dtype)
    factors = scale if dtype == torch.float16 else scale.to(dtype)
    return (factors * numbers if again else numbers * factors).to(dtype)


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Where a model goes as it is loaded, and in how many bits; kind None: as it is."""

    kind: Stored | None
    device: torch.device
    store: Path | None = None  # whose folder `bases` keeps what was quantised
    compute: bool = False  # whether it is also multiplied in eight bits; what is kept in the store is the same

    def settle(self, model: nn.Module, name: str) -> None:
        """A tensor of the model has come to the device: quantise its layer, if it is the weight of one that is."""
        path, _, last = name.rpartition(".")
        if self.kind is not None and last == "weight" and is_quantised(model, path):
            parent, _, place = path.rpartition(".")
            linear = model.get_submodule(path)
            setattr(model.get_submodule(parent), place, self._quantised(linear))

    def quantised_paths(self, model: nn.Module) -> list[str]:
        """Modules of a plain model that are quantised."""
        return [path for path, _ in model.named_modules() if is_quantised(model, path)]

    def restore(self, model: nn.Module, path: str, tensors: dict[str, Tensor]) -> None:
        """Put a quantised layer, whose tensors were kept and are on the device, in the place of a plain one."""
        assert self.kind is not None
        parent, _, place = path.rpartition(".")
        linear: Any = model.get_submodule(path)
        made = (
            _restored_four_bits(linear, tensors)
            if self.kind == "nf4"
            else RowScaledLinear.restored(linear, tensors, self.compute)
        )
        setattr(model.get_submodule(parent), place, made)

    def settle_all(self, model: nn.Module) -> nn.Module:
        """The model on the device, with the layers that are still plain quantised on the way."""
        for path, _ in list(model.named_modules()):
            self.settle(model, f"{path}.weight")
        return model.to(self.device)

    def _quantised(self, linear: Any) -> nn.Linear:
        """One layer's quantised twin on the device; the layer itself loses its weight. A bias may come later."""
        weight = linear.weight.detach().to(self.device)
        if linear.bias is not None and not linear.bias.is_meta:
            linear.bias = nn.Parameter(linear.bias.detach().to(self.device), requires_grad=False)
        linear.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        if self.kind == "nf4":
            return _four_bits(linear, weight)
        assert self.kind is not None
        return RowScaledLinear(linear, *quantise_rows(weight, self.kind), self.compute)


def storage_of(quantise: Quantised | None, device: torch.device, store: Path | None = None) -> Storage:
    """Where a base goes, and in how many bits, as params ask for it.

    Raises: ConfigError where the card has no products of the format that is asked for; nothing falls back.
    """
    if not isinstance(quantise, QuantisedArithmetic):
        return Storage(kind=quantise, device=device, store=store)
    if device.type == "cuda":
        card, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        _refuse_older_card(quantise.compute, card, capability)
    return Storage(kind=quantise.storage, device=device, store=store, compute=True)


def _refuse_older_card(compute: Literal["fp8", "int8"], card: str, capability: tuple[int, int]) -> None:
    """Raises: ConfigError for a card without tensor cores for the format, with what it can do."""
    if capability >= FIRST_CARDS[compute]:
        return
    needed, found = (".".join(map(str, version)) for version in (FIRST_CARDS[compute], capability))
    other = "{storage: int8, compute: int8}, or " if capability >= FIRST_CARDS["int8"] else ""
    raise ConfigError(
        f"params.yaml: train.quantise asks for compute: {compute}, which needs compute capability {needed} or later, "
        f"but {card} has {found}. Take train.quantise: {other}{compute}, which stores in {compute} and computes in "
        "train.precision."
    )


def is_quantised(model: nn.Module, path: str) -> bool:
    """Whether a module is a plain linear layer of one of the repeated blocks.

    Left alone are the layers that transformers keeps in fp32: T5's code casts what goes in to their weight's format.
    """
    kept = getattr(model, "_keep_in_fp32_modules", None) or ()
    inside = INSIDE_A_STACK.search(f"{path}.") and path.rpartition(".")[2] not in kept
    return bool(inside) and type(model.get_submodule(path)) is nn.Linear


def _four_bits(linear: nn.Linear, weight: Tensor) -> nn.Linear:
    """bitsandbytes' layer around a weight [O, I]."""
    import bitsandbytes as bnb

    made = _empty_four_bits(linear, weight.dtype)
    made.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4").to(weight.device)
    four_bits: nn.Linear = made
    return four_bits


def _restored_four_bits(linear: nn.Linear, tensors: dict[str, Tensor]) -> nn.Linear:
    """bitsandbytes' layer out of its packed weight and the numbers that expand it."""
    import bitsandbytes as bnb

    _set_bias(linear, tensors)
    packed = tensors["weight"]
    weight = bnb.nn.Params4bit.from_prequantized(
        packed,
        {name: tensor for name, tensor in tensors.items() if name.startswith("weight.")},
        requires_grad=False,
        device=packed.device,
    )
    made = _empty_four_bits(linear, weight.quant_state.dtype)
    made.weight = weight
    four_bits: nn.Linear = made
    return four_bits


def _empty_four_bits(linear: nn.Linear, dtype: torch.dtype) -> Any:
    """bitsandbytes' layer with a plain one's bias and no weight yet."""
    import bitsandbytes as bnb

    made: Any = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        linear.bias is not None,
        compute_dtype=dtype,
        quant_type="nf4",
        device="meta",
    )
    made.support_avx512bf16_for_cpu = False  # its packing wants widths of 64, and rounds the scales for samples alone
    if linear.bias is not None:
        made.bias = linear.bias
    return made


def _set_bias(linear: nn.Linear, tensors: dict[str, Tensor]) -> None:
    if "bias" in tensors:
        linear.bias = nn.Parameter(tensors["bias"], requires_grad=False)
