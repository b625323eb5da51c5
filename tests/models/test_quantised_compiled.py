"""Quantised layers inside compiled blocks: no graph break, one graph for all blocks, no expanded weight kept."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils.checkpoint import checkpoint

from eridiff.models.quantise import Storage

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch's own tracing, which does what torch warns of
CPU = torch.device("cpu")
WAYS = {
    "fp8": Storage(kind="fp8", device=CPU),
    "int8": Storage(kind="int8", device=CPU),
    "nf4": Storage(kind="nf4", device=CPU),
    "fp8 computed": Storage(kind="fp8", device=CPU, compute=True),
    "int8 computed": Storage(kind="int8", device=CPU, compute=True),
}
SIDES = {(64, 128), (128, 64)}  # of the blocks' weights; activations have 35 rows


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Nothing that another test compiled is used, and nothing is left."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Block(nn.Module):
    """A feed-forward with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, values: Tensor) -> Tensor:
        answer: Tensor = values + self.down(nn.functional.gelu(self.up(values)))
        return answer


class Checkpointed(nn.Module):
    """A block of which nothing but its input is kept."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, values: Tensor) -> Tensor:
        answer: Tensor = checkpoint(self.block, values, use_reentrant=False)
        return answer


def blocks(storage: Storage) -> list[nn.Module]:
    torch.manual_seed(0)
    model = nn.Module()
    model.blocks = nn.ModuleList(Block() for _ in range(3))
    return list(storage.settle_all(model.requires_grad_(False).bfloat16()).blocks)


def passes(stack: list[nn.Module]) -> tuple[Tensor, Tensor]:
    """Answer of the stack, and the gradient of its input."""
    values = torch.randn(5, 7, 64, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
    answer = values
    for block in stack:
        answer = block(answer)
    answer.square().sum().backward()
    assert values.grad is not None
    return answer.detach(), values.grad


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_one_graph_that_keeps_no_expanded_weight(way: str, checkpointed: bool) -> None:
    """As inductor splits it, whose partitioner chooses what the forward pass hands to the backward pass."""
    expected = passes(blocks(WAYS[way]))
    handed: list[list[Any]] = []

    def forward(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        (end,) = (node for node in graph.graph.nodes if node.op == "output")
        handed.append([node.meta["val"] for node in end.args[0]])
        return make_boxed_func(graph.forward)  # type: ignore[no-any-return]

    backend = aot_autograd(
        fw_compiler=forward,
        bw_compiler=lambda graph, _: make_boxed_func(graph.forward),
        partition_fn=min_cut_rematerialization_partition,
    )
    stack = [Checkpointed(block) if checkpointed else block for block in blocks(WAYS[way])]
    for block in stack:
        block.compile(fullgraph=True, dynamic=False, backend=backend)
    found = passes(stack)
    assert len(handed) == 1
    expanded = [value for value in handed[0] if tuple(value.shape) in SIDES and value.dtype.itemsize > 1]
    assert expanded == []
    widest = [value for value in handed[0] if value.dtype == torch.bfloat16 and value.numel() >= 5 * 7 * 128]
    assert checkpointed != bool(widest)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["fp8", "fp8 computed"])
def test_inductor(way: str) -> None:
    """As far from the plain path as rounding takes it: a compiled block keeps more digits between two operators."""
    expected = passes(blocks(WAYS[way]))
    stack = blocks(WAYS[way])
    for block in stack:
        block.compile(fullgraph=True, dynamic=False)
    for ours, theirs in zip(passes(stack), expected, strict=True):
        assert (ours.double() - theirs.double()).norm() < 0.02 * theirs.double().norm()
