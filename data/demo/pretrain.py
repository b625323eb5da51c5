"""Train one of the demo's bases, text encoders and denoiser together, on one GPU.

    python -m data.demo.pretrain FOLDER --drawings drawings.zip --minutes 16

FOLDER is a layout (data/demo/layouts.py) with its trained VAE. What is trained is the sum over SUBJECTS and styles
in data/demo/drawings.py; no neon outline is among it. The family's own code encodes text and predicts. With --stop-at
0.5 --state FILE half of it is done, and the same call without --stop-at does the rest.

Legend: B batch, C H W latents, numbers of captions instead of captions wherever "captions" goes into encode_text.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from data.demo.bank import SEED, SIZES, Bank, TokenBank, make_bank
from data.demo.drawings import read_pack
from data.demo.layouts import PARTS, save_model, write
from eridiff.family import Sizes, TextEncoders, load_family
from eridiff.training.objectives import alphas_cumprod

BATCH, WARM_UP, DROPOUT, DECAY = 256, 300, 0.1, 0.9995
DISTILLED = 0.35  # last part of a guidance-distilled base's training: it learns its own guided answers
GUIDANCE = (1.0, 4.5)


@dataclass
class Base:
    """What is trained."""

    family: Any
    encoders: TextEncoders
    denoiser: nn.Module
    scheduler: dict[str, Any]
    zeros: bool  # whether its pipeline puts zeros in place of the empty prompt's embeddings

    def copy(self) -> Base:
        """The same weights in modules of their own; tokens are shared."""
        encoders = {name: copy.deepcopy(encoder) for name, encoder in self.encoders.encoders.items()}
        text = TextEncoders(self.encoders.tokenizers, encoders)
        return Base(self.family, text, copy.deepcopy(self.denoiser), self.scheduler, self.zeros)

    def compile(self) -> None:
        """Let the denoiser's kernels be fused, one graph a size."""
        if next(self.denoiser.parameters()).is_cuda:
            torch._dynamo.config.recompile_limit = 64  # sizes, with and without gradients
            self.denoiser.compile(dynamic=False)

    def weights(self) -> list[dict[str, Tensor]]:
        return [module.state_dict() for module in self.modules()]

    def load_weights(self, weights: list[dict[str, Tensor]]) -> None:
        for module, values in zip(self.modules(), weights, strict=True):
            module.load_state_dict(values)

    def modules(self) -> list[nn.Module]:
        return [*self.encoders.encoders.values(), self.denoiser]

    def parameters(self) -> list[nn.Parameter]:
        return [p for module in self.modules() for p in module.parameters()]

    def predict(self, noisy: Tensor, level: Tensor, captions: Tensor, size: tuple[int, int], guidance: float) -> Tensor:
        """The denoiser's answer [B, C, H, W]."""
        text = self.family.encode_text(self.encoders, captions, 77)
        count = len(noisy)
        if self.zeros:  # for half of the batch, so that the encoded empty caption is learned too
            kept = (captions != 0) | (torch.arange(count, device=captions.device) % 2 == 0)
            text = {name: value * kept.view(-1, *[1] * (value.ndim - 1)) for name, value in text.items()}
        sizes = Sizes.of(original=[size] * count, crop=[(0, 0)] * count, target=size).map(lambda t: t.to(noisy.device))
        answer: Tensor = self.family.predict(self.denoiser, noisy, level, text, sizes, guidance)
        return answer


def load_base(folder: Path, texts: list[str], device: torch.device) -> tuple[str, Base, Any]:
    """The family's name, the untrained base in fp32 with its token banks, and the trained VAE."""
    import diffusers
    import transformers

    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    name = next(family for family, parts in PARTS.items() if f"{parts[0]}Pipeline" == index["_class_name"])
    module: ModuleType = load_family(name)  # type: ignore[assignment]
    models: dict[str, Any] = {}
    tokenizers: dict[str, Any] = {}
    for part, kind in index.items():
        if isinstance(kind, list) and part.startswith("tokenizer"):
            tokenizers[part] = getattr(transformers, kind[1]).from_pretrained(folder / part)
        elif isinstance(kind, list) and part != "scheduler":
            models[part] = untrained(kind[1], folder / part).to(device, torch.float32)
    models.pop("vae")
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32).to(device).eval()
    denoiser = models.pop(module.DENOISER)
    banks = {part: TokenBank(tokenizer, texts, device) for part, tokenizer in tokenizers.items()}
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    zeros = index.get("force_zeros_for_empty_prompt", False)
    return name, Base(module, TextEncoders(banks, models), denoiser, scheduler, zeros), vae


