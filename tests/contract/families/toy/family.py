"""Toy: a mixer of pixels over 4-channel latents, trained by rectified flow; words are hashed, not learned.

Legend: B batch, C channels, H W sides of latents, L text tokens, D text width.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eridiff.family import Sizes, TextEncoders
from eridiff.versions import family_versions

if TYPE_CHECKING:
    from torch import Tensor, nn

OBJECTIVE: Literal["ddpm", "flow"] = "flow"
PIPELINE = "eridiff.families.toy.models.ToyPipeline"
PIPELINE_OPTIONS = {"channels": 3}
PARTS = {"vae": ("vae",), "text": ("text_encoder", "tokenizer"), "denoiser": ("mixer", "scheduler")}
MODELS = {
    "vae": "eridiff.families.toy.models.Vae",
    "text_encoder": "eridiff.families.toy.models.TextEncoder",
    "mixer": "eridiff.families.toy.models.Mixer",
}
TOKENIZERS = {"tokenizer": "eridiff.families.toy.models.Words"}
DENOISER = "mixer"
SIDE_MULTIPLE = 8
PATCH = 1
BLOCKS: tuple[str, ...] = ("Block",)
TARGET_SETS = {"attention": r"blocks\.\d+\.(query|key)", "all-linear": r"blocks\.\d+\.(query|key|unused)"}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {"euler": ("FlowMatchEulerDiscreteScheduler", {})}
MAX_TOKENS = (8,)
GUIDANCE = False
NEGATIVE = False
VERSIONS = family_versions(Path(__file__).parent)


def unused_modules(config: Mapping[str, Any]) -> dict[str, str]:
    """The modules that the forward pass never calls."""
    return {f"blocks.{i}.unused": "is never called" for i in range(config["num_blocks"])}


def embed_prompt(
    pipeline: Any, prompt: str, negative: str | None, guided: bool, max_tokens: int
) -> dict[str, "Tensor"]:
    """prompt_embeds alone."""
    return encode_text(TextEncoders(pipeline.tokenizers, pipeline.encoders), [prompt], max_tokens)


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
