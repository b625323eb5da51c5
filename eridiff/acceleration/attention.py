"""Which kernel computes attention, and the one way to it.

cuDNN's fused attention is the fastest on recent cards, but torch 2.11 plans its backward pass once for a shape, for the
strides of the first gradient that it gets, and gives finite, wrong gradients, or corrupts memory, for the same shape
with other strides. Behind an identity whose backward makes the gradient contiguous a shape has one layout, and the
kernel is right: if that holds for every call, from the first of the process on. So cuDNN is switched off, and is on
only inside the function that `use_attention` puts in the place of torch's.

All attention of diffusers, of transformers and of our VAE reads `torch.nn.functional.scaled_dot_product_attention` at
the time of the call. Code that took the function before still never gets cuDNN, since that is off outside.

Legend: B batch, H heads, L queries, S keys, D features of a head.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

Kernel = Literal["cudnn", "flash", "efficient", "math"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)  # from the fastest on
Attention = Callable[..., Tensor]

BACKENDS: dict[Kernel, SDPBackend] = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


@dataclass(frozen=True, kw_only=True, order=True)
class AttentionShape:
    """One shape of attention: queries [B, H, L, D], keys and values [B, H, S, D]."""

    batch: int
    heads: int
    queries: int
    keys: int
    features: int
    dtype: str  # bfloat16, float16, float32: what it computes in, under autocast too
    masked: bool


PLAIN: Attention = torch._C._nn.scaled_dot_product_attention  # torch's own, whatever stands in its place
CUDNN = torch.ops.aten._scaled_dot_product_cudnn_attention.default
WIDEST = 128  # features of a head that cuDNN's backward pass takes on every card from Ampere on


@contextmanager
def use_attention(kernel: Kernel | None) -> Iterator[None]:
    """Have all attention computed by a kernel; what it cannot compute, by the next that can. For this whole process.

    None leaves torch as it is.

    Enter it before the first attention of the process and before anything is compiled. cuDNN stays off afterwards: its
    plans are of guarded calls, and unguarded ones of the same shapes would be wrong.
    """
    if kernel is None:
        yield
        return
    torch.backends.cuda.enable_cudnn_sdp(False)
    with in_place_of_attention(attention_by(kernel)):
        yield


@contextmanager
def in_place_of_attention(function: Attention) -> Iterator[None]:
    """Have all attention computed by a function that is called as torch's own, for this whole process."""
    before = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = function
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = before


def attention_by(kernel: Kernel) -> Attention:
    """torch's attention with a choice of kernel, and the guard where it may be cuDNN's."""
    order: list[SDPBackend] = [BACKENDS[name] for name in KERNELS[KERNELS.index(kernel) :] if name != "math"]
    backends: Any = torch.backends.cuda
    if kernel == "math" or backends.math_sdp_enabled():  # choose_device switches it off on CUDA
        order.append(SDPBackend.MATH)
    # With any mask, even one that is all true, cuDNN's query gradient is NaN where L % 128 == 64 and logits are
    # strongly negative (pytorch#196678). No denoiser here has a mask, so a finer rule would gain nothing.
    masked: list[SDPBackend] = [backend for backend in order if backend != SDPBackend.CUDNN_ATTENTION]

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if kernel == "cudnn" and attn_mask is None and fits_cudnn(query, key, value):
            # Named, so that the choice stands in a compiled graph itself.
            needs_sums = torch.is_grad_enabled()
            return contiguous_gradient(CUDNN(query, key, value, None, needs_sums, dropout_p, is_causal, scale=scale)[0])
        with sdpa_kernel(order if attn_mask is None else masked, set_priority=True):
            output = PLAIN(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        return contiguous_gradient(output) if kernel == "cudnn" else output

    return attention


def fits_cudnn(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether cuDNN's kernel computes attention of these, by device, format and width."""
    width = query.shape[-1]
    return (
        query.is_cuda
        and query.dim() == 4
        and query.dtype == key.dtype == value.dtype
        and query.dtype in (torch.bfloat16, torch.float16)
        and width % 8 == 0
        and width <= WIDEST
        and query.shape[1] == key.shape[1] == value.shape[1]
    )


def contiguous_gradient(output: Tensor) -> Tensor:
    """The same values; in the backward pass the gradient becomes contiguous."""
    result: Tensor = _ContiguousGradient.apply(output)  # type: ignore[no-untyped-call]
    return result


class _ContiguousGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].contiguous()


def recorded_shapes(work: Callable[[], Any]) -> list[AttentionShape]:
    """The distinct shapes of all attention in some work, which runs once, eagerly: on the meta device, or for real."""
    plain, found = functional.scaled_dot_product_attention, set()

    def recording(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *a: Any, **k: Any
    ) -> Tensor:
        found.add(shape_of(query, key, attn_mask))
        output: Tensor = plain(query, key, value, attn_mask, *a, **k)
        return output

    with in_place_of_attention(recording):
        work()
    return sorted(found)


def shape_of(query: Tensor, key: Tensor, attn_mask: Tensor | None) -> AttentionShape:
    """The shape of one call of attention."""
    *batch, heads, queries, features = query.shape
    kind, dtype = query.device.type, query.dtype
    if dtype == torch.float32 and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    return AttentionShape(
        batch=batch[0] if batch else 1,
        heads=heads,
        queries=queries,
        keys=key.shape[-2],
        features=features,
        dtype=str(dtype).removeprefix("torch."),
        masked=attn_mask is not None,
    )


def keep_compiled_attention() -> None:
    """Let torch's cache on disk keep graphs with this attention in them: before anything is compiled.

    It keeps no graph with functions that it does not know, which the choice of a kernel is traced to; both depend on
    their arguments alone, which are part of the graph and so of its key. Likewise the identity with its backward, which
    is traced into the graph whole.
    """
    functions = ("torch.nn.attention._sdpa_kernel", "torch.nn.attention._backend_from_string")
    known = torch._inductor.config.unsafe_marked_cacheable_functions
    torch._inductor.config.unsafe_marked_cacheable_functions = {**known, **dict.fromkeys(functions, torch.__version__)}
    torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True
