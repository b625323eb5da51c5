"""Activation checkpointing of n of a denoiser's m repeated blocks, inside the blocks' own forward pass.

A checkpointed block keeps its inputs alone and is computed again in the backward pass. Since the checkpoint stands
inside `forward`, a compiled forward contains it: the partitioner then keeps what is free to keep, and the attention's
output, the costliest thing to compute again for its size. In eager mode all of the block is computed again: choosing by
operator would cost the host more than attention takes on the GPU. Both give the gradients of a block that keeps all.
"""

from collections.abc import Sequence
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

# Attributes of a block: whether it is checkpointed (compiled again where that changes), and its class's forward, which
# compilers do not find by way of classes that diffusers marks for them.
RECOMPUTED, PLAIN = "_eridiff_recomputed", "_eridiff_plain"


def repeated_blocks(denoiser: nn.Module, classes: Sequence[str]) -> list[nn.Module]:
    """The blocks of these classes, those first whose checkpointing frees most bytes for each operation done again.

    Classes come in that order (Family.BLOCKS). Within one, narrow blocks come first: what a block of width D keeps
    grows as D, its products as D^2. Of equal ones the earlier come first: when they are computed again, the later
    ones' activations are gone already.
    """
    found = [module for module in denoiser.modules() if type(module).__name__ in classes]
    return sorted(found, key=lambda block: (classes.index(type(block).__name__), _width(block)))


def _width(block: nn.Module) -> int:
    """The most features that a layer of a block takes in: not touched by adapters or quantising."""
    layers = list(block.modules())
    linear = [layer.in_features for layer in layers if isinstance(layer, nn.Linear)]
    return max(linear + [layer.in_channels for layer in layers if isinstance(layer, nn.Conv2d)], default=0)


def recompute(blocks: Sequence[nn.Module], count: int) -> None:
    """Checkpoint the first `count` of the blocks, and no other. May be called again with another count at any step.

    Before the first call a block's forward must be its class's own: compile after it.
    """
    for place, block in enumerate(blocks):
        own = vars(block)
        if RECOMPUTED not in own:
            assert "forward" not in own, f"{type(block).__name__}: its forward is wrapped already"
            own[PLAIN], own["forward"] = type(block).forward, MethodType(_forward, block)
        own[RECOMPUTED] = place < count


def recomputed(blocks: Sequence[nn.Module]) -> int:
    """How many of the blocks are checkpointed."""
    return sum(vars(block).get(RECOMPUTED, False) for block in blocks)


def _forward(block: Any, *args: Any, **kwargs: Any) -> Any:
    """A block's forward pass, checkpointed if it is to be. Not a closure: equal blocks share one compiled graph.

    No state of random generators is kept: no block of a denoiser draws (adapters have no dropout), and reading it is
    not allowed while a CUDA graph is captured.
    """
    plain = partial(block._eridiff_plain, block)
    if not (block._eridiff_recomputed and torch.is_grad_enabled()):
        return plain(*args, **kwargs)
    options: dict[str, Any] = {"context_fn": _keeping_attention} if torch.compiler.is_compiling() else {}
    return checkpoint(plain, *args, use_reentrant=False, preserve_rng_state=False, **options, **kwargs)


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep what attention kernels return (flash, cuDNN, efficient, the CPU's); the partitioner judges the rest."""
    return CheckpointPolicy.MUST_SAVE if "attention" in str(operator) else CheckpointPolicy.PREFER_RECOMPUTE


_keeping_attention = partial(create_selective_checkpoint_contexts, _policy)
