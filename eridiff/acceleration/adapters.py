"""LoRA computed in the base's number format, from fp32 adapters: y = base(x) + s (x A^T) B^T.

peft's layers cast x to the adapters' fp32 and back and multiply in fp32. Here the adapters stay fp32 where the
optimizer moves them, and each step computes with copies in the base's format.

Legend: I O inputs and outputs of a layer, r rank.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class LowRankLinear(nn.Module):
    """A frozen linear layer with an adapter in its own format."""

    def __init__(self, base: nn.Module, down: nn.Parameter, up: nn.Parameter, scale: float) -> None:
        """down [r, I], up [O, r]."""
        super().__init__()
        self.base_layer = base
        self.lora_down, self.lora_up, self.scale = down, up, scale

    def forward(self, input: Tensor) -> Tensor:
        """[..., I] => [..., O]."""
        output: Tensor = self.base_layer(input)
        narrow = input.flatten(0, -2) @ self.lora_down.T
        return torch.addmm(output.flatten(0, -2), narrow, self.lora_up.T, alpha=self.scale).view(output.shape)


class WorkingAdapters:
    """Copies of fp32 adapters in the base's format, with which a denoiser computes from now on."""

    def __init__(self, denoiser: nn.Module, adapters: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        """Put a LowRankLinear into the place of each of peft's layers. adapters: of eridiff/models/lora.py."""
        self.masters = list(adapters.values())
        self.copies = [
            master if dtype == torch.float32 else nn.Parameter(master.detach().to(dtype)) for master in self.masters
        ]
        by_name: dict[str, Any] = dict(zip(adapters, self.copies, strict=True))
        for path in sorted({name.rpartition(".lora_")[0] for name in adapters}):
            layer: Any = denoiser.get_submodule(path)
            down, up = (by_name[f"{path}.lora_{half}.weight"] for half in "AB")
            parent, _, place = path.rpartition(".")
            low_rank = LowRankLinear(layer.base_layer, down, up, float(layer.scaling["default"]))
            setattr(denoiser.get_submodule(parent), place, low_rank)
        for master in self.masters:
            master.grad = torch.zeros_like(master)

    def refresh(self) -> None:
        """Copy the adapters, after the optimizer moved them."""
        if self.copies[0] is not self.masters[0]:
            with torch.no_grad():
                torch._foreach_copy_(self.copies, self.masters)

    def add_gradients(self, loss: Tensor, *, first: bool) -> None:
        """Add the loss's gradients to the adapters', in fp32; of the first micro-batch of a step, put them there."""
        gradients = torch.autograd.grad(loss, self.copies)
        kept: Any = [master.grad for master in self.masters]
        if first:
            torch._foreach_copy_(kept, list(gradients))
        else:
            torch._foreach_add_(kept, [gradient.float() for gradient in gradients])
