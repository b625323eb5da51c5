"""Kernels are checked before they are used: planted faults are found, right ones pass, answers are remembered."""

import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from eridiff.acceleration import attention_check
from eridiff.acceleration.attention import (
    KERNELS,
    AttentionShape,
    Kernel,
    attention_by,
    contiguous_gradient,
    use_attention,
)
from eridiff.acceleration.attention_check import (
    AttentionChoice,
    candidates,
    choose_attention,
    compare,
    find_fault,
    first_sound,
    laid_out,
    make_inputs,
    plain_attention,
    remembered,
)
from eridiff.core.errors import TrainError
from eridiff.family import load_family
from eridiff.store.verify import verify
from eridiff.training.run import Machine, prepare_run
from tests.support import training
from tests.support.bases import FAMILIES, source
from tests.support.training import params_of, random_set

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def shape(**changes: Any) -> AttentionShape:
    plain = {"batch": 1, "heads": 2, "queries": 24, "keys": 40, "features": 8, "dtype": "bfloat16", "masked": False}
    return AttentionShape(**{**plain, **changes})


def checked(attention: Callable[..., Tensor], wanted: AttentionShape | None = None) -> str:
    return compare(attention, *make_inputs(wanted or shape(), CPU))


class PlannedByShape(torch.autograd.Function):
    """The fault of torch 2.11: each gradient is read with the strides of the first one of its shape."""

    plans: dict[Any, Any]

    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        strides = PlannedByShape.plans.setdefault(gradients[0].shape, gradients[0].stride())
        return gradients[0].as_strided(gradients[0].shape, strides).clone()


@pytest.fixture
def planned_by_shape() -> Callable[..., Tensor]:
    PlannedByShape.plans = {}
    return lambda *args, **kwargs: PlannedByShape.apply(functional.scaled_dot_product_attention(*args, **kwargs))


def test_a_gradient_read_with_the_strides_of_the_first_is_found(planned_by_shape: Callable[..., Tensor]) -> None:
    found = checked(planned_by_shape)
    assert found.startswith("gives wrong query gradients here: cosine 0.")
    assert checked(planned_by_shape, shape(masked=True)).startswith("gives wrong query gradients here")


def test_the_same_kernel_passes_behind_the_guard(planned_by_shape: Callable[..., Tensor]) -> None:
    assert checked(lambda *args, **kwargs: contiguous_gradient(planned_by_shape(*args, **kwargs))) == ""


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda q, k, v, out: out * 1.05, "gives wrong values here: cosine 1.0000, relative error 0.05"),
        (lambda q, k, v, out: out.roll(1, dims=2), "gives wrong values here: cosine -?0."),
        (lambda q, k, v, out: out.where(out < out.max(), math.inf), "gives infinite or undefined values here"),
        (lambda q, k, v, out: out + 0 * k.mean().sqrt(), "gives infinite or undefined values here"),
        (lambda q, k, v, out: out + 0 * (q[..., 1:2] - q[..., 1:2].detach()).sqrt(), "undefined query gradients here"),
        (lambda q, k, v, out: out + 0.2 * (k - k.detach()).mean(2, keepdim=True), "wrong key gradients here"),
        (lambda q, k, v, out: out + 0.2 * (v - v.detach()).mean(2, keepdim=True), "wrong value gradients here"),
    ],
)
def test_kernels_that_are_wrong(damage: Callable[..., Tensor], said: str) -> None:
    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        output = functional.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
        return damage(query, key, value, output)

    assert re.search(said, checked(attention))


def test_a_fault_of_masked_calls_alone_is_found() -> None:
    """As of pytorch#196678: with a mask, a length of which 64 of 128 are over, the query's gradient is undefined."""

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        output = functional.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
        if attn_mask is not None and query.shape[2] % 128 == 64:
            output = output + 0 * (query - query.detach()).abs().sqrt()
        return output

    assert checked(attention, shape(queries=64, keys=64)) == ""
    assert checked(attention, shape(queries=128, keys=128, masked=True)) == ""
    assert checked(attention, shape(queries=64, keys=64, masked=True)).startswith("gives infinite or undefined query")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("masked", [False, True])
def test_rounding_is_no_fault(dtype: str, masked: bool) -> None:
    """torch's two kernels on the CPU, with logits of -120 in every other head."""
    for kernel in ("cudnn", "math"):
        assert checked(attention_by(kernel), shape(dtype=dtype, masked=masked, heads=3)) == ""


