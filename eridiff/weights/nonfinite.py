"""Numbers that are not finite: which weights hold some, and what to say where a model gives some.

Advice looks at what is set: weights are blamed where they are so, a number format where it is set, and
the first layer that went wrong is named where the work can be done again.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eridiff.core.files import canonical_json
from eridiff.formats.safetensors import RawTensor

if TYPE_CHECKING:
    from torch import nn

# Format -> whole number of its size, mask of all but the sign, and the least such number that is infinite (or none).
BITS = {
    "F64": ("<u8", 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
    "F32": ("<u4", 0x7FFFFFFF, 0x7F800000),
    "F16": ("<u2", 0x7FFF, 0x7C00),
    "BF16": ("<u2", 0x7FFF, 0x7F80),
    "F8_E5M2": ("u1", 0x7F, 0x7C),
    "F8_E4M3": ("u1", 0x7F, 0x7F),  # knows no infinity: 0x7F is no number
}
INFINITE = {name: infinite for name, (_, _, infinite) in BITS.items() if name != "F8_E4M3"}
CHUNK = 1 << 20  # numbers at a time: what is computed of them stays in the processor's cache


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A tensor with numbers that are not finite."""

    name: str
    count: int
    total: int
    kinds: str  # NaN, inf

    def described(self) -> str:
        """Name and numbers."""
        return f"{self.name} ({self.count} of {self.total} numbers: {self.kinds})"


def find_broken(name: str, tensor: RawTensor) -> Broken | None:
    """What of a tensor's numbers is not finite; None where all are, or they are whole numbers."""
    if tensor.dtype not in BITS:
        return None
    kind, mask, limit = BITS[tensor.dtype]
    numbers = np.frombuffer(tensor.data, kind)
    space = np.empty(min(CHUNK, len(numbers)), kind)
    count = infinite = 0
    for start in range(0, len(numbers), CHUNK):
        chunk = numbers[start : start + CHUNK]
        sizes = np.bitwise_and(chunk, numbers.dtype.type(mask), out=space[: len(chunk)])
        if int(sizes.max()) >= limit:
            count += int(np.count_nonzero(sizes >= limit))
            infinite += int(np.count_nonzero(sizes == INFINITE.get(tensor.dtype, -1)))
    if not count:
        return None
    kinds = [word for word, found in (("NaN", count - infinite), ("inf", infinite)) if found]
    return Broken(name=name, count=count, total=len(numbers), kinds=" and ".join(kinds))


def scan(tensors: Iterable[tuple[str, RawTensor]]) -> str:
    """JSON of those tensors that are not finite, in order; one is in memory at a time, where the file is mapped."""
    return canonical_json([asdict(found) for name, tensor in tensors if (found := find_broken(name, tensor))])


def read_scan(text: str) -> list[Broken]:
    """What `scan` found."""
    return [Broken(**record) for record in json.loads(text)]


def first_weight(model: "nn.Module", but: str = "") -> str | None:
    """The first of a model's parameters and buffers that is not finite. but: part of the names that are left out."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    floats = [(name, t) for name, t in tensors if t.is_floating_point() and t.element_size() > 1]
    floats = [(name, tensor) for name, tensor in floats if not (but and but in name)]
    return next((name for name, tensor in floats if not tensor.isfinite().all()), None)


class _FirstError(Exception):
    """Ends work at the layer that was first."""


def first_layer(models: Mapping[str, "nn.Module"], again: Callable[[], Any]) -> str | None:
    """The first layer whose output is not finite while the work is done once more; None where none is."""
    names = {module: f"{label}.{name}" for label, model in models.items() for name, module in model.named_modules()}

    def look(module: "nn.Module", given: Any, answer: Any) -> None:
        if _holds_nonfinite(answer):
            raise _FirstError(names[module])

    hooks = [module.register_forward_hook(look) for module in names]
    try:
        again()
    except _FirstError as found:
        return str(found)
    finally:
        for hook in hooks:
            hook.remove()
    return None


def _holds_nonfinite(answer: Any) -> bool:
    import torch

    if isinstance(answer, torch.Tensor):
        return answer.is_floating_point() and not bool(answer.isfinite().all())
    if isinstance(answer, Mapping):
        return any(map(_holds_nonfinite, answer.values()))
    return isinstance(answer, list | tuple) and any(map(_holds_nonfinite, answer))


def blame(
    models: Mapping[str, "nn.Module"], key: str, dtype: str, again: Callable[[], Any] | None = None, but: str = ""
) -> str:
    """Sentences: why models gave numbers that are not finite, and the way out.

    models: by their names in the base. key, dtype: the param of the number format, and what it is set to. again: does
    the work once more, so that the first layer can be named. but: as in `first_weight`.
    """
    for label, model in models.items():
        if name := first_weight(model, but):
            if ".lora_" in name:
                return f"The LoRA itself is not finite: {label}.{name} is its first such tensor. Train it again."
            return (
                f"The weights of {label} are not finite themselves: {name} is the first such tensor, so no setting "
                "helps. Fetch the base again, or take another; `eridiff base add` names the file."
            )
    first = first_layer(models, again) if again else None
    where = f"All weights are finite{f'; the first layer that was not is {first}' if first else ''}. "
    if dtype == "fp16":
        return f"{where}{key} is fp16, whose range is small: take bf16 or fp32."
    if dtype == "bf16":
        return f"{where}{key} is bf16, which has fp32's range and fewer digits: fp32 may do."
    return f"{where}{key} is {dtype} already: this model does not bear this input. Leave it out, or take another base."
