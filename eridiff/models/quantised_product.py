"""The product of a frozen layer in eight bits: inputs, weights and gradients of outputs are all quantised.

    forward   y = (x / s_x)₈ · W₈ᵀ · s_x · s_W        s_x one for each row of x (a token), s_W one for each output
    backward  dx = (dy · s_W / s_g)₈ · W₈ · s_g       s_g one for each row of dy · s_W

The weight's scales stand on the summed side of the backward product. So they go into the gradient before it is
quantised, and both products use the same eight-bit numbers: the layer's gradient is that of the weight that its forward
pass used. Tensor cores of Hopper and Ada read fp8 along the summed side only, so W₈ is held twice, as it is and
transposed: together as much as bf16.

A product of few rows, such as a modulation by the timestep, is rounded twice: what the first rounding left over is a
second set of rows, whose product is added. It concerns all tokens alike, so its error would not average out; and its
time is that of reading the weight, whatever the rows.

All is written in torch's own operators, so that a compiled block quantises in the kernel that makes the values.

Legend: M rows of the input (all its dimensions but the last), K the summed side, N the other; O I outputs and inputs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

FP8, LARGEST = torch.float8_e4m3fn, {"fp8": 448.0, "int8": 127.0}
SIDE = 16  # the sides of a product are multiples of this
FEWEST_ROWS = 32  # of a product: torch's int8 one wants more than 16
FEW_ROWS = FEWEST_ROWS // 2  # up to so many, the rows of what is left over come for nothing
TINY = 1e-30  # the least largest number of a row: gradients of bf16 are far below 1, and its range is that of fp32
FAST_SUMS = (True, False)  # forward, backward: whether partial sums stay in the tensor core's 22 bits


def fits(in_features: int, out_features: int) -> bool:
    """Whether the tensor cores take a layer of these sides."""
    return in_features % SIDE == 0 and out_features % SIDE == 0


def quantised_product(
    input: Tensor, stored: Tensor, turned: Tensor, scale: Tensor, ones: Tensor, bias: Tensor | None
) -> Tensor:
    """[..., I] => [..., O], in the input's format; only the input gets a gradient.

    stored [O, I] and turned [I, O]: the same eight-bit numbers (fp8 as uint8). scale [O, 1]: of the rows of `stored`,
    fp32. ones [I, 1] in fp32: fp8's product wants a scale for each column.
    """
    product: Tensor = _Product.apply(input, stored, turned, scale, ones, bias)  # type: ignore[no-untyped-call]
    return product


class _Product(torch.autograd.Function):
    """Both passes; between them nothing is kept but what the layer holds anyway."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, stored: Tensor, turned: Tensor, scale: Tensor, ones: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(turned, scale, ones)
        return _multiply(input, stored, scale, bias, input.dtype, fast=FAST_SUMS[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        turned, scale, ones = ctx.saved_tensors
        (gradient,) = gradients
        factors = scale if gradient.dtype == torch.float16 else scale.to(gradient.dtype)  # too small for fp16
        scaled = gradient * factors.t()
        return _multiply(scaled, turned, ones, None, gradient.dtype, fast=FAST_SUMS[1]), None, None, None, None, None


def _multiply(
    values: Tensor, stored_NK: Tensor, scale_N1: Tensor, bias: Tensor | None, dtype: torch.dtype, *, fast: bool
) -> Tensor:
    """values [..., K], quantised by rows, times the transpose of stored, plus bias => [..., N]."""
    rows_MK, kind = values.reshape(-1, values.shape[-1]), "int8" if stored_NK.dtype == torch.int8 else "fp8"
    rows = rows_MK.shape[0]
    if rows <= FEW_ROWS:
        numbers_MK, scale_M1 = quantise_tokens(rows_MK, kind)
        left_over_MK = rows_MK - numbers_MK.float() * scale_M1
        product = _multiply_rows(torch.cat([rows_MK, left_over_MK]), kind, stored_NK, scale_N1, None, dtype, fast=fast)
        product = product[:rows] + product[rows : 2 * rows]
        product = product if bias is None else product + bias
    else:
        product = _multiply_rows(rows_MK, kind, stored_NK, scale_N1, bias, dtype, fast=fast)[:rows]
    return product.reshape(*values.shape[:-1], stored_NK.shape[0])


def _multiply_rows(
    rows_MK: Tensor,
    kind: str,
    stored_NK: Tensor,
    scale_N1: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    *,
    fast: bool,
) -> Tensor:
    """The product of rows, with rows of zeros up to a number that the tensor cores take."""
    missing = max(FEWEST_ROWS, -(-rows_MK.shape[0] // SIDE) * SIDE) - rows_MK.shape[0]
    if missing:
        rows_MK = functional.pad(rows_MK, (0, 0, 0, missing))
    numbers_MK, scale_M1 = quantise_tokens(rows_MK, kind)
    if kind == "int8":
        sums = torch._int_mm(numbers_MK, stored_NK.t())  # exact: in 32-bit whole numbers
        product = sums * scale_M1 * scale_N1.t()
        return (product if bias is None else product + bias).to(dtype)
    return torch._scaled_mm(
        numbers_MK,
        stored_NK.view(FP8).t(),
        scale_a=scale_M1,
        scale_b=scale_N1.t(),
        bias=bias,
        out_dtype=dtype,
        use_fast_accum=fast,
    )


def quantise_tokens(values: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """values [M, K] => numbers [M, K], scale [M, 1] in fp32: each row's largest becomes the format's largest.

    The numbers lie row by row, as the tensor cores want them, however the values do: a UNet's tokens are pixels whose
    channels lie apart.

    What is not finite makes its row's scale, and so its row of the product, not finite.
    """
    scale = values.abs().amax(dim=1, keepdim=True).float().clamp_min(TINY) / LARGEST[kind]
    scaled = values / scale
    return (scaled.round().to(torch.int8) if kind == "int8" else scaled.to(FP8)).contiguous(), scale