@pytest.mark.parametrize("scores", [1, 2 * 24 * 40, 2**26])  # one head at a time, two, all
def test_the_plain_product_is_what_autograd_gives(scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_check, "SCORES", scores)
    for masked in (False, True):
        query, key, value, gradient, mask = make_inputs(shape(batch=2, heads=3, dtype="float32", masked=masked), CPU)
        q, k, v = (tensor.double().requires_grad_() for tensor in (query, key, value))
        logits = q @ k.mT / math.sqrt(8)
        logits = logits if mask is None else logits.masked_fill(~mask, -math.inf)
        output = logits.softmax(-1) @ v
        right = (output, *torch.autograd.grad(output, (q, k, v), gradient.double()))
        for one, other in zip(plain_attention(query, key, value, gradient, mask), right, strict=True):
            assert torch.allclose(one[..., 1:].double(), other[..., 1:], atol=1e-4)  # fp32 beside logits of -120


def test_layouts() -> None:
    tensor = torch.randn(2, 3, 5, 4)
    for layout, stride in (("dense", (60, 20, 4, 1)), ("swapped", (60, 4, 12, 1)), ("wide", (120, 4, 24, 1))):
        found = laid_out(tensor, layout)
        assert torch.equal(found, tensor)
        assert found.stride() == stride


def test_half_of_the_heads_have_strongly_negative_logits() -> None:
    query, key, *_ = make_inputs(shape(heads=4), CPU)
    logits = (query.float() @ key.float().mT) / math.sqrt(8)
    assert logits[:, ::2].max() < -88.7 < logits[:, 1::2].min()


def answers(faults: dict[tuple[str, int], str]) -> Callable[[Kernel, AttentionShape], str]:
    return lambda kernel, shape: faults.get((kernel, shape.queries), "")


def test_the_first_kernel_that_agrees_on_all_shapes() -> None:
    shapes = [shape(queries=n) for n in (1, 2)]
    wrong = {("cudnn", 2): "gives wrong query gradients here: cosine 0.03"}
    assert first_sound(shapes, KERNELS, answers({})) == AttentionChoice(kernel="cudnn", note="attention: cudnn")
    found = first_sound(shapes, KERNELS, answers(wrong))
    assert found.kernel == "flash"
    assert found.note == "attention: flash (cudnn gives wrong query gradients here: cosine 0.03)"
    found = first_sound(shapes, KERNELS, answers({**wrong, ("flash", 1): "does not take 1 x 40 x 8 in float32"}))
    assert found.note.startswith("attention: efficient (cudnn gives ")
    assert found.note.endswith(", flash does not take 1 x 40 x 8 in float32)")
    with pytest.raises(TrainError, match=r"no kernel computes attention rightly here: cudnn gives .*, math is wrong"):
        first_sound(shapes, KERNELS, lambda kernel, _: wrong.get((kernel, 2), "is wrong"))


def test_kernels_of_a_card() -> None:
    assert candidates((9, 0)) == candidates((8, 0)) == ("cudnn", "flash", "efficient", "math")
    assert candidates((7, 5)) == ("efficient", "math")


def test_on_a_cpu_nothing_is_chosen(tmp_path: Path) -> None:
    found = choose_attention([shape()], CPU, tmp_path)
    assert found == AttentionChoice(kernel=None, note="attention: torch's own on cpu")
    assert list(tmp_path.iterdir()) == []


MACHINE = {"card": "some card", "driver": "1.2", "torch": "2.11"}


def counting(answer: str, asked: list[Any]) -> Callable[[Kernel, AttentionShape], str]:
    def check(kernel: Kernel, one: AttentionShape) -> str:
        asked.append((kernel, one))
        return answer

    return check


@pytest.mark.parametrize("answer", ["", "gives wrong values here"])
def test_an_answer_is_remembered(answer: str, tmp_path: Path) -> None:
    """For this kernel, shape, card, driver and libraries, in the store, where verify reads it and finds damage."""
    asked: list[Any] = []
    folder = tmp_path / "kernels"
    for _ in range(3):
        assert remembered(MACHINE, folder, counting(answer, asked))("cudnn", shape()) == answer
    assert asked == [("cudnn", shape())]
    remembered(MACHINE, folder, counting(answer, asked))("flash", shape())
    remembered(MACHINE, folder, counting(answer, asked))("cudnn", shape(masked=True))
    remembered({**MACHINE, "driver": "1.3"}, folder, counting(answer, asked))("cudnn", shape())
    assert len(asked) == len(list(folder.iterdir())) == 4
    (tmp_path / "FORMAT").write_text("eridiff-store 1\n")
    assert verify(tmp_path, []) == []


