"""Attention by a chosen kernel: which calls pass the guard, what the guard does, what a compiled region sees of it."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.nn import functional
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends
from torch.utils._python_dispatch import TorchDispatchMode

from eridiff.acceleration import attention
from eridiff.acceleration.attention import (
    KERNELS,
    AttentionShape,
    Kernel,
    contiguous_gradient,
    keep_compiled_attention,
    recorded_shapes,
    use_attention,
)
from eridiff.family import load_family
from eridiff.params.sample import Prompt, SampleParams
from tests.support import training
from tests.support.bases import FAMILIES, draw_whole, pipeline
from tests.support.training import TOKENS, params_of, random_set, start

CUDA = torch.device("cuda")
ORDERS = (  # of the twenty lines in which torch 2.11 shows the fault
    ("dense", "dense", "dense"),
    ("swapped", "swapped", "swapped"),
    ("dense", "swapped", "dense"),
    ("swapped", "dense", "wide", "swapped"),
)


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


class Kernels(TorchDispatchMode):
    """Forward calls of torch's kernels of attention, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket)
        if "scaled_dot_product" in name and "backward" not in name:
            self.calls.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What passed the guard."""
    passed: list[Tensor] = []

    def counted(output: Tensor) -> Tensor:
        passed.append(output)
        return contiguous_gradient(output)

    monkeypatch.setattr(attention, "contiguous_gradient", counted)
    return passed


def step_of(family: str, folder: Any) -> Callable[[], Any]:
    """One training step of a small base."""
    run = start(family, params_of())
    data = random_set(family, folder, run.params)
    batch = data.batch([0, 1], 1, 0)
    return lambda: training.do_step(run, batch, 1)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_all_attention_of_a_step_passes_the_guard(family: str, tmp_path: Any, guarded: list[Tensor]) -> None:
    """Were one of the family's processors to bind torch's function early, kernels would run that passed no guard."""
    step = step_of(family, tmp_path)
    with use_attention("cudnn"), Kernels() as kernels:
        step()
    assert len(guarded) == len(kernels.calls) > 1


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_all_attention_of_a_drawing_passes_the_guard(family: str, guarded: list[Tensor]) -> None:
    """Text encoders and VAE too: all of a process."""
    params = SampleParams(steps=1, size=(64, 64), precision="fp32", prompts=(Prompt(prompt="a red fox"),))
    with use_attention("cudnn"), Kernels() as kernels:
        draw_whole(pipeline(family), load_family(family), params, "a red fox", 0)
    assert len(guarded) == len(kernels.calls) > 1


def test_a_kernel_gets_contiguous_gradients_only() -> None:
    """Whatever follows: the transpose, a slice, a sum (whose gradient has strides of 0)."""
    seen = []

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: Tensor) -> Tensor:
            return query.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            seen.append(gradients[0].stride())
            return gradients[0]

    query = torch.randn(2, 3, 5, 4, requires_grad=True)
    wide = torch.randn(2, 5, 7)
    for guard in (contiguous_gradient, lambda output: output):
        for follow in (
            lambda out: out.transpose(1, 2).flatten(2).cos(),
            lambda out: torch.cat([out.transpose(1, 2).flatten(2), wide], dim=2).cos(),
            lambda out: out.sum(),
        ):
            found = torch.autograd.grad(follow(guard(Kernel.apply(query))).sum(), query)[0]
            assert torch.equal(found, torch.autograd.grad(follow(query).sum(), query)[0])
    assert seen[:3] == [query.stride()] * 3
    assert query.stride() not in seen[3:]  # so the guard is what makes them so


@pytest.mark.parametrize(
    ("kernel", "free", "masked"),
    [
        (
            "cudnn",
            ["CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION"],
            ["FLASH_ATTENTION", "EFFICIENT_ATTENTION"],
        ),
        ("flash", ["FLASH_ATTENTION", "EFFICIENT_ATTENTION"], ["FLASH_ATTENTION", "EFFICIENT_ATTENTION"]),
        ("efficient", ["EFFICIENT_ATTENTION"], ["EFFICIENT_ATTENTION"]),
        ("math", ["MATH"], ["MATH"]),
    ],
)
def test_kernels_that_a_call_may_take(
    kernel: Kernel, free: list[str], masked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order; with a mask never cuDNN's; the plain product only where it was asked for, or allowed before."""
    asked: list[list[str]] = []

    def plain(query: Tensor, *_: Any, **__: Any) -> Tensor:
        asked.append([backend.name for backend in _cur_sdpa_kernel_backends(with_priority=True)])
        return query

    monkeypatch.setattr(attention, "PLAIN", plain)
    query, mask = torch.zeros(1, 1, 2, 2), torch.ones(2, 2, dtype=torch.bool)
    for allowed in (False, True):
        monkeypatch.setattr(torch.backends.cuda, "math_sdp_enabled", lambda allowed=allowed: allowed)
        with use_attention(kernel):
            functional.scaled_dot_product_attention(query, query, query)
            functional.scaled_dot_product_attention(query, query, query, attn_mask=mask)
    last = [] if kernel == "math" else ["MATH"]
    assert asked == [free, masked, free + last, masked + last]


