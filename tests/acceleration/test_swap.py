"""Weights that wait in RAM: equal numbers in every pass, few bytes on the device, compiled blocks, and the way back."""

import copy
from collections import Counter

import pytest
import torch
from torch import nn

from eridiff.acceleration import swap as swap_module
from eridiff.acceleration.recompute import recompute
from eridiff.acceleration.swap import SLOTS, Swap, swap_sizes, swapped_bytes, swapped_places
from eridiff.training.data import TrainingSet
from tests.acceleration.test_recompute import (
    Attending,
    assert_gradients_stay,
    blocks_of,
    counting_backend,
    gradients,
    shaken_run,
)
from tests.support import training
from tests.support.bases import FAMILIES

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def stack(width: int = 16, count: int = 5) -> list[nn.Module]:
    """Frozen blocks, each with something to train in it; the third's weights are laid out in another order."""
    torch.manual_seed(1)
    blocks: list[nn.Module] = [Attending(width) for _ in range(count)]
    for block in blocks:
        block.requires_grad_(False)
        block.register_parameter("added", nn.Parameter(torch.ones(width)))
        block.register_buffer("unused", torch.arange(7))
        block.register_forward_hook(lambda block, _, answer: answer * block.added)
    weight = blocks[2].get_parameter("up.weight")
    weight.data = weight.data.t().contiguous().t()
    return blocks


def ran(blocks: list[nn.Module], x: torch.Tensor) -> list[torch.Tensor]:
    """The answer, and all gradients."""
    for block in blocks:
        block.zero_grad()
        x = block(x, scale=0.5)
    x.square().sum().backward()  # type: ignore[no-untyped-call]
    return [x.detach(), *(grad for block in blocks if (grad := block.get_parameter("added").grad) is not None)]


def addresses(blocks: list[nn.Module]) -> set[int]:
    return {
        weight.untyped_storage().data_ptr()
        for block in blocks
        for weight in block.parameters()
        if not weight.requires_grad
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("recomputes", [0, 3])
def test_swapped_blocks_compute_the_same(device: str, recomputes: int) -> None:
    """Any number of them, raised and lowered; several steps, a pass without gradients between them; two slots."""
    blocks = stack()
    for block in blocks:
        block.to(device)
    x = torch.randn(2, 8, 16, device=device)
    expected = ran(blocks, x)
    recompute(blocks, recomputes)
    swap = Swap(blocks, torch.device(device))
    for count in (2, 5, 4, 1, 0, 5):
        swap.swap(count)
        places = swapped_places(count, 5)
        for _ in range(2):
            found = ran(blocks, x)
            assert len(found) == 6 and all(torch.equal(*pair) for pair in zip(found, expected, strict=True)), count
        assert len(addresses([blocks[place] for place in places])) == min(count, SLOTS)
        with torch.no_grad():
            blocks[0](x, scale=1.0)
            blocks[4](x, scale=1.0)
        assert all(torch.equal(*pair) for pair in zip(ran(blocks, x), expected, strict=True)), count
    swap.swap(0)
    assert all(block._compiled_call_impl is None for block in blocks)
    assert all(torch.equal(*pair) for pair in zip(ran(blocks, x), expected, strict=True))


def test_weights_are_not_kept_twice() -> None:
    """Where each is, and what a device holds less."""
    blocks = stack()
    sizes = swap_sizes(blocks)
    assert (
        sizes[0] >= sum(w.nbytes for w in blocks[0].parameters() if w.requires_grad is False) and len(set(sizes)) == 1
    )
    assert [swapped_bytes(sizes, count) for count in (0, 1, 2, 3, 5)] == [0, 0, 0, sizes[0], 3 * sizes[0]]
    assert [swapped_places(n, 6) for n in (1, 2, 3, 6)] == [[0], [0, 3], [0, 2, 4], [0, 1, 2, 3, 4, 5]]
    meta = [copy.deepcopy(block).to("meta") for block in blocks]
    assert swap_sizes(meta) == sizes, "the estimate's blocks have no data"


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.slow
def test_compiled_blocks_are_not_compiled_again(device: str) -> None:
    """Swap stands outside the compiled call, at fixed addresses: as many graphs as without it, no more later."""
    x = torch.randn(2, 8, 16, device=device)
    expected = ran([block.to(device) for block in stack()], x)
    counts = []
    for count in (0, 4):
        torch._dynamo.reset()
        blocks = [block.to(device) for block in stack()]
        recompute(blocks, 2)
        graphs: list[Counter[str]] = []
        backend = counting_backend(graphs)
        swap = Swap(blocks, torch.device(device))
        swap.swap(count)
        with swap.unwrapped():
            for block in blocks:
                block.compile(fullgraph=True, backend=backend)
        first = ran(blocks, x)
        counts.append(len(graphs))
        for found in (first, ran(blocks, x), ran(blocks, x)):
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other)
        assert len(graphs) == counts[-1]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_swapped_denoisers_of_all_families(family: str, sets: dict[str, TrainingSet]) -> None:
    """The adapters' gradients, bit for bit, kept or computed again."""
    run = shaken_run(family)
    blocks = blocks_of(run)
    expected = gradients(run, sets[family])
    Swap(blocks, training.CPU).swap(len(blocks))
    assert_gradients_stay(run, sets[family], expected, (0, len(blocks)))