def untrained(kind: str, folder: Path) -> nn.Module:
    """A model of a diffusers or transformers class as its config says, with the library's initial weights."""
    import diffusers
    import transformers

    if hasattr(diffusers, kind):
        made = getattr(diffusers, kind)
        return made.from_config(made.load_config(folder))  # type: ignore[no-any-return]
    made = getattr(transformers, kind)
    return made(made.config_class.from_pretrained(folder))  # type: ignore[no-any-return]


def load_trained(base: Base, folder: Path) -> None:
    """Put a trained base's weights in."""
    for part, module in {**base.encoders.encoders, base.family.DENOISER: base.denoiser}.items():
        (path,) = (folder / part).glob("*.safetensors")
        names = module.state_dict()
        weights = {  # save_model adds a level that transformers 5 drops
            name if name in names else name.removeprefix("text_model."): tensor
            for name, tensor in safetensors.torch.load_file(path).items()
        }
        missing, unexpected = module.load_state_dict(weights, strict=False)
        if unexpected or set(missing) - {"encoder.embed_tokens.weight"}:  # tied to shared.weight
            raise SystemExit(f"{path}: missing {missing}, unexpected {unexpected}")


def start_at_rest(denoiser: nn.Module) -> None:
    """Let a transformer's modulations and last layer begin at zero, as diffusion transformers are trained."""
    with torch.no_grad():
        for name, module in denoiser.named_modules():
            if isinstance(module, nn.Linear) and (name.endswith(".linear") or name == "proj_out"):
                module.weight.zero_()
                if module.bias is not None:
                    module.bias.zero_()