def test_nothing_else_gets_cudnn() -> None:
    """A function that was bound before finds cuDNN off, then and afterwards; torch's function is back afterwards."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    bound, flags = functional.scaled_dot_product_attention, _cur_sdpa_kernel_backends()
    with use_attention("cudnn"):
        assert functional.scaled_dot_product_attention is not bound
        query = torch.randn(1, 2, 4, 8)
        functional.scaled_dot_product_attention(query, query, query)
        assert set(flags) - set(_cur_sdpa_kernel_backends()) == {SDPBackend.CUDNN_ATTENTION}
        with use_attention("math"):  # the inner one holds, not one behind the other
            with Kernels() as kernels:
                functional.scaled_dot_product_attention(query, query, query)
            assert kernels.calls == []
    assert functional.scaled_dot_product_attention is bound
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_without_a_choice_torch_stays_as_it_is() -> None:
    before, flags = functional.scaled_dot_product_attention, _cur_sdpa_kernel_backends()
    with use_attention(None):
        assert functional.scaled_dot_product_attention is before
        assert _cur_sdpa_kernel_backends() == flags


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_same_numbers(kernel: Kernel) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, n, 8, requires_grad=True) for n in (6, 9, 9))
    mask = torch.rand(6, 9) > 0.3
    for more in ({}, {"attn_mask": mask}, {"is_causal": True}, {"scale": 0.2}):
        right = functional.scaled_dot_product_attention(query, key, value, **more)  # type: ignore[arg-type]
        with use_attention(kernel):
            found = functional.scaled_dot_product_attention(query, key, value, **more)  # type: ignore[arg-type]
        assert torch.allclose(found, right, atol=1e-6)
        inputs = (query, key, value)
        gradients = [torch.autograd.grad(output.cos().sum(), inputs) for output in (found, right)]
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


def region(query: Tensor, wide: Tensor) -> Tensor:
    """Attention and what makes the gradient's layout, as a block of a transformer has it."""
    output = functional.scaled_dot_product_attention(query.sin(), query, query)
    return torch.cat([output.transpose(1, 2).flatten(2), wide], dim=2).cos()


