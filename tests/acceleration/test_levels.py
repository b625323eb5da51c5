"""Which levels there are, in which order they are taken, and what they are called."""

import pytest
import torch
from torch import nn

from eridiff.acceleration.levels import Kept, Level, full, level_of, next_level, offload_activations
from eridiff.machine.local import Checkpointing
from tests.acceleration.test_recompute import Attending
from tests.support import training


def test_each_level_leads_to_one_that_takes_less() -> None:
    """Recompute by quarters, then swap by quarters, then offload, then nothing."""
    level: Level | None = Level()
    words = []
    while level is not None:
        words.append(level.described(6))
        level = next_level(level, 6)
    assert words == [
        "none", "2 of 6 blocks", "4 of 6 blocks", "full",
        *(f"full, {count} of 6 blocks swapped" for count in (2, 4, 6)),
        "offload, 6 of 6 blocks swapped",
    ]  # fmt: skip
    assert next_level(Level(recomputed=5, swapped=1), 6) == Level(recomputed=6, swapped=1)


@pytest.mark.parametrize(
    ("word", "swap", "level"),
    [
        ("none", 0, Level()),
        ("selective", 0, Level(recomputed=3)),
        ("full", 2, Level(recomputed=7, swapped=2)),
        ("offload", 0, Level(recomputed=7, offload=True)),
        (5, 0, Level(recomputed=5)),
        (0, 9, Level(swapped=7)),
        (99, 99, Level(recomputed=7, swapped=7)),
    ],
)
def test_words_of_local_yaml(word: Checkpointing, swap: int, level: Level) -> None:
    assert level_of(word, swap, 7) == level


def test_offloaded_activations_are_not_weights() -> None:
    """Bytes that wait in RAM are those of activations; gradients are the same."""
    torch.manual_seed(1)
    block = Attending(16)
    x = torch.randn(2, 8, 16)

    def gradient() -> torch.Tensor:
        block.zero_grad()
        block(x, scale=0.5).square().sum().backward()
        grad = block.up.weight.grad
        assert grad is not None
        return grad

    expected, weights = gradient().clone(), {weight.untyped_storage().data_ptr() for weight in block.parameters()}

    with offload_activations(block, training.CPU):
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
        assert hooks is not None
        pack, unpack = hooks
        assert pack(block.up.weight) is block.up.weight and pack(block.up.weight.t()).data_ptr() in weights
        packed = pack(x)
        assert not isinstance(packed, torch.Tensor) and torch.equal(unpack(packed), x)
        assert torch.equal(gradient(), expected)


def test_a_level_is_set_and_fallen_from() -> None:
    """Blocks are what the level says, swapped ones can be compiled, and the last level stays."""
    denoiser = nn.Sequential(*(Attending(16) for _ in range(4))).requires_grad_(False)
    kept = Kept(denoiser, ["Attending"], training.CPU)
    assert kept.described() == "none" and kept.blocks == list(denoiser)
    kept.set(full(4))
    taken = []
    while kept.fall():
        taken.append(kept.described())
    assert taken[-1] == "offload, 4 of 4 blocks swapped" == kept.described()
    swapped = [block._compiled_call_impl for block in kept.blocks]
    with kept.unwrapped():
        assert all(block._compiled_call_impl is None for block in kept.blocks)
        kept.blocks[0].compile(backend="eager")
    assert kept.blocks[0]._compiled_call_impl != swapped[0] and kept.blocks[0]._compiled_call_impl is not None
    kept.set(Level())
    assert [block._compiled_call_impl is None for block in kept.blocks] == [False, True, True, True]
