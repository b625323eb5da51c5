"""Toy's classes, which no library has: its models as diffusers makes them, a tokenizer, a pipeline.

Legend: B batch, C channels, H W sides of latents, N image tokens, L text tokens, D text width.
"""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class Vae(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Means over 8 x 8 pixels, spread over 4 channels."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, scaling_factor: float, shift_factor: float, latent_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, latent_channels, 8, stride=8)

    def encode(self, pixels: Tensor) -> Any:
        mean = self.conv(pixels)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=0.1 * torch.ones_like(mean)))


class TextEncoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """An embedding of words."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 6)

    def forward(self, ids_BL: Tensor) -> Tensor:
        embeds_BLD: Tensor = self.embedding(ids_BL)
        return embeds_BLD


class Words:
    """A tokenizer that hashes: word 0 pads."""

    @classmethod
    def from_pretrained(cls, folder: Path, *, local_files_only: bool) -> "Words":
        assert (folder / "words.txt").is_file() and local_files_only
        return cls()

    def __call__(self, caption: str) -> list[int]:
        return [hashlib.sha256(word.encode()).digest()[0] % 63 + 1 for word in caption.split()]


class Block(nn.Module):
    """The picture asks the text."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.unused = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.out = nn.Linear(6, 4)

    def forward(self, x_BNC: Tensor, text_BLD: Tensor) -> Tensor:
        keys = self.key(text_BLD)
        share = torch.softmax(self.query(x_BNC) @ keys.transpose(1, 2), dim=-1)
        return torch.cat([x_BNC[..., :4] + self.out(share @ keys), x_BNC[..., 4:]], dim=-1)


class Mixer(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Blocks over pixels."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, num_blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(num_blocks))

    def forward(self, latents: Tensor, level: Tensor, text: Tensor) -> Tensor:
        count, channels, height, width = latents.shape
        x = latents.flatten(2).transpose(1, 2)
        x = torch.cat([x, level.to(x).view(-1, 1, 1).expand(count, x.shape[1], 1)], dim=-1)
        for block in self.blocks:
            x = block(x, text)
        return x[..., :channels].transpose(1, 2).reshape(count, channels, height, width)


class ToyPipeline:
    """Euler steps from noise; the first channels are the picture."""

    def __init__(self, vae: Any, text_encoder: Any, tokenizer: Any, mixer: Any, scheduler: Any, channels: int) -> None:
        self.mixer, self.scheduler, self.channels = mixer, scheduler, channels
        self.tokenizers, self.encoders = {"tokenizer": tokenizer}, {"text_encoder": text_encoder}
        self.components = {"mixer": mixer, "scheduler": scheduler}

    def __call__(
        self, prompt_embeds: Any, num_inference_steps: int, width: int, height: int, generator: Any, **_: Any
    ) -> Any:
        """Pictures between 0 and 1, [1, H, W, 3]."""
        x = torch.randn(1, 4, height // 8, width // 8, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.mixer(x, t.view(1) / 1000, prompt_embeds), t, x)[0]
        pixels = torch.sigmoid(x[:, : self.channels]).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
        return SimpleNamespace(images=pixels.permute(0, 2, 3, 1).numpy())
