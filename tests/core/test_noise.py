"""Every random number is a function of (seed, step, index, purpose), whatever batch asks for it."""

import hashlib

import pytest
import torch

from eridiff.core.noise import generator, normal, uniform


def test_batch_splitting_changes_nothing() -> None:
    whole = normal(3, 5, range(4), (2, 4, 4), "noise")
    assert whole.shape == (4, 2, 4, 4)
    assert torch.equal(
        whole, torch.cat([normal(3, 5, [0, 1], (2, 4, 4), "noise"), normal(3, 5, [2, 3], (2, 4, 4), "noise")])
    )
    assert torch.equal(whole[[2, 0]], normal(3, 5, [2, 0], (2, 4, 4), "noise"))
    draws = uniform(3, 5, range(4), "level")
    assert (draws.dtype, draws.shape) == (torch.float64, (4,))
    assert torch.equal(draws, torch.cat([uniform(3, 5, [i], "level") for i in range(4)]))


def test_history_and_the_global_generator_change_nothing() -> None:
    torch.manual_seed(0)
    one = normal(1, 1, [0], (3,), "noise")
    torch.manual_seed(9)
    before = torch.get_rng_state()
    normal(1, 2, [0], (7,), "noise")
    assert torch.equal(normal(1, 1, [0], (3,), "noise"), one)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_argument_counts() -> None:
    arguments = [(0, 0, 0, "noise"), (1, 0, 0, "noise"), (0, 1, 0, "noise"), (0, 0, 1, "noise"), (0, 0, 0, "level")]
    arguments += [
        (1, 11, 0, "noise"),
        (11, 1, 0, "noise"),
        (0, 10, 1, "noise"),
        (0, 1, 10, "noise"),
        (-1, 0, 0, "noise"),
    ]
    draws = {torch.rand((), generator=generator(*given)).item() for given in arguments}
    assert len(draws) == len(arguments)


def test_the_distributions() -> None:
    values = normal(0, 0, range(2000), (10,), "noise").flatten().double()
    assert values.mean().item() == pytest.approx(0, abs=0.03)
    assert values.std().item() == pytest.approx(1, abs=0.03)
    draws = uniform(0, 0, range(4000), "level").sort().values
    assert (draws - torch.arange(4000) / 4000).abs().max().item() < 0.03
    assert 0 <= draws[0] <= draws[-1] < 1


def test_the_numbers_stay() -> None:
    """The same on every machine and version: a change of these is a change of every training."""
    bits = normal(1, 2, [3], (4,), "noise").numpy().tobytes()
    assert hashlib.sha256(bits).hexdigest()[:16] == "a0d3fcc5d1c73f6a"
    assert uniform(1, 2, [3], "level").item() == 0.4103233896507237
