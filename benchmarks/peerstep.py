"""Steps of other trainers, where a checkout of theirs is given."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.randombase import RandomBase
from benchmarks.steprow import Row

Make = Callable[[Path, RandomBase, Row, torch.device], Callable[[], Tensor]]

PEERS: dict[str, Make] = {}


def peer_step(name: str, checkout: Path, base: RandomBase, row: Row, device: torch.device) -> Callable[[], Tensor]:
    """A function that trains one step of a peer and returns its loss."""
    return PEERS[name](checkout, base, row, device)
