"""Toy: a mixer of pixels over 4-channel latents, trained by rectified flow; words are hashed, not learned.

Legend: B batch, C channels, H W sides of latents, L text tokens, D text width.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from eridiff.families import Sizes, TextEncoders
from eridiff.schedulers import make_scheduler
from eridiff.sources import ModelSource
from eridiff.versions import family_versions

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

OBJECTIVE: Literal["ddpm", "flow"] = "flow"
PIPELINE = "ToyPipeline"
PARTS = {"vae": ("vae",), "text": ("text_encoder", "tokenizer"), "denoiser": ("mixer", "scheduler")}
DENOISER = "mixer"
SIDE_MULTIPLE = 8
PATCH = 1
TARGETS = {"attention": r"blocks\.\d+\.(query|key)", "all-linear": r"blocks\.\d+\.(query|key|unused)"}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {"euler": ("FlowMatchEulerDiscreteScheduler", {})}
MAX_TOKENS = (8,)
GUIDANCE = False
NEGATIVE = False
VERSIONS = family_versions(Path(__file__).parent)


def dead_modules(config: Mapping[str, Any]) -> dict[str, str]:
    """The modules that the forward pass never calls."""
    return {f"blocks.{i}.unused": "is never called" for i in range(config["num_blocks"])}


def make_vae() -> Any:
    """Means over 8 x 8 pixels, spread over 4 channels."""
    import torch
    from torch import nn

    class Vae(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 8, stride=8)

        def encode(self, pixels: torch.Tensor) -> Any:
            mean = self.conv(pixels)
            return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=0.1 * torch.ones_like(mean)))

    return Vae()


def make_text_encoder() -> Any:
    """An embedding of 64 words."""
    from torch import nn

    return nn.Sequential(nn.Embedding(64, 6))


def make_mixer() -> Any:
    """Two blocks over pixels: the picture asks the text."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.unused = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.out = nn.Linear(6, 4)

        def forward(self, x_BNC: torch.Tensor, text_BLD: torch.Tensor) -> torch.Tensor:
            keys = self.key(text_BLD)
            share = torch.softmax(self.query(x_BNC) @ keys.transpose(1, 2), dim=-1)
            return torch.cat([x_BNC[..., :4] + self.out(share @ keys), x_BNC[..., 4:]], dim=-1)

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(2))

        def forward(self, latents: torch.Tensor, level: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            count, channels, height, width = latents.shape
            x = latents.flatten(2).transpose(1, 2)
            x = torch.cat([x, level.to(x).view(-1, 1, 1).expand(count, x.shape[1], 1)], dim=-1)
            for block in self.blocks:
                x = block(x, text)
            return x[..., :channels].transpose(1, 2).reshape(count, channels, height, width)

    return Mixer()


def load(model: Any, source: ModelSource, component: str, dtype: "torch.dtype") -> "nn.Module":
    """A module with the weights of a component's folder, frozen, in eval mode, on the CPU."""
    from eridiff.tensorfile import load_tensors

    model.load_state_dict(load_tensors(source.folders[component] / "model.safetensors"))
    frozen: nn.Module = model.to(dtype).requires_grad_(False).eval()
    return frozen


def load_vae(source: ModelSource, dtype: "torch.dtype") -> "nn.Module":
    """The VAE."""
    return load(make_vae(), source, "vae", dtype)


def load_text_encoders(source: ModelSource, dtype: "torch.dtype") -> TextEncoders:
    """The embedding; its tokenizer is a hash."""

    def words(caption: str) -> list[int]:
        return [hashlib.sha256(word.encode()).digest()[0] % 63 + 1 for word in caption.split()]

    encoder = load(make_text_encoder(), source, "text_encoder", dtype)
    return TextEncoders(tokenizers={"tokenizer": words}, encoders={"text_encoder": encoder})


def load_denoiser(source: ModelSource, dtype: "torch.dtype") -> "nn.Module":
    """The mixer."""
    return load(make_mixer(), source, "mixer", dtype)


class Pipeline:
    """Euler steps from noise; the first three channels are the picture."""

    def __init__(self, denoiser: Any, scheduler: Any, text: TextEncoders | None) -> None:
        self.denoiser, self.scheduler, self.text = denoiser, scheduler, text
        self.components = {"denoiser": denoiser, "scheduler": scheduler}

    def __call__(
        self, prompt_embeds: Any, num_inference_steps: int, width: int, height: int, generator: Any, **_: Any
    ) -> Any:
        """Pictures between 0 and 1, [1, H, W, 3]."""
        import torch

        x = torch.randn(1, 4, height // 8, width // 8, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.denoiser(x, t.view(1) / 1000, prompt_embeds), t, x)[0]
        pixels = torch.sigmoid(x[:, :3]).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
        return SimpleNamespace(images=pixels.permute(0, 2, 3, 1).numpy())


def make_pipeline(
    source: ModelSource,
    scheduler: str,
    *,
    text: TextEncoders | None = None,
    vae: "nn.Module | None" = None,
    denoiser: "nn.Module | None" = None,
) -> Any:
    """The pipeline above."""
    return Pipeline(denoiser, make_scheduler(SCHEDULERS, scheduler, source.config("scheduler")), text)


def embed_prompt(
    pipeline: Any, prompt: str, negative: str | None, guided: bool, max_tokens: int
) -> dict[str, "Tensor"]:
    """prompt_embeds alone."""
    return encode_text(pipeline.text, [prompt], max_tokens)


def encode_text(encoders: TextEncoders, captions: list[str], max_tokens: int) -> dict[str, "Tensor"]:
    """prompt_embeds [B, max_tokens, 6]: word 0 pads."""
    import torch

    rows = [encoders.tokenizers["tokenizer"](caption)[:max_tokens] for caption in captions]
    ids = torch.tensor([row + [0] * (max_tokens - len(row)) for row in rows])
    return {"prompt_embeds": encoders.encoders["text_encoder"](ids)}


def tokens_lost(encoders: TextEncoders, caption: str, max_tokens: int) -> int:
    """Words beyond the limit."""
    return max(0, len(encoders.tokenizers["tokenizer"](caption)) - max_tokens)


def predict(
    denoiser: "nn.Module",
    noisy_latents: "Tensor",
    level: "Tensor",
    text: Mapping[str, "Tensor"],
    sizes: Sizes,
    guidance: float,
) -> "Tensor":
    """The mixer's velocity [B, C, H, W]."""
    answer: Tensor = denoiser(noisy_latents, level, text["prompt_embeds"])
    return answer
