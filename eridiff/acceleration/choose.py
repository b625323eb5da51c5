"""Which levers a training takes, by card and denoiser. Levers differ by rounding alone."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Levers:
    """What makes a denoiser fast here."""

    compile: bool
    graph: bool
    channels_last: bool

    def described(self) -> str:
        """In words, for the first line and runs/."""
        words = {"compiled": self.compile, "graph": self.graph, "channels last": self.channels_last}
        return ", ".join(word for word, is_taken in words.items() if is_taken) or "not compiled"


def choose_levers(denoiser: nn.Module, device: torch.device) -> Levers:
    """Levers for a denoiser on a CUDA device."""
    capability = torch.cuda.get_device_capability(device)
    has_convolutions = any(
        isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) for module in denoiser.modules()
    )
    return Levers(compile=capability >= (7, 0), graph=True, channels_last=has_convolutions)
