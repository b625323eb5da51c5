"""CUDA graphs: replays see new numbers, each shape has its own, and few are kept."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from eridiff.acceleration.graph import RecordedByShape, tensors_of


@dataclass(frozen=True)
class Pair:
    one: Tensor
    two: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> "Pair":
        return Pair(change(self.one), change(self.two))


def test_tensors_of_an_input_stand_in_its_order() -> None:
    one, two = torch.zeros(1), torch.ones(2)
    found = tensors_of(Pair(one, two))
    assert found[0] is one
    assert found[1] is two


@pytest.mark.gpu
def test_replays_compute_with_what_they_are_given() -> None:
    """From pinned memory, in shapes that come and go, with two graphs at most."""
    device, out, seen = torch.device("cuda"), torch.zeros((), device="cuda"), []

    def work(pair: Pair) -> None:
        seen.append(pair.one.shape)
        out.copy_((pair.one * 2 + pair.two).sum())

    recorded = RecordedByShape(work, device, limit=2, pool=torch.cuda.graph_pool_handle())
    for size in (3, 5, 3, 7, 5, 3, 3):
        pair = Pair(torch.randn(size), torch.randn(size)).map(Tensor.pin_memory)
        recorded(pair)
        assert float(out) == pytest.approx(float((pair.one * 2 + pair.two).sum()), abs=1e-5)
    recordings = [size[0] for size in seen]
    assert len(recorded._recorded) == 2
    assert recordings.count(7) == 3  # two runs before, one recorded
    assert recordings.count(3) == 6  # dropped when 5 came back after 7