class Noise:
    """Noise levels, noisy latents, targets and weights of one objective."""

    def __init__(self, base: Base, device: torch.device) -> None:
        self.flow = base.family.OBJECTIVE == "flow"
        self.abar = None if self.flow else alphas_cumprod(base.scheduler).to(device)

    def mix(self, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """latents [B, C, H, W] => noisy, level [B], target, weight [B, 1, 1, 1]."""
        count, device = len(latents), latents.device
        uniform = torch.rand(count, generator=generator, device=device)
        noise = torch.randn(latents.shape, generator=generator, device=device)
        if self.abar is None:
            normal = torch.randn(count, generator=generator, device=device)
            sigma = torch.where(uniform < 0.5, uniform * 2, torch.sigmoid(normal))
            sigma = torch.where(uniform < 0.5, sigma, 3 * sigma / (1 + 2 * sigma))  # as samplers visit them
            mixed = sigma.view(-1, 1, 1, 1)
            return (1 - mixed) * latents + mixed * noise, sigma, noise - latents, torch.ones_like(mixed)
        level = (uniform * len(self.abar)).long()
        abar = self.abar[level].view(-1, 1, 1, 1)
        # Without this weight the last steps, where a picture's mean is decided, teach too little: wrong colours.
        weight = ((1 - abar) / abar).clamp(1, 40)
        return abar.sqrt() * latents + (1 - abar).sqrt() * noise, level, noise, weight / 4


@dataclass(kw_only=True)
class Training:
    """A base in training: its weights, their moving average, the optimizer, and how much is done."""

    base: Base
    minutes: float
    rate: float
    device: torch.device
    step: int = 0
    share: float = 0.0  # of the time that is done
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator = torch.Generator(self.device).manual_seed(SEED)
        self.noise = Noise(self.base, self.device)
        self.average = self.base.copy()
        self.teacher: Base | None = None
        fused = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.base.parameters(), lr=self.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=fused
        )

    def state(self) -> dict[str, Any]:
        """All that goes on in a later process."""
        modules = [base.weights() for base in (self.base, self.average, self.teacher) if base]
        return {
            "modules": modules,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "progress": (self.step, self.share, self.losses),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from state()."""
        if len(state["modules"]) == 3:
            self.teacher = self.base.copy()
        for base, weights in zip((self.base, self.average, self.teacher), state["modules"], strict=False):
            assert base
            base.load_weights(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.step, self.share, self.losses = state["progress"]

    def run(self, bank: Bank, until: float) -> None:
        """Train until this share of the minutes. The clock starts when each size was seen: by then kernels are made."""
        begin, before, compiled = time.monotonic(), self.share, self.step + len(SIZES)
        while self.share < until:
            if self.step <= compiled:
                begin = time.monotonic()
            self.share = min(1.0, before + (time.monotonic() - begin) / (60 * self.minutes))
            if self.teacher is None and self.base.family.GUIDANCE and self.share > 1 - DISTILLED:
                self.teacher = self.average.copy()
                self.teacher.compile()
            loss = self.take_step(bank)
            if self.step % 500 == 0:
                self.losses.append(round(loss.item(), 4))
                print(f"step {self.step}, {100 * self.share:.0f} %, loss {self.losses[-1]}", flush=True)

    def take_step(self, bank: Bank) -> Tensor:
        """Draw, mix, predict, compare."""
        rate = min(1, (self.step + 1) / WARM_UP) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.share)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * rate
        size, guidance = SIZES[self.step % len(SIZES)], 1.0
        latents, captions = bank.draw(size, BATCH, self.generator)
        kept = torch.rand(BATCH, generator=self.generator, device=self.device) >= DROPOUT
        noisy, level, target, weight = self.noise.mix(latents, self.generator)
        with torch.autocast(self.device.type, torch.bfloat16):
            if self.teacher is None:
                captions = captions * kept
            else:
                guidance = random.Random(self.step).uniform(*GUIDANCE)
                target = guided(self.teacher, noisy, level, captions, size, guidance)
            answer = self.base.predict(noisy, level, captions, size, guidance)
        loss = (weight * (answer.float() - target.float()).square()).mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.base.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            decay = min(DECAY, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.average.parameters(), self.base.parameters(), 1 - decay)
        self.step += 1
        return loss

    def report(self) -> dict[str, Any]:
        """What was done, for the record."""
        return {
            "steps": self.step, "minutes": round(self.minutes * self.share, 2), "batch": BATCH, "losses": self.losses
        }  # fmt: skip


@torch.no_grad()
def guided(
    teacher: Base, noisy: Tensor, level: Tensor, captions: Tensor, size: tuple[int, int], scale: float
) -> Tensor:
    """What the undistilled base answers under classifier-free guidance."""
    without = teacher.predict(noisy, level, torch.zeros_like(captions), size, 1.0)
    return without + scale * (teacher.predict(noisy, level, captions, size, 1.0) - without)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small base.")
    parser.add_argument("folder", type=Path, help="a layout with its trained vae/")
    parser.add_argument("--drawings", type=Path, required=True, help="zip of data/demo/drawings.py")
    parser.add_argument("--minutes", type=float, default=16.0)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--start", type=Path, help="a trained base to begin with")
    parser.add_argument("--stop-at", type=float, default=1.0, help="share of the minutes after which to stop")
    parser.add_argument("--state", type=Path, help="file to go on from, if it is there, and to write")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.enable_cudnn_sdp(False)  # its backward gives wrong gradients here (eridiff/models/precision.py)
    torch.manual_seed(SEED)
    _, _, vae = load_base(arguments.folder, [""], device)
    bank = make_bank(read_pack(arguments.drawings), vae, device)
    name, base, _ = load_base(arguments.folder, bank.texts, device)
    if arguments.start:
        load_trained(base, arguments.start)
    elif base.family.OBJECTIVE == "flow":
        start_at_rest(base.denoiser)
    counts = {size: len(latents) for size, latents in bank.mean.items()}
    print(f"{name}: pictures {counts}, {sum(p.numel() for p in base.parameters()) / 1e6:.2f} M parameters", flush=True)
    training = Training(base=base, minutes=arguments.minutes, rate=arguments.rate, device=device)
    if arguments.state and arguments.state.is_file():
        training.load_state(torch.load(arguments.state, map_location=device, weights_only=True))
    base.compile()
    training.run(bank, arguments.stop_at)
    if arguments.state:
        torch.save(training.state(), arguments.state)
    for part, encoder in training.average.encoders.encoders.items():
        save_model(encoder, arguments.folder / part)
    save_model(training.average.denoiser, arguments.folder / base.family.DENOISER)
    write(arguments.folder / "denoiser.report.json", training.report())
    print(f"{name}: {training.step} steps", flush=True)


if __name__ == "__main__":
    main()
