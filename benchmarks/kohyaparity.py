"""sd-scripts' loss of SDXL on eridiff's weights, adapters and draws, from a checkout of theirs.

Their UNet gets the same weights under their names, by their own conversion; their network gets the adapters of
`train.lora.targets: all-linear`, which are the modules of their default network.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.checkout import importing
from benchmarks.kohyastep import UNNEEDED, make_models, predict_sdxl
from benchmarks.randombase import RandomBase
from benchmarks.scriptloss import Drawn, as_cached
from benchmarks.scriptstep import MIXED
from eridiff.models.load import find_class
from eridiff.training.run import Run
from eridiff.training.step import Example

TARGETS = "all-linear"
HALVES = {"lora_A": "lora_down", "lora_B": "lora_up"}


class KohyaLoss:
    """Their model and network, and the squared error to the noise."""

    def __init__(self, base: RandomBase, run: Run, checkout: Path) -> None:
        from accelerate import Accelerator
        from diffusers import DDPMScheduler

        if base.family.OBJECTIVE != "ddpm" or run.params.lora.targets != TARGETS:
            raise ValueError(f"sd-scripts is compared on SDXL alone, with train.lora.targets '{TARGETS}'")
        self.dtype = base.dtype
        self.accelerator = Accelerator(mixed_precision=MIXED[base.precision], cpu=run.device.type == "cpu")
        self.scheduler = DDPMScheduler.from_config(dict(base.configs["scheduler"]))
        with importing(checkout, UNNEEDED):
            model, network, _ = make_models(base)
            convert = find_class("library.sdxl_model_util.convert_diffusers_unet_state_dict_to_sdxl")
        model.load_state_dict(convert(frozen_tensors(run.denoiser)), strict=True, assign=True)
        lora = run.params.lora
        made = network.create_network(1.0, lora.rank, lora.alpha, None, [], model.requires_grad_(False))
        made.apply_to([], model, False, True)
        made.to(run.device, torch.float32).requires_grad_(True)
        self.model = self.accelerator.prepare(model)
        self.adapters = {name: _tensor(made, name, convert) for name in run.adapters}
        others = sum(parameter.numel() for parameter in made.parameters())
        assert others == sum(tensor.numel() for tensor in self.adapters.values()), "their network has other modules"

    def __call__(self, example: Example, drawn: Drawn) -> Tensor:
        """The loss; gradients are added up."""
        cached = as_cached(example.batch, self.dtype)
        noisy = self.scheduler.add_noise(drawn.latents, drawn.noise, drawn.timesteps).to(self.dtype)
        pred = predict_sdxl(self.model, noisy, drawn.timesteps, cached)
        loss = ((pred.float() - drawn.noise.float()) ** 2).mean(dim=(1, 2, 3)).mean()
        self.accelerator.backward(loss)
        return loss.detach()


def frozen_tensors(denoiser: nn.Module) -> dict[str, Tensor]:
    """The base's own tensors of an adapted denoiser, under the names from before; not copied."""
    state = denoiser.state_dict()
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}


def _tensor(network: Any, name: str, convert: Any) -> nn.Parameter:
    """Their tensor of one of eridiff's names."""
    path, _, rest = name.rpartition(".lora_")
    (theirs,) = convert({f"{path}.weight": torch.zeros(())})
    module = network.get_submodule("lora_unet_" + theirs.removesuffix(".weight").replace(".", "_"))
    found: nn.Parameter = module.get_parameter(f"{HALVES[f'lora_{rest[0]}']}.weight")
    return found
