"""Where a VAE's time goes on a device: the whole encoder, and the attention of its middle by each backend, eager bf16.

That attention has one head of 512 channels over H/8 x W/8 tokens, which flash kernels do not take.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.benchtable import Bench, Row, show, synchronize
from benchmarks.fullsize import make_vae
from eridiff.params_latents import LatentParams
from eridiff.vae import encode, prepare_vae

BATCH = 8
BACKENDS = {"efficient": SDPBackend.EFFICIENT_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH}


def two_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention as two products with a softmax between, all scores in memory."""
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)
    return scores.softmax(-1) @ value


def measure_parts(bench: Bench) -> Callable[[Row], None]:
    """One row: milliseconds a picture; a backend that does not take these shapes is left out."""

    def measure(found: Row) -> None:
        params = LatentParams(dtype="bf16", channels_last=True, batch_size=2 if bench.tiny else BATCH)
        vae = prepare_vae(make_vae(bench, 4, torch.bfloat16), params, bench.device)
        pixels = torch.rand(params.batch_size, 3, bench.side, bench.side, device=bench.device) * 2 - 1
        parts = {"encoder": milliseconds(bench, params.batch_size, lambda: encode(vae, pixels, params))}
        with chosen_kernels():
            tuned = milliseconds(bench, params.batch_size, lambda: encode(vae, pixels, params))
        parts["cudnn.benchmark"] = tuned
        parts |= attention_times(bench, params.batch_size)
        found["device"] = ", ".join(f"{name} {show(value)} ms" for name, value in parts.items())

    return measure


def attention_times(bench: Bench, batch: int) -> dict[str, float]:
    """The middle's attention by each backend."""
    tokens, width = (64, 8) if bench.tiny else ((bench.side // 8) ** 2, 512)
    qkv = [torch.randn(batch, 1, tokens, width, device=bench.device, dtype=torch.bfloat16) for _ in range(3)]
    found = {}
    for name, backend in {"sdpa": None, **BACKENDS}.items():
        context: AbstractContextManager[Any] = nullcontext() if backend is None else sdpa_kernel(backend)
        try:
            with context, torch.inference_mode():
                found[name] = milliseconds(bench, batch, lambda: torch.nn.functional.scaled_dot_product_attention(*qkv))
        except RuntimeError:
            continue
    with torch.inference_mode():
        found["two products"] = milliseconds(bench, batch, lambda: two_products(*qkv))
    return found


@contextmanager
def chosen_kernels() -> Iterator[None]:
    """cuDNN tries all its kernels for each shape and keeps the fastest."""
    torch.backends.cudnn.benchmark = True
    yield
    torch.backends.cudnn.benchmark = False


def milliseconds(bench: Bench, batch: int, work: Callable[[], Any], repeats: int = 4) -> float:
    """Milliseconds of one of a batch, warm."""
    for _ in range(2):
        work()
    synchronize(bench)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize(bench)
    return 1000 * (time.perf_counter() - start) / repeats / batch
