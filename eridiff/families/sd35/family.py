"""SD 3.5 Medium and Large (Esser et al. 2024): MMDiT over 16-channel latents, rectified flow.

Legend: B batch, C channels, H W sides of latents, L text tokens, D text width, P pooled width.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eridiff.family import Sizes, TextEncoders
from eridiff.models.samplers import Spec
from eridiff.models.text_encoders import count_lost, join_hidden_states, name_embeds, token_ids
from eridiff.versions import family_versions

if TYPE_CHECKING:
    from torch import Tensor, nn

OBJECTIVE: Literal["ddpm", "flow"] = "flow"
PIPELINE = "diffusers.StableDiffusion3Pipeline"
PIPELINE_OPTIONS: Mapping[str, Any] = {}
PARTS = {
    "vae": ("vae",),
    "text": ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3"),
    "denoiser": ("transformer", "scheduler"),
}
MODELS = {
    "vae": "diffusers.AutoencoderKL",
    "text_encoder": "transformers.CLIPTextModelWithProjection",
    "text_encoder_2": "transformers.CLIPTextModelWithProjection",
    "text_encoder_3": "transformers.T5EncoderModel",
    "transformer": "diffusers.SD3Transformer2DModel",
}
TOKENIZERS = {
    "tokenizer": "transformers.CLIPTokenizer",
    "tokenizer_2": "transformers.CLIPTokenizer",
    "tokenizer_3": "transformers.T5TokenizerFast",
}
DENOISER = "transformer"
SIDE_MULTIPLE = 16  # the VAE's factor times the patch
PATCH = 2
MAX_TOKENS = (256, 77, 154, 512)  # T5's part; the pipeline's default first
GUIDANCE = False
NEGATIVE = True
BLOCKS: tuple[str, ...] = ("JointTransformerBlock",)
VERSIONS = family_versions(Path(__file__).parent)

_ATTENTION = r"attn2?\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
TARGET_SETS = {
    "attention": r"transformer_blocks\.\d+\." + _ATTENTION,
    "all-linear": (
        r"transformer_blocks\.\d+\.(" + _ATTENTION + r"|ff(_context)?\.net\.(0\.proj|2)|norm1(_context)?\.linear)"
    ),
}
SCHEDULERS: dict[str, Spec] = {
    "euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "heun": ("FlowHeun", {}),
}


def unused_modules(config: Mapping[str, Any]) -> dict[str, str]:
    """The last block throws its text stream away, so the text query never gets a gradient."""
    last = int(config["num_layers"]) - 1
    return {f"transformer_blocks.{last}.attn.add_q_proj": "the last block discards its context output"}


def embed_prompt(
    pipeline: Any, prompt: str, negative: str | None, guided: bool, max_tokens: int
) -> dict[str, "Tensor"]:
    """The prompt's embeddings, and if guided the negative one's, as the pipeline itself makes them."""
    embeds = pipeline.encode_prompt(
        prompt,
        None,
        None,
        negative_prompt=negative,
        do_classifier_free_guidance=guided,
        max_sequence_length=max_tokens,
    )
    return name_embeds(embeds)


def encode_text(encoders: TextEncoders, captions: list[str], max_tokens: int) -> dict[str, "Tensor"]:
    """prompt_embeds [B, 77 + max_tokens, D]: CLIP's joined and padded to T5's width, then T5's; pooled [B, P]."""
    import torch

    names = ("", "_2")
    clips = [encoders.encoders[f"text_encoder{name}"] for name in names]
    hidden, pooled = join_hidden_states(clips, [encoders.tokenizers[f"tokenizer{name}"] for name in names], captions)
    t5 = encoders.encoders["text_encoder_3"]
    ids = token_ids(encoders.tokenizers["tokenizer_3"], captions, max_tokens, next(t5.parameters()).device)
    t5_embeds = t5(ids)[0]  # no attention mask: padding is real conditioning
    padded = torch.nn.functional.pad(hidden, (0, t5_embeds.shape[-1] - hidden.shape[-1]))
    return {
        "prompt_embeds": torch.cat([padded, t5_embeds], dim=-2),
        "pooled_prompt_embeds": torch.cat(pooled, dim=-1),
    }


def tokens_lost(encoders: TextEncoders, caption: str, max_tokens: int) -> int:
    """Tokens beyond T5's limit, the longest of the three."""
    return count_lost(encoders.tokenizers["tokenizer_3"], caption, max_tokens)


def predict(
    denoiser: "nn.Module",
    noisy_latents: "Tensor",
    level: "Tensor",
    text: Mapping[str, "Tensor"],
    sizes: Sizes,
    guidance: float,
) -> "Tensor":
    """The MMDiT's velocity [B, C, H, W] at sigmas `level` [B]; it is told sigma * 1000."""
    answer: Tensor = denoiser(
        hidden_states=noisy_latents,
        timestep=level * 1000,
        encoder_hidden_states=text["prompt_embeds"],
        pooled_projections=text["pooled_prompt_embeds"],
        return_dict=False,
    )[0]
    return answer
