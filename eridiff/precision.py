"""Devices and number formats: the one place that chooses them, and says so."""

import os
from contextlib import AbstractContextManager

import torch

from eridiff.errors import ConfigError
from eridiff.project import load_local

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Sums are split over threads, so the thread count decides last bits: fixed here, not read from the machine.
CPU_THREADS = 2


def choose_device(*, allow_cpu: bool) -> torch.device:
    """The device that a stage runs on: ERIDIFF_DEVICE, else local.yaml's `device`, else CUDA, else the CPU.

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
    if device.type == "cpu" and not allow_cpu:
        raise ConfigError(
            f"{'device cpu was asked for' if chosen else 'no CUDA device'}, but this model is not meant for a CPU. Run "
            "it on a machine with a GPU, or set model.allow_cpu: true in params.yaml (only the small bases are any use "
            "there)."
        )
    return device


def fix_threads(device: torch.device) -> None:
    """On a CPU, use the same number of threads on every machine."""
    if device.type == "cpu":
        torch.set_num_threads(CPU_THREADS)


def use_deterministic_kernels(enabled: bool) -> None:
    """Choose kernels that give the same bits on each run of the same hardware, or let torch choose the fastest."""
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(enabled)
    torch.backends.cudnn.deterministic = enabled
    torch.backends.cudnn.benchmark = not enabled


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