@pytest.mark.slow
def test_a_compiled_region_has_it_whole() -> None:
    """No graph break: `fullgraph` would raise. torch's cache on disk takes the graph, once it is told that it may."""
    from torch._functorch._aot_autograd.autograd_cache import BypassAOTAutogradCache, check_cacheable

    query, wide = torch.randn(1, 2, 8, 16, requires_grad=True), torch.randn(1, 8, 5)
    graphs = []

    def kept(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.backends.debugging.aot_eager(graph, inputs)

    with use_attention("cudnn"):
        expected = region(query, wide)
        found = torch.compile(region, fullgraph=True, dynamic=False, backend=kept)(query, wide)
    assert torch.allclose(found, expected)
    gradients = [torch.autograd.grad(out.sum(), query)[0] for out in (found, expected)]
    assert torch.allclose(*gradients, atol=1e-6)
    marked = torch._inductor.config.unsafe_marked_cacheable_functions
    with torch._inductor.config.patch(unsafe_marked_cacheable_functions=marked), torch._functorch.config.patch({}):
        with pytest.raises(BypassAOTAutogradCache, match=r"nn\.attention"):
            check_cacheable(graphs[0])
        keep_compiled_attention()
        check_cacheable(graphs[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's compiler
@pytest.mark.parametrize("family", FAMILIES)
@torch._dynamo.config.patch(recompile_limit=64)  # one code object serves blocks of every shape
def test_compiled_blocks_of_every_family_have_it_whole(family: str, tmp_path: Any) -> None:
    """Each block is one graph (`fullgraph`), and the adapters' gradients are those of torch without any of it."""
    run = start(family, params_of())
    data = random_set(family, tmp_path, run.params)
    blocks = [module for module in run.denoiser.modules() if type(module).__name__.endswith("TransformerBlock")]
    found, guards = [], []

    def kept(graph: Any, inputs: Any) -> Any:
        guards.append(sum("autograd_function_apply" in str(node.target) for node in graph.graph.nodes))
        return torch._dynamo.backends.debugging.aot_eager(graph, inputs)

    for compiled in (False, True):
        for tensor in run.adapters.values():
            tensor.grad = None
        for block in blocks if compiled else ():
            block.compile(fullgraph=True, dynamic=False, backend=kept)
        with use_attention("cudnn" if compiled else None):
            training.do_step(run, data.batch([0, 1], 1, 0), 1)
        found.append({name: tensor.grad for name, tensor in run.adapters.items()})
    assert guards
    assert min(guards) > 0
    for name, gradient in found[0].items():
        assert gradient is not None
        assert torch.allclose(gradient, found[1][name], rtol=1e-4, atol=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "operator"), [("flash", "flash_attention_for_cpu"), ("math", "softmax")])
def test_compiled_code_takes_the_kernel_that_was_chosen(kernel: Kernel, operator: str) -> None:
    """The choice is traced with the call: a compiled graph holds the kernel's operator."""
    seen: list[str] = []

    def kept(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    compiled = torch.compile(
        lambda query: functional.scaled_dot_product_attention(query, query, query),
        backend=aot_autograd(fw_compiler=kept),
        dynamic=False,
    )
    with use_attention(kernel):
        compiled(torch.randn(1, 2, 64, 64, dtype=torch.bfloat16))
    assert any(operator in name for name in seen)


@pytest.mark.slow
def test_shapes_that_a_step_meets(tmp_path: Any) -> None:
    """128 x 128 pixels are 16 x 16 latents, 64 tokens of a transformer that joins them with those of the text."""
    before = functional.scaled_dot_product_attention
    found = {family: recorded_shapes(step_of(family, tmp_path / family)) for family in FAMILIES}
    assert functional.scaled_dot_product_attention is before
    shapes = [shape for all_of_one in found.values() for shape in all_of_one]
    assert {(s.batch, s.dtype, s.masked) for s in shapes} == {(2, "float32", False)}
    assert {(s.queries, s.keys) for s in found["flux"]} == {(64 + TOKENS, 64 + TOKENS)}
    assert (64 + TOKENS, 64 + TOKENS) in {(s.queries, s.keys) for s in found["sd35"]}
    assert TOKENS in {s.keys for s in found["sdxl"]}


def test_the_format_is_what_attention_computes_in() -> None:
    query, mask = torch.zeros(3, 2, 5, 8, device="meta"), torch.ones(5, 7, device="meta")
    key = torch.zeros(3, 2, 7, 8, device="meta")

    def work() -> None:
        functional.scaled_dot_product_attention(query, key, key, attn_mask=mask)
        functional.scaled_dot_product_attention(query.half(), key.half(), key.half())
        functional.scaled_dot_product_attention(query.half(), key.half(), key.half())

    shape = {"batch": 3, "heads": 2, "queries": 5, "keys": 7, "features": 8}
    half = AttentionShape(**shape, dtype="float16", masked=False)  # type: ignore[arg-type]
    assert recorded_shapes(work) == [half, AttentionShape(**shape, dtype="float32", masked=True)]  # type: ignore[arg-type]
    query = torch.zeros(1, 1, 2, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = recorded_shapes(lambda: functional.scaled_dot_product_attention(query, query, query))
    assert [s.dtype for s in found] == ["bfloat16"]


def in_a_process(kernel: str, order: tuple[str, ...]) -> list[float]:
    """Cosines with the flash kernel's gradients of calls in this order, in a process of their own."""
    code = f"""
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from eridiff.acceleration.attention import attention_by
from eridiff.acceleration.attention_check import laid_out

def unguarded(query, key, value):
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return functional.scaled_dot_product_attention(query, key, value)

torch.manual_seed(0)
inputs = [torch.randn(1, 8, 1024, 64, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(3)]
gradient = torch.randn_like(inputs[0])

def gradients(attention, layout):
    found = torch.autograd.grad(attention(*inputs), inputs, laid_out(gradient, layout))
    return torch.cat([one.flatten() for one in found]).float()

right = gradients(attention_by("flash"), "dense")
chosen = unguarded if "{kernel}" == "unguarded" else attention_by("{kernel}")
for layout in {order}:
    print(float(functional.cosine_similarity(gradients(chosen, layout), right, dim=0)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [float(line) for line in done.stdout.split()]


@pytest.mark.gpu
@pytest.mark.parametrize("order", ORDERS)
def test_cudnn_behind_the_guard_is_right_in_every_order(order: tuple[str, ...]) -> None:
    assert in_a_process("cudnn", order) == pytest.approx([1.0] * len(order), abs=1e-3)


@pytest.mark.gpu
def test_cudnn_without_the_guard_is_why_there_is_one() -> None:
    cosines = in_a_process("unguarded", ORDERS[2])
    if min(cosines) > 0.999:
        pytest.skip(f"torch {torch.__version__} gives right gradients without the guard too: {cosines}")
    assert cosines[0] > 0.999
    assert not cosines[1] > 0.9  # or not a number
