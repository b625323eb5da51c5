"""The step of diffusers' LoRA scripts (examples/dreambooth/train_dreambooth_lora_{sdxl,sd3,flux}.py), tensors cached.

Written from reading them at diffusers 0.42: accelerate in bf16 around a bf16 model, peft's adapters in fp32, gradient
checkpointing, eight-bit AdamW where bitsandbytes runs, sigmas looked up in the scheduler, the loss read at every step.
The adapted modules are the row's, the same as eridiff's.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.randombase import RandomBase, Settle
from benchmarks.scriptloss import Cached, Options, as_cached, is_packed, make_draw, make_loss
from eridiff.models.lora import target_modules
from eridiff.models.precision import avoid_cudnn_attention
from eridiff.models.quantise import Storage, is_quantised
from eridiff.params.train import LoraParams

RATE, MAX_GRAD_NORM = 1e-4, 1.0  # the scripts' defaults
MIXED = {"bf16": "bf16", "fp32": "no"}  # train.precision -> --mixed_precision


def adapt(base: RandomBase, model: Any, lora: LoraParams) -> list[nn.Parameter]:
    """Add the script's adapter: peft's, gaussian, in fp32."""
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    unused = base.family.unused_modules(base.denoiser_config)
    modules = target_modules(model, base.family.TARGET_SETS, lora.targets, unused)
    model.requires_grad_(False)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, init_lora_weights="gaussian", target_modules=modules)
    model.add_adapter(config)
    cast_training_params(model, dtype=torch.float32)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def settle_in(quantise: str | None, device: torch.device) -> Settle | None:
    """How the frozen weights of the blocks are stored: bitsandbytes' four bits; or fp8, expanded for each product."""
    if quantise == "nf4":
        return Storage(kind="nf4", device=device).settle

    def settle(model: nn.Module, name: str) -> None:
        path, _, last = name.rpartition(".")
        if last == "weight" and is_quantised(model, path):
            layer: Any = model.get_submodule(path)
            dtype = layer.weight.dtype
            layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn)
            layer.forward = lambda x: functional.linear(x, layer.weight.to(dtype), layer.bias)

    return settle if quantise == "fp8" else None


def script_step(
    base: RandomBase, batch: int, targets: str, quantise: str | None, device: torch.device
) -> Callable[[], Tensor]:
    """A function that trains one step and returns its loss."""
    from accelerate import Accelerator
    from diffusers.optimization import get_scheduler

    if is_packed(base):
        avoid_cudnn_attention()  # where it is the default, Flux's script as it is does not train (torch 2.11)
    accelerator = Accelerator(mixed_precision=MIXED[base.precision], cpu=device.type == "cpu")
    model: Any = base.denoiser(device, settle_in(quantise, device))
    parameters = adapt(base, model, LoraParams(rank=16, alpha=16.0, targets=targets))
    model.enable_gradient_checkpointing()
    model.train()
    optimizer = make_optimizer(parameters, device)
    schedule = get_scheduler("constant", optimizer=optimizer)
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    batches = cycle(cached_batches(base, batch, device))
    draw, loss_of = make_draw(base, device), make_loss(base, Options())

    def step() -> Tensor:
        cached = next(batches)
        with accelerator.accumulate(model):
            loss = loss_of(model, cached, draw(cached))
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        return torch.tensor(loss.detach().item())  # read for the progress bar, at every step

    return step


def make_optimizer(parameters: Sequence[nn.Parameter], device: torch.device) -> Any:
    """`--use_8bit_adam` where it runs."""
    options = {"lr": RATE, "betas": (0.9, 0.999), "weight_decay": 1e-4, "eps": 1e-8}
    if device.type != "cuda" or find_spec("bitsandbytes") is None:
        return torch.optim.AdamW(parameters, **options)
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(parameters, **options)


def cached_batches(base: RandomBase, batch: int, device: torch.device) -> list[Cached]:
    """The training set's pictures in batches, as `--cache_latents` leaves them."""
    data = base.training_set(0)
    places = range(0, len(data.samples), batch)
    chosen = [[number % len(data.samples) for number in range(first, first + batch)] for first in places]
    return [as_cached(data.batch(numbers, 0, 0).to(device), base.dtype) for numbers in chosen]