def test_a_damaged_answer_is_asked_for_again(tmp_path: Path) -> None:
    asked: list[Any] = []
    check = remembered(MACHINE, tmp_path, counting("is wrong", asked))
    check("cudnn", shape())
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for damaged in (whole.replace(b"is wrong", b"is right"), whole[:-20], b"", b"{}"):
        path.write_bytes(damaged)
        assert check("cudnn", shape()) == "is wrong"
        assert path.read_bytes() == whole
    assert len(asked) == 5


def test_an_error_of_cuda_is_known_to_the_next_process(tmp_path: Path) -> None:
    """Memory that ran out says nothing of the kernel; any other error of CUDA leaves no process to go on with."""
    asked: list[Any] = []
    errors: list[Exception] = [torch.OutOfMemoryError("full"), RuntimeError("CUDA error: an illegal access\nmore")]
    for error in errors:

        def check(kernel: Kernel, one: AttentionShape, error: Exception = error) -> str:
            raise error

        with pytest.raises(type(error)):
            remembered(MACHINE, tmp_path, check)("cudnn", shape())
    found = remembered(MACHINE, tmp_path, counting("", asked))("cudnn", shape())
    assert (found, asked) == ("ends here with CUDA error: an illegal access", [])


# Of the three families at 1024 x 1024 (SDXL: 1024 and 4096 tokens, and 77 of text).
FULL_SIZE = [
    shape(heads=24, queries=4608, keys=4608, features=128),
    shape(heads=38, queries=4429, keys=4429, features=64),
    shape(batch=4, heads=24, queries=4096, keys=4096, features=64),
    shape(batch=4, heads=10, queries=4096, keys=77, features=64),
    shape(heads=20, queries=1024, keys=1024, features=64),
    shape(heads=24, queries=704, keys=704, features=64, masked=True),
]


@pytest.mark.gpu
def test_kernels_of_this_card(tmp_path: Path) -> None:
    """Within seconds the first time, at once the second. On a card with fused kernels one of them is sound."""
    begin = time.monotonic()
    found = choose_attention(FULL_SIZE, CUDA, tmp_path)
    first = time.monotonic() - begin
    print(found.note, f"{first:.1f} s")
    assert choose_attention(FULL_SIZE, CUDA, tmp_path) == found
    assert first < 30
    assert time.monotonic() - begin - first < 2
    if torch.cuda.get_device_capability() >= (8, 0):
        assert found.kernel in ("cudnn", "flash")


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["flash", "efficient"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sound_kernels_pass(kernel: Kernel, dtype: str) -> None:
    assert find_fault(kernel, shape(heads=8, queries=4096, keys=4096, features=64, dtype=dtype), CUDA) == ""
    assert find_fault(kernel, shape(heads=8, queries=704, keys=704, features=64, dtype=dtype, masked=True), CUDA) == ""


@pytest.mark.gpu
@pytest.mark.parametrize("length", [64, 192, 704, 1088, 640])
def test_masks_never_give_undefined_gradients(length: int) -> None:
    """pytorch#196678, with logits of -120."""
    assert find_fault("cudnn", shape(queries=length, keys=length, features=64, masked=True), CUDA) == ""


class Kernels(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.add(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of torch's compiler
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_models_gradients_are_those_of_flash(family: str, compiled: bool, tmp_path: Path) -> None:
    """Every adapter's, twice, with other layouts of the same shapes between; as they are, and in compiled blocks."""
    from eridiff.models.precision import compile_fixed_shapes, repeated_layers

    params = params_of({"precision": "bf16"})
    run = prepare_run(params, load_family(family), source(family), source(family).config("vae"), Machine(device=CUDA))
    batch = random_set(family, tmp_path, params).batch([0, 1], 1, 0).to(CUDA)
    found: dict[str, list[Tensor]] = {}
    for kernel in ("flash", "cudnn", "cudnn"):
        torch._dynamo.reset()
        for tensor in run.adapters.values():
            tensor.grad = None
        with use_attention(kernel):
            if compiled:
                for layer in repeated_layers(run.denoiser):
                    layer._compiled_call_impl = None
                compile_fixed_shapes(repeated_layers(run.denoiser))
                training.do_step(run, batch, 1)
                kernels = set()
            else:
                with Kernels() as mode:
                    training.do_step(run, batch, 1)
                kernels = {name for name in mode.calls if "scaled_dot_product" in name}
        if kernel == "cudnn" and not compiled:
            assert {"cudnn" in name for name in kernels} == {True}
        found.setdefault(kernel, []).append(torch.cat([t.grad.flatten() for t in run.adapters.values()]))  # type: ignore[union-attr]
    right = found["flash"][0]
    for gradients in found["cudnn"]:
        assert float(functional.cosine_similarity(gradients, right, dim=0)) > 0.999
