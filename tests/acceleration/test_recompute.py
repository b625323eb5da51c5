"""n of m blocks computed again: equal gradients, fewer bytes, inside compiled regions, raised and undone."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition

from eridiff.acceleration.recompute import recompute, recomputed, repeated_blocks
from eridiff.family import load_family
from eridiff.training.data import TrainingSet
from eridiff.training.run import Run
from tests.support import training
from tests.support.bases import FAMILIES


def blocks_of(run: Run) -> list[nn.Module]:
    return repeated_blocks(run.denoiser, run.family.BLOCKS)


def gradients(run: Run, data: TrainingSet) -> dict[str, torch.Tensor]:
    for tensor in run.adapters.values():
        tensor.grad = None
    training.do_step(run, data.batch([0, 1], step=1, first_index=0), step=1)
    return {name: tensor.grad.clone() for name, tensor in run.adapters.items() if tensor.grad is not None}


def shaken_run(family: str) -> Run:
    """Adapters that add something, so that every gradient is one."""
    return training.shaken(training.start(family, training.params_of()))


def assert_gradients_stay(
    run: Run, data: TrainingSet, expected: dict[str, torch.Tensor], counts: tuple[int, ...]
) -> None:
    """Bit for bit, with so many blocks recomputed."""
    blocks = blocks_of(run)
    for count in counts:
        recompute(blocks, count)
        assert recomputed(blocks) == count
        found = gradients(run, data)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()), count


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_any_number_of_blocks_gives_equal_gradients(family: str, sets: dict[str, TrainingSet]) -> None:
    """All, one, and none again."""
    run = shaken_run(family)
    blocks = blocks_of(run)
    expected = gradients(run, sets[family])
    assert len(expected) == len(run.adapters)
    assert_gradients_stay(run, sets[family], expected, (len(blocks), 1, 0))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_each_more_block_keeps_fewer_bytes(family: str, sets: dict[str, TrainingSet]) -> None:
    run = shaken_run(family)
    blocks = blocks_of(run)
    assert {type(block).__name__ for block in blocks} == set(run.family.BLOCKS), "each class occurs"
    kept = []
    for count in (0, 1, len(blocks)):
        recompute(blocks, count)
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            training.do_step(run, sets[family].batch([0], step=1, first_index=0), step=1)
        kept.append(sum(sizes.values()))
    assert kept == sorted(kept, reverse=True)
    assert kept[2] < kept[0]


class Attending(nn.Module):
    """A block with attention, called by name as diffusers does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.up, self.down = (
            nn.Linear(width, 3 * width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )

    def forward(self, hidden_states: torch.Tensor, *, scale: float) -> torch.Tensor:
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(hidden_states).chunk(3, -1))
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return hidden_states + scale * self.down(nn.functional.gelu(self.up(attended)))


def counting_backend(graphs: list[Counter[str]]) -> Any:
    """A compiler that compiles nothing, and counts the operators of each graph: forward, backward, forward, ..."""

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_function"))
        return make_boxed_func(graph.forward)

    return aot_autograd(fw_compiler=count, bw_compiler=count, partition_fn=min_cut_rematerialization_partition)


def ran(blocks: list[nn.Module], x: torch.Tensor) -> torch.Tensor:
    for block in blocks:
        block.zero_grad()
    for block in blocks:
        x = block(x, scale=0.5)
    x.sum().backward()  # type: ignore[no-untyped-call]
    return torch.cat(
        [weight.grad.flatten() for block in blocks for weight in block.parameters() if weight.grad is not None]
    )


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which torch looks at while it traces
@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True], ids=["forward", "module"])
def test_compiled_blocks_keep_attention_share_a_graph_and_may_change(whole: bool) -> None:
    """The checkpoint is inside the compiled region, whole; attention runs once; another count compiles again."""
    torch._dynamo.reset()
    torch.manual_seed(1)
    blocks: list[nn.Module] = [Attending(16) for _ in range(5)]
    x = torch.randn(2, 8, 16, requires_grad=True)
    expected = ran(blocks, x)
    recompute(blocks, len(blocks))
    assert torch.equal(ran(blocks, x), expected)
    graphs: list[Counter[str]] = []
    options: dict[str, Any] = {"fullgraph": True, "backend": counting_backend(graphs)}
    for block in blocks:
        if whole:
            block.compile(**options)
        else:
            vars(block)["forward"] = torch.compile(block.forward, **options)
    torch.testing.assert_close(ran(blocks, x), expected)
    assert len(graphs) == 2, "one forward and one backward graph serve all five blocks"
    forward, backward = graphs
    attention = [name for name in forward if "attention" in name]
    assert len(attention) == 1 and forward[attention[0]] == 1
    assert backward[attention[0]] == 0, "its output is kept"
    assert backward["aten.gelu.default"] + backward["aten.erf.default"] + backward["aten.addmm.default"] > 0
    recompute(blocks, 2)
    torch.testing.assert_close(ran(blocks, x), expected)
    recompute(blocks, 0)
    torch.testing.assert_close(ran(blocks, x), expected)
    assert len(graphs) == 4, "blocks that keep all: one pair more"


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
@torch._dynamo.config.patch(recompile_limit=64)  # one code object serves blocks of every shape
def test_compiled_denoisers_of_all_families(family: str, sets: dict[str, TrainingSet]) -> None:
    """Half of the blocks recomputed; two of each class compiled, in graphs without breaks."""
    torch._dynamo.reset()
    run = shaken_run(family)
    expected = gradients(run, sets[family])
    blocks = blocks_of(run)
    recompute(blocks, -(-len(blocks) // 2))
    for kind in run.family.BLOCKS:
        for block in [block for block in blocks if type(block).__name__ == kind][:2]:
            block.compile(fullgraph=True, backend="aot_eager")
    found = gradients(run, sets[family])
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)


def test_nothing_is_recomputed_without_gradients() -> None:
    """A preview's forward pass runs as the class wrote it."""
    block = Attending(16)
    recompute([block], 1)
    with torch.no_grad():
        assert not block(torch.ones(1, 4, 16), scale=1.0).requires_grad


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_come_in_the_families_order_and_narrow_ones_first(family: str) -> None:
    blocks = repeated_blocks(training.base_denoiser(family), load_family(family).BLOCKS)
    assert {type(block).__name__ for block in blocks} == set(load_family(family).BLOCKS), "each class occurs"
    places = [load_family(family).BLOCKS.index(type(block).__name__) for block in blocks]
    assert places == sorted(places) and len(set(map(id, blocks))) == len(blocks)


def test_a_forward_that_is_wrapped_already_is_refused() -> None:
    block = Attending(16)
    vars(block)["forward"] = block.forward
    with pytest.raises(AssertionError, match="wrapped already"):
        recompute([block], 1)
