"""Attention kernels are checked before they are used: forward and backward pass, against the plain product.

A kernel is run as it will be used (eridiff/acceleration/attention.py), on the shapes that will be met, with inputs and
gradients in the layouts that models make, one after the other in one process. The store remembers what came out for
each shape on each card with its driver, torch and cuDNN: `kernels/ID.sealed.json`.

Legend: B batch, H heads, L queries, S keys, D features of a head.
"""

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from eridiff.acceleration.attention import BACKENDS, KERNELS, Attention, AttentionShape, Kernel, attention_by
from eridiff.core.errors import DataError, TrainError
from eridiff.core.files import digest_json, write_text
from eridiff.core.json_files import parse_json
from eridiff.formats.seals import read_sealed, sealed_json
from eridiff.machine.gpus import ask_driver

RULES = 1  # raised where this file comes to ask more of a kernel: what was remembered before no longer counts
FOLDER = "kernels"  # of the store
FUSED_FROM = (8, 0)  # compute capability from which cuDNN's and the flash kernel run: Ampere
# In norm, relative. A kernel rounds probabilities, and their gradients, to the format of its inputs; a wrong layout
# gives more than 1. Products in fp32 may be TF32's, here and there.
MAX_ERROR = {"bfloat16": 0.02, "float16": 0.004, "float32": 0.004}
MIN_COSINE = 0.999
INPUTS = ("swapped", "dense")  # layouts of query, key and value
GRADIENTS = ("dense", "swapped", "wide", "swapped", "dense")  # and of the output's gradient, in this order
NEGATIVE = -120.0  # a logit whose exponent fp32 does not hold: what is added up without a row's maximum overflows
SCORES = 2**26  # that the plain product holds at once

Check = Callable[[Kernel, AttentionShape], str]  # => what is wrong, in words; "" where the kernel agrees
Four = tuple[Tensor, Tensor, Tensor, Tensor]
NAMES = ("values", "query gradients", "key gradients", "value gradients")


@dataclass(frozen=True, kw_only=True)
class AttentionChoice:
    """The kernel to use, None where torch is left to itself; and why, in words."""

    kernel: Kernel | None
    note: str


def choose_attention(shapes: Iterable[AttentionShape], device: torch.device, store: Path) -> AttentionChoice:
    """The fastest kernel that this card has and that agrees with the plain product on all shapes.

    Takes about a second for a new shape, and no time for those that the store remembers.
    Raises: TrainError where no kernel agrees.
    """
    if device.type != "cuda":
        return AttentionChoice(kernel=None, note=f"attention: torch's own on {device.type}")
    capability = torch.cuda.get_device_capability(device)
    check = remembered(machine_of(device), store / FOLDER, partial(find_fault, device=device))
    choice = first_sound(sorted(set(shapes)), candidates(capability), check)
    torch.cuda.empty_cache()  # what the checks held
    return choice


def candidates(capability: tuple[int, int]) -> tuple[Kernel, ...]:
    """The kernels for cards of a compute capability, from the fastest on."""
    return KERNELS if capability >= FUSED_FROM else ("efficient", "math")


def first_sound(shapes: Iterable[AttentionShape], kernels: Iterable[Kernel], check: Check) -> AttentionChoice:
    """The first kernel in which no shape shows a fault; the note names those before it.

    Raises: TrainError where there is none.
    """
    refused: list[str] = []
    shapes = list(shapes)
    for kernel in kernels:
        fault = next(filter(None, (check(kernel, shape) for shape in shapes)), None)
        if fault is None:
            return AttentionChoice(
                kernel=kernel, note=f"attention: {kernel}" + (f" ({', '.join(refused)})" if refused else "")
            )
        refused.append(f"{kernel} {fault}")
    raise TrainError(
        f"no kernel computes attention rightly here: {', '.join(refused)}. Set train.deterministic: true, or use "
        "another driver or version of torch."
    )


def machine_of(device: torch.device) -> dict[str, Any]:
    """All that a kernel's answer depends on, but the shape."""
    cudnn: Any = torch.backends.cudnn
    return {
        "card": torch.cuda.get_device_name(device),
        "capability": list(torch.cuda.get_device_capability(device)),
        "driver": next((row[0] for row in ask_driver("driver_version")), ""),
        "torch": torch.__version__,
        "cudnn": cudnn.version(),
        "rules": RULES,
    }


def remembered(machine: dict[str, Any], folder: Path, check: Check) -> Check:
    """A check that asks the folder first, and keeps there what comes out. A damaged file counts as none."""

    def answer(kernel: Kernel, shape: AttentionShape) -> str:
        identity = {**machine, "kernel": kernel, **asdict(shape)}
        path = folder / f"{digest_json(identity)}.sealed.json"
        try:
            known = parse_json(read_sealed(path, "It is made again."))
        except (FileNotFoundError, DataError):
            known = None
        if known is not None:
            return str(known["fault"])
        try:
            fault = check(kernel, shape)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # CUDA's: this process cannot go on, but the next one will know
            _keep(path, identity, f"ends here with {str(error).splitlines()[0]}")
            raise
        _keep(path, identity, fault)
        return fault

    return answer


def _keep(path: Path, identity: dict[str, Any], fault: str) -> None:
    with suppress(OSError):  # a store that may only be read
        write_text(path, sealed_json({"identity": identity, "fault": fault}))


