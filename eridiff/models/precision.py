"""Devices and number formats: the one place that chooses them, and says so."""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from eridiff.core.errors import ConfigError
from eridiff.machine.local import load_local

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Sums are split over threads, so the thread count decides last bits: fixed here, not read from the machine.
CPU_THREADS = 2

# Shapes for which one module may be compiled: more than any project has buckets (each graph is checked at a call).
MAX_GRAPHS = 512


def choose_device(*, allow_cpu: bool) -> torch.device:
    """The device that a stage runs on: ERIDIFF_DEVICE, else local.yaml's `device`, else CUDA, else the CPU.

    Of several processes on one machine (LOCAL_RANK) each takes its own CUDA device, unless one is named by number.
    On CUDA attention that no fused kernel computes is an error from here on, not slow and large without a word.
    Raises: ConfigError where there is no CUDA device and the params do not allow a CPU; nothing falls back.
    """
    chosen = os.environ.get("ERIDIFF_DEVICE") or load_local().device
    name = chosen or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device '{name}' is unknown. Known: cpu, cuda, cuda:N.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device '{name}' was asked for, but torch {torch.__version__} finds no CUDA device.")
    if device.type == "cuda" and device.index is None and (place := os.environ.get("LOCAL_RANK")) is not None:
        if int(place) >= torch.cuda.device_count():
            raise ConfigError(
                f"process {place} (counted from 0) has no device: there are {torch.cuda.device_count()} CUDA devices. "
                "Start as many processes as there are devices."
            )
        device = torch.device("cuda", int(place))
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # streams and events are made on the current device
    if device.type == "cpu" and not allow_cpu:
        raise ConfigError(
            f"{'device cpu was asked for' if chosen else 'no CUDA device'}, but this model is not meant for a CPU. Run "
            "it on a machine with a GPU, or set model.allow_cpu: true in params.yaml (only the small bases are any use "
            "there)."
        )
    if device.type == "cuda":
        torch.backends.cuda.enable_math_sdp(False)
    return device


def describe_backend(device: torch.device, dtype: str) -> dict[str, Any]:
    """What a stage computed on and with, for runs/: device, card, number format, and the kernels attention may take."""
    backends: Any = torch.backends.cuda
    attention = {
        "flash": backends.flash_sdp_enabled(),
        "efficient": backends.mem_efficient_sdp_enabled() and device.type == "cuda",
        "cudnn": backends.cudnn_sdp_enabled() and device.type == "cuda",
        "math": backends.math_sdp_enabled(),
    }
    return {
        "device": str(device),
        "card": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "dtype": dtype,
        "attention": [name for name, is_allowed in attention.items() if is_allowed],
    }


def fix_threads(device: torch.device) -> None:
    """On a CPU, use the same number of threads on every machine."""
    if device.type == "cpu":
        torch.set_num_threads(CPU_THREADS)


def compile_fixed_shapes(modules: Iterable[nn.Module], backend: str = "inductor") -> None:
    """Compile modules in place, one graph for each shape that they see; one that is compiled already is left alone.

    Shapes are never made dynamic: else the second shape would get another kind of graph than the first, and last bits
    would depend on which came first. Beyond torch's own limit a module would run uncompiled without a word; here the
    limit is far above any number of buckets, and passing it is an error.
    """
    config = torch._dynamo.config
    config.recompile_limit = MAX_GRAPHS
    config.accumulated_recompile_limit = 64 * MAX_GRAPHS  # one code object may serve many layers
    config.fail_on_recompile_limit_hit = True
    for module in modules:
        if module._compiled_call_impl is None:  # a second call would trace again
            module.compile(dynamic=False, backend=backend)


def repeated_layers(module: nn.Module) -> list[nn.Module]:
    """The layers of a model's longest stack; the model itself where it has none. One graph serves all of a stack."""
    stacks = [stack for stack in module.modules() if isinstance(stack, nn.ModuleList)]
    longest = max(stacks, key=len, default=None)
    return list(longest) if longest else [module]


def use_deterministic_kernels(enabled: bool) -> None:
    """Choose kernels that give the same bits on each run of the same hardware, or let torch choose the fastest.

    cuDNN's search stays off: it took 6 to 12 s for each size of picture, and steps were no faster (a UNet, H100).
    """
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(enabled)
    torch.backends.cudnn.deterministic = enabled
    torch.backends.cudnn.benchmark = False


def avoid_cudnn_attention() -> None:
    """Keep cuDNN's attention out of training: torch's default on recent cards, its backward is not sound.

    It gives wrong gradients (not-a-number, or worse) where the gradient of its output is not contiguous, as in
    transformers that join attention and feed-forward before one projection: seen on an H100 with torch 2.11 as a
    gradient norm that is no number at the first bf16 step. Flash and memory-efficient attention are sound.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def use_tf32(enabled: bool) -> None:
    """Let fp32 products on CUDA use TF32 (10 bits of mantissa), or not."""
    torch.backends.cuda.matmul.allow_tf32 = enabled
    torch.backends.cudnn.allow_tf32 = enabled


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Autocast to `dtype`; with fp32, no autocast at all."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
