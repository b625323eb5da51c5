"""Memory and operations counted without content: against closed forms."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional

from eridiff.acceleration.levels import offload_activations
from eridiff.memory.trace import ROUND, Part, trace

META = torch.device("meta")


def empty(*shape: int, grad: bool = False) -> torch.Tensor:
    return torch.empty(*shape, device=META, requires_grad=grad)


def test_a_product() -> None:
    a, b = empty(64, 128), empty(128, 256)
    found = trace(lambda: a @ b)
    assert found.flops == 2 * 64 * 128 * 256
    assert found.peak == 64 * 256 * 4
    assert found.calls == 1


def test_what_is_dropped_is_not_counted_twice() -> None:
    """Ten products one after the other: two results live at a time; a view takes nothing."""
    a = empty(128, 128)

    def chain() -> None:
        x = a
        for _ in range(10):
            x = (x @ a).view(128, 128)

    found = trace(chain)
    assert found.peak == 2 * 128 * 128 * 4
    assert found.calls == 10 * 2


def test_sizes_are_rounded_as_the_allocator_does() -> None:
    a = empty(3)
    assert trace(lambda: a + 1).peak == ROUND


def test_the_backward_pass() -> None:
    """y = relu(x w): kept are x w's result twice (relu's too), then their gradients; w's gradient has w's size."""
    x, w = empty(32, 64), empty(64, 64, grad=True)
    found = trace(lambda: functional.relu(x @ w).sum().backward())  # type: ignore[no-untyped-call]
    assert found.flops == 2 * (2 * 32 * 64 * 64)
    activation, gradient = 32 * 64 * 4, 64 * 64 * 4
    assert activation + gradient < found.peak <= 4 * activation + gradient + 4 * ROUND


@pytest.mark.parametrize("inference", [False, True])
def test_attention_is_counted_without_its_scores(inference: bool) -> None:
    batch, heads, tokens, features = 1, 4, 1024, 64
    q, k, v = (empty(batch, heads, tokens, features) for _ in range(3))

    def attend() -> None:
        with torch.inference_mode(inference):
            functional.scaled_dot_product_attention(q, k, v)

    plain = functional.scaled_dot_product_attention
    found = trace(attend)
    assert found.flops == 4 * heads * tokens * tokens * features
    assert found.peak == heads * tokens * features * 4 + heads * tokens * 4
    assert functional.scaled_dot_product_attention is plain


def test_a_convolution_in_inference_mode() -> None:
    conv, x = nn.Conv2d(3, 8, 3, padding=1, device=META), empty(2, 3, 16, 16)

    def work() -> None:
        with torch.inference_mode():
            conv(x)

    found = trace(work)
    assert found.flops == 2 * (2 * 8 * 16 * 16) * (3 * 9)
    assert found.peak == 2 * 8 * 16 * 16 * 4


def test_activations_that_wait_on_the_host_take_nothing() -> None:
    x, layers = empty(1024, 64), nn.ModuleList(nn.Linear(64, 64, bias=False, device=META) for _ in range(8))
    w = [weight.t() for weight in layers.parameters()]

    def run(level: str) -> int:
        def work() -> None:
            with offload_activations(layers, META) if level == "offload" else nullcontext():
                y = x
                for weight in w:
                    y = torch.tanh(y @ weight)
                y.sum().backward(inputs=list(layers.parameters()), retain_graph=True)  # type: ignore[no-untyped-call]
            layers.zero_grad()

        return trace(work).peak

    size = 1024 * 64 * 4
    assert run("none") >= 8 * size
    assert run("offload") <= 5 * size + 8 * 64 * 64 * 4


def test_parts_are_measured_by_themselves() -> None:
    """Bytes that live after a module's forward pass, its operations; nothing of one that is not called."""
    first, second, idle = (nn.Linear(64, 64, bias=False, device=META) for _ in range(3))
    x = empty(32, 64)
    found = trace(lambda: second(first(x).relu()).sum().backward(), [second, idle, first])
    size = 32 * 64 * 4
    assert found.parts == (
        Part(kept=size, flops=2 * 32 * 64 * 64, calls=2, turn=2),
        Part(),
        Part(kept=size, flops=2 * 32 * 64 * 64, calls=2, turn=1),
    )
    assert not first._forward_hooks and not first._forward_pre_hooks
