"""Which levers a stage takes: by card, memory, family and how much there is to do. Levers differ by rounding alone."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Levers:
    """What makes a denoiser fast here."""

    compile: bool
    graph: bool
    channels_last: bool
    attention: str = "flash"

    def described(self) -> str:
        """In words, for the first line and runs/."""
        words = ["compiled" if self.compile else "not compiled"]
        words += ["graph"] if self.graph else []
        words += ["channels last"] if self.channels_last else []
        return ", ".join([*words, f"{self.attention} attention"])


def choose_levers(device: torch.device, *, deterministic: bool) -> Levers | None:
    """None: the plain path."""
    if deterministic or device.type != "cuda":
        return None
    return Levers(compile=True, graph=True, channels_last=True)
