"""The step of ostris' ai-toolkit, from a checkout of theirs: their network over diffusers' denoiser, on cached tensors.

The loop was written from reading theirs (jobs/process/BaseSDTrainProcess.py, extensions_built_in/sd_trainer): a bf16
model without autocast, fp32 adapters, eight-bit AdamW, guidance 1.0, and at its best settings: blocks compiled
(`compile`, `block_compile`, `compile_dynamic: false`), checkpointing only where activations would not fit. Their UNet
would be compiled as a whole, for minutes: it is left plain. Their quantised bases need optimum-quanto: refused.
"""

from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.checkout import importing
from benchmarks.randombase import RandomBase
from benchmarks.scriptloss import Options, is_packed, make_draw, make_loss
from benchmarks.scriptstep import MAX_GRAD_NORM, MIXED, cached_batches, make_optimizer
from benchmarks.steprow import Row
from eridiff.models.load import find_class

UNNEEDED = ("torchaudio", "torchao", "optimum", "lycoris", "cv2", "torchvision", "oyaml", "av")
STACKS = ("transformer_blocks", "single_transformer_blocks")


def toolkit_step(checkout: Path, base: RandomBase, row: Row, device: torch.device) -> Callable[[], Tensor]:
    """A function that trains one step and returns its loss."""
    from accelerate import Accelerator

    if row.quantise:
        raise ValueError("ai-toolkit quantises by optimum-quanto, which this benchmark does not use")
    accelerator = Accelerator(mixed_precision=MIXED["fp32"], cpu=device.type == "cpu")  # its formats are its own
    model: Any = base.denoiser(device)
    if row.is_checkpointed:
        model.enable_gradient_checkpointing()
    network = make_network(checkout, base, row, model, device)
    parameters = list(network.parameters())
    if device.type == "cuda":
        compile_blocks(model)
    optimizer = accelerator.prepare(make_optimizer(parameters, device))
    batches, draw = cycle(cached_batches(base, row.batch, device)), make_draw(base, device)
    loss_of = make_loss(base, Options(guidance=1.0, precondition=False))
    model.train()

    def step() -> Tensor:
        cached = next(batches)
        with network:
            loss = loss_of(model, cached, draw(cached))
            accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return torch.tensor(loss.detach().item())

    return step


def make_network(checkout: Path, base: RandomBase, row: Row, model: nn.Module, device: torch.device) -> Any:
    """Their LoRA of rank 16 on the row's modules."""
    is_flow = base.family.OBJECTIVE == "flow"
    with importing(checkout, UNNEEDED):
        network = find_class("toolkit.lora_special.LoRASpecialNetwork")(
            text_encoder=[],
            unet=model,
            lora_dim=16,
            alpha=16,
            train_text_encoder=False,
            is_sdxl=not is_flow,
            is_v3=is_flow and not is_packed(base),
            is_flux=is_packed(base),
            transformer_only=True,
            only_if_contains=["attn"] if row.targets == "attention" else None,
        )
        network.force_to(device, torch.float32)
        network._update_torch_multiplier()
        network.apply_to([], model, False, True)
    return network.requires_grad_(True)


def compile_blocks(model: nn.Module) -> None:
    """Each block of a transformer, as their block_compile does."""
    for name in STACKS:
        stack = getattr(model, name, None)
        if isinstance(stack, nn.ModuleList):
            for place, block in enumerate(stack):
                stack[place] = torch.compile(block, dynamic=False)  # type: ignore[assignment]
            torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 2 * len(stack))