def find_fault(kernel: Kernel, shape: AttentionShape, device: torch.device) -> str:
    """What is wrong with a kernel for a shape, in words; "" where it agrees with the plain product."""
    query, key, value, gradient, mask = make_inputs(shape, device)
    if mask is None and not _takes(kernel, query, key, value):
        return f"does not take {shape.queries} x {shape.keys} x {shape.features} in {shape.dtype}"
    return compare(attention_by(kernel), query, key, value, gradient, mask)


def compare(
    attention: Attention, query: Tensor, key: Tensor, value: Tensor, gradient: Tensor, mask: Tensor | None
) -> str:
    """What is wrong with a function of attention, in words; "" where it agrees in every order of layouts."""
    right = plain_attention(query, key, value, gradient, mask)
    for inputs in INPUTS:
        for layout in GRADIENTS:
            q, k, v = (laid_out(tensor, inputs).detach().requires_grad_() for tensor in (query, key, value))
            output = attention(q, k, v, attn_mask=mask)
            found = (output.detach(), *torch.autograd.grad(output, (q, k, v), laid_out(gradient, layout)))
            for name, one, other in zip(NAMES, found, right, strict=True):
                if fault := difference(one, other):
                    return f"gives {fault[0]} {name} here{fault[1]}"
    return ""


def difference(found: Tensor, right: Tensor) -> tuple[str, str] | None:
    """How a tensor is wrong, and by how much; None where it is right but for rounding.

    The first feature is not compared, but for being finite: it carries the negative logits (see `make_inputs`), so its
    gradient is a small difference of large numbers.
    """
    if not bool(torch.isfinite(found).all()):
        return "infinite or undefined", ""
    a, b = found[..., 1:].float().flatten(), right[..., 1:].flatten()
    size = b.norm()
    cosine, error = float(a @ b / (a.norm() * size)), float((a - b).norm() / size)
    if cosine >= MIN_COSINE and error <= MAX_ERROR[str(found.dtype).removeprefix("torch.")]:
        return None
    return "wrong", f": cosine {cosine:.4f}, relative error {error:.4f}"


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values [B, H, L, D] as a contiguous tensor, as the transpose of one of [B, L, H, D], or of a slice."""
    if layout == "dense":
        return tensor.contiguous()
    batch, heads, tokens, features = tensor.shape
    width = heads * features  # of what joins attention and feed-forward before one projection: some times wider
    wide = tensor.new_zeros(batch, tokens, width if layout == "swapped" else 2 * width)
    return wide[..., :width].view(batch, tokens, heads, features).transpose(1, 2).copy_(tensor)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, gradient: Tensor, mask: Tensor | None) -> Four:
    """Output and gradients of query, key and value in fp32 as written down, a few heads at a time.

    P = softmax(Q K^T / sqrt(D)); O = P V; dV = P^T dO; dS = P (dO V^T - rowsum(dO O)); dQ = dS K / sqrt(D); dK alike.
    """
    (batch, heads, num_queries, features), num_keys = query.shape, key.shape[2]
    results = tuple(
        torch.empty_like(tensor, dtype=torch.float32).flatten(0, 1) for tensor in (query, query, key, value)
    )
    scale, step = 1 / math.sqrt(features), max(1, SCORES // (num_queries * num_keys))
    for first in range(0, batch * heads, step):
        part = slice(first, first + step)
        q, k, v, grad = (tensor.flatten(0, 1)[part].float() for tensor in (query, key, value, gradient))
        scores = q @ k.mT * scale
        if mask is not None:
            scores.masked_fill_(~mask[0], -math.inf)
        weights = scores.softmax(-1)
        output = weights @ v
        inner = (grad @ v.mT - (grad * output).sum(-1, keepdim=True)).mul_(weights).mul_(scale)
        for result, values in zip(results, (output, inner @ k, inner.mT @ q, weights.mT @ grad), strict=True):
            result[part] = values
    output, dq, dk, dv = (result.view(batch, heads, -1, features) for result in results)
    return output, dq, dk, dv


def make_inputs(shape: AttentionShape, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Random query, key, value and gradient, and a mask that hides the last quarter of the keys.

    In every other head all logits are strongly negative, by a first feature that is the same for all tokens: kernels
    that pad a block of keys were wrong there (pytorch#196678, cudnn-frontend#1072).
    """
    generator = torch.Generator(device).manual_seed(0)
    dtype = getattr(torch, shape.dtype)

    def normal(tokens: int) -> Tensor:
        size = (shape.batch, shape.heads, tokens, shape.features)
        return torch.randn(size, generator=generator, device=device).to(dtype)

    query, key, value, gradient = (normal(n) for n in (shape.queries, shape.keys, shape.keys, shape.queries))
    query[:, ::2, :, 0] = 1.0
    key[:, ::2, :, 0] = NEGATIVE * math.sqrt(shape.features)
    if not shape.masked:
        return query, key, value, gradient, None
    mask = torch.ones(1, 1, shape.queries, shape.keys, dtype=torch.bool, device=device)
    mask[..., shape.keys - shape.keys // 4 :] = False
    return query, key, value, gradient, mask


def _takes(kernel: Kernel, query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether a kernel computes these inputs at all."""
    cuda: Any = torch.backends.cuda
    if kernel == "math":
        return True
    can = {
        "cudnn": cuda.can_use_cudnn_attention,
        "flash": cuda.can_use_flash_attention,
        "efficient": cuda.can_use_efficient_attention,
    }[kernel]
    q, k, v = (laid_out(tensor, INPUTS[0]).requires_grad_() for tensor in (query, key, value))
    with sdpa_kernel(BACKENDS[kernel]):
        return bool(can(cuda.SDPAParams(q, k, v, None, 0.0, False, False), False))
