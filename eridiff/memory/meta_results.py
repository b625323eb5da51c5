"""Results of torch's operators on meta tensors, each computed once for every form of its arguments.

On the meta device an operator takes as long as Python needs to work out shapes, often a millisecond; a denoiser calls
the same ones for each of its blocks. Here the second call makes an empty tensor of the form that the first gave.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

META = torch.device("meta")


@dataclass(frozen=True)
class _Form:
    """Of a new tensor on the meta device, with a storage of its own."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def make(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=META)


@dataclass(frozen=True)
class _Known:
    """What a call gives.

    forms: of new results, None where one is None. Without: a view of its arguments, or the first one, written to.
    """

    kind: type
    forms: tuple[_Form | None, ...]
    flops: int = 0
    is_view: bool = False


@dataclass(frozen=True)
class Called:
    """What a call gave."""

    result: Any
    new: list[Tensor]  # of the results, on the meta device, those that share no storage with an argument
    flops: int  # multiplications and additions of products and convolutions


class MetaResults:
    """What is known of the calls so far."""

    def __init__(self) -> None:
        self._known: dict[Hashable, _Known | None] = {}  # None: to be called each time

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Called:
        """An operator on meta tensors, or on others, which is called."""
        key = _key(func, args, kwargs)
        known = self._known.get(key) if key is not None else None
        if known is not None and known.is_view:
            return Called(func(*args, **kwargs), [], known.flops)
        if known is not None and not known.forms:
            return Called(args[0], [], known.flops)
        if known is not None:
            made = [None if form is None else form.make() for form in known.forms]
            result = made[0] if known.kind is Tensor else known.kind(made)
            return Called(result, [one for one in made if one is not None], known.flops)
        return self._first(key, func, args, kwargs)

    def _first(self, key: Hashable | None, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Called:
        first = _form(args[0]) if args and isinstance(args[0], Tensor) else None
        result = func(*args, **kwargs)
        formula = flop_registry.get(func.overloadpacket)
        flops = 0 if formula is None else int(formula(*args, **kwargs, out_val=result))
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_meta]
        new = [tensor for tensor in tensors if _storage(tensor) not in given]
        if key is not None and key not in self._known:
            self._known[key] = _known(func, args, first, result, new, flops)
        return Called(result, new, flops)


def _key(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
    """All that the form of a result depends on; None where that cannot be told from the arguments' forms."""
    parts: list[Hashable] = [func]
    for name, value in (*enumerate(args), *kwargs.items()):
        parts.append(name)
        if not _describe(value, parts):
            return None
    return tuple(parts)


def _describe(value: Any, parts: list[Hashable]) -> bool:
    """Add an argument's form to the parts; False where it has none, as a tensor with content."""
    if isinstance(value, Tensor):
        parts += (value.shape, value.stride(), value.dtype)
        return value.is_meta
    if isinstance(value, list | tuple):
        parts += (type(value), len(value))
        return all(_describe(one, parts) for one in value)
    parts += [str(type(value)), value]  # the type, since 1 == 1.0 == True
    return isinstance(value, Hashable)


def _form(tensor: Tensor) -> _Form:
    return _Form(tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _known(
    func: Any, args: tuple[Any, ...], first: _Form | None, result: Any, new: list[Tensor], flops: int
) -> _Known | None:
    """What to remember of a call; None where a later one must be looked at by itself."""
    results = list(result) if isinstance(result, list | tuple) else [result]
    if any(isinstance(one, list | tuple) or (one is not None and not isinstance(one, Tensor)) for one in results):
        return None
    kind, tensors = type(result), [one for one in results if one is not None]
    if func._schema.is_mutable:
        written = [argument.name for argument in func._schema.arguments if argument.alias_info is not None]
        is_first = written == [func._schema.arguments[0].name] and result is args[0] and _form(result) == first
        return _Known(kind, (), flops) if is_first else None
    if not new:
        return _Known(kind, (), flops, is_view=True)
    if len({_storage(tensor) for tensor in new}) < len(tensors) or not all(map(_is_whole, new)):
        return None
    kind = Tensor if isinstance(result, Tensor) else kind
    return _Known(kind, tuple(one if one is None else _form(one) for one in results), flops)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _is_whole(tensor: Tensor) -> bool:
    """Whether a tensor is all of its storage, on the meta device, so that its form tells its bytes."""
    own = tensor.untyped_storage().nbytes()
    return tensor.is_meta and not tensor.storage_offset() and own == _form(tensor).make().untyped_storage().nbytes()
