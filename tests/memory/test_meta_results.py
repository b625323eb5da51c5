"""Results known from an earlier call: of the form that the operator itself gives, with storages of their own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eridiff.memory.meta_results import MetaResults
from eridiff.memory.trace import trace

META = torch.device("meta")


class Compared(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Asks for each call twice, the second time known, and compares both with the operator itself."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.results = MetaResults()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.results.call(func, args, kwargs or {})
        again = self.results.call(func, args, kwargs or {})
        plain = func(*args, **(kwargs or {}))
        assert forms(again.result) == forms(plain), func
        assert type(again.result) is type(plain)
        assert storages(again.new) == storages(again.result) - storages(args) - storages(kwargs)
        assert (storages(plain) & storages(args) == set()) == (storages(again.result) & storages(args) == set())
        return again.result


def forms(value: Any) -> list[Any]:
    return [
        (leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.untyped_storage().nbytes())
        if isinstance(leaf, Tensor)
        else leaf
        for leaf in tree_leaves(value)
    ]


def storages(value: Any) -> set[int]:
    return {leaf.untyped_storage()._cdata for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_meta}


def conv(x: Tensor) -> Any:
    weight = torch.empty(8, 3, 3, 3, device=META, requires_grad=True)
    functional.conv2d(x.to(memory_format=torch.channels_last), weight, padding=1).sum().backward()  # type: ignore[no-untyped-call]
    return weight.grad


WORK: list[Callable[[Tensor], Any]] = [
    lambda x: [x + 1, x + 1.0, x + True, x.long() + 1, x.long() + 1.0],  # 1 == 1.0 == True
    lambda x: [x.transpose(1, 2) * 2, x.transpose(1, 2).contiguous(), x[:, :2].expand(2, -1, -1, -1)],
    lambda x: [x.add_(1), x[:, 1:].mul_(2), x.view(-1).zero_()],
    lambda x: [*x.chunk(3, dim=1), *torch.max(x, dim=1), *torch.var_mean(x, dim=1)],
    lambda x: functional.layer_norm(x.detach().requires_grad_(), (16,)).sum().backward(),  # type: ignore[no-untyped-call]
    lambda x: torch.cat([x, x.bfloat16().float()], dim=1).to(torch.float16),
    lambda x: [torch.zeros(2, 3, device=META), torch.full_like(x, 2), torch.arange(3, device=META)],
    lambda x: [x.flatten(1) @ x.flatten(1).T, x.resize_(3), x.sum()],
    conv,
]


@pytest.mark.parametrize("work", WORK)
def test_a_known_result_is_the_operators_own(work: Callable[[Tensor], Any]) -> None:
    with Compared():
        work(torch.empty(1, 3, 16, 16, device=META))


def test_a_tensor_with_content_is_asked_each_time() -> None:
    results, seen = MetaResults(), []
    for content in ([0, 1, 1], [1, 1, 1]):
        seen.append(results.call(torch.ops.aten.nonzero.default, (torch.tensor(content),), {}).result.shape)
    assert seen == [(2, 1), (3, 1)]


def test_a_trace_with_known_results_counts_the_same() -> None:
    known, x = MetaResults(), torch.empty(64, 64, device=META, requires_grad=True)

    def work() -> None:
        torch.autograd.grad(functional.gelu(x @ x.bfloat16().float()).sum(), x)

    first = trace(work, known=known)
    assert trace(work, known=known) == first == trace(work)
    assert first.flops == 2 * 64**3 * 3