@pytest.mark.parametrize("kind", ["fp8", "int8", "nf4"])
@pytest.mark.slow
def test_a_quantised_base_is_swapped(kind: str, sets: dict[str, TrainingSet]) -> None:
    """Its stored weights wait in RAM, scales with them."""
    params = training.params_of({"quantise": kind})
    plain, swapped = (training.start("flux", params, swap=swap) for swap in (0, 100))
    assert len(addresses(blocks_of(swapped))) <= SLOTS
    expected, found = (gradients(run, sets["flux"]) for run in (plain, swapped))
    assert expected.keys() == found.keys() and len(expected) == len(plain.adapters)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_next_block_is_sent_for_while_one_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In order forward, in reverse backward; what is still in its slot is not sent again."""
    sent: list[object] = []
    plain = swap_module._copy

    def copied(target: torch.Tensor, chunks: list[torch.Tensor]) -> None:
        sent.append(next(place for place, block in enumerate(blocks) if swap._waiting[block].chunks is chunks))
        plain(target, chunks)

    monkeypatch.setattr(swap_module, "_copy", copied)
    blocks = stack()
    swap = Swap(blocks, training.CPU)
    swap.swap(5)
    for place, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda _, __, place=place: sent.append(f"run {place}"))
    ran(blocks, torch.ones(1, 4, 16))
    sent.clear()
    ran(blocks, torch.ones(1, 4, 16))
    assert sent == ["run 0", 2, "run 1", 3, "run 2", 4, "run 3", "run 4", 2, 1, 0]


def test_swapped_weights_that_are_laid_out_anew() -> None:
    """As channels_last does: inside `unwrapped` the waiting copy follows; outside it is refused, not computed with."""
    torch.manual_seed(1)
    blocks: list[nn.Module] = [nn.Conv2d(8, 8, 3, padding=1).requires_grad_(False) for _ in range(4)]
    x = torch.randn(1, 8, 6, 6, requires_grad=True)

    def answers() -> list[torch.Tensor]:
        y = x
        for block in blocks:
            y = block(y)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), [x])]

    expected = answers()
    swap = Swap(blocks, training.CPU)
    swap.swap(3)
    answers()
    with swap.unwrapped():
        for block in blocks:
            block.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for _ in range(2):
        for found, wanted in zip(answers(), expected, strict=True):
            torch.testing.assert_close(found, wanted)
    weight = blocks[0].get_parameter("weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    weight.data = weight.data.clone()
    with pytest.raises(AssertionError, match="moved or laid out anew"):
        answers()
