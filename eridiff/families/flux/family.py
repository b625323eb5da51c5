"""Flux.1 dev and schnell: double and single stream transformer over packed 16-channel latents, rectified flow.

Legend: B batch, C channels, H W sides of latents, N = (H/2)(W/2) image tokens, L text tokens, P pooled width.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from einops import rearrange

from eridiff.family import Sizes, TextEncoders
from eridiff.models.samplers import Spec
from eridiff.models.text_encoders import count_lost, token_ids
from eridiff.versions import family_versions

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

OBJECTIVE: Literal["ddpm", "flow"] = "flow"
PIPELINE = "diffusers.FluxPipeline"
PIPELINE_OPTIONS: Mapping[str, Any] = {}
PARTS = {
    "vae": ("vae",),
    "text": ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    "denoiser": ("transformer", "scheduler"),
}
MODELS = {
    "vae": "diffusers.AutoencoderKL",
    "text_encoder": "transformers.CLIPTextModel",
    "text_encoder_2": "transformers.T5EncoderModel",
    "transformer": "diffusers.FluxTransformer2DModel",
}
TOKENIZERS = {"tokenizer": "transformers.CLIPTokenizer", "tokenizer_2": "transformers.T5TokenizerFast"}
DENOISER = "transformer"
SIDE_MULTIPLE = 16  # the VAE's factor times the packing
PATCH = 2
MAX_TOKENS = (512, 256, 128, 77)  # of T5: dev 512, schnell 256
GUIDANCE = True
NEGATIVE = False  # guidance is embedded
BLOCKS: tuple[str, ...] = ("FluxTransformerBlock", "FluxSingleTransformerBlock")
VERSIONS = family_versions(Path(__file__).parent)

_ATTENTION = r"attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
_DOUBLE = r"transformer_blocks\.\d+\."
_SINGLE = r"single_transformer_blocks\.\d+\."
TARGET_SETS = {
    "attention": f"({_DOUBLE}{_ATTENTION}|{_SINGLE}{_ATTENTION})",
    "all-linear": (
        f"({_DOUBLE}({_ATTENTION}|ff(_context)?\\.net\\.(0\\.proj|2)|norm1(_context)?\\.linear)"
        f"|{_SINGLE}({_ATTENTION}|proj_mlp|proj_out|norm\\.linear))"
    ),
}
SCHEDULERS: dict[str, Spec] = {
    "euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "heun": ("FlowHeun", {}),
}


def unused_modules(config: Mapping[str, Any]) -> dict[str, str]:
    """None: every linear module of the transformer gets a gradient."""
    return {}


def embed_prompt(
    pipeline: Any, prompt: str, negative: str | None, guided: bool, max_tokens: int
) -> dict[str, "Tensor"]:
    """prompt_embeds and pooled_prompt_embeds, as the pipeline itself makes them; a negative prompt has no place."""
    prompt_embeds, pooled, _ = pipeline.encode_prompt(prompt, None, max_sequence_length=max_tokens)
    return {"prompt_embeds": prompt_embeds, "pooled_prompt_embeds": pooled}


def encode_text(encoders: TextEncoders, captions: list[str], max_tokens: int) -> dict[str, "Tensor"]:
    """prompt_embeds [B, max_tokens, D] of T5 without an attention mask; pooled_prompt_embeds [B, P] of CLIP-L."""
    clip, t5 = encoders.encoders["text_encoder"], encoders.encoders["text_encoder_2"]
    device = next(t5.parameters()).device
    clip_ids = token_ids(encoders.tokenizers["tokenizer"], captions, 77, device)
    t5_ids = token_ids(encoders.tokenizers["tokenizer_2"], captions, max_tokens, device)
    return {"prompt_embeds": t5(t5_ids)[0], "pooled_prompt_embeds": clip(clip_ids).pooler_output}


def tokens_lost(encoders: TextEncoders, caption: str, max_tokens: int) -> int:
    """Tokens beyond T5's limit; CLIP's 77 only feed the pooled vector."""
    return count_lost(encoders.tokenizers["tokenizer_2"], caption, max_tokens)


def predict(
    denoiser: "nn.Module",
    noisy_latents: "Tensor",
    level: "Tensor",
    text: Mapping[str, "Tensor"],
    sizes: Sizes,
    guidance: float,
) -> "Tensor":
    """The transformer's velocity [B, C, H, W] at sigmas `level` [B], which it multiplies by 1000 itself."""
    import torch

    height, width = noisy_latents.shape[-2:]
    embeds = text["prompt_embeds"]
    guided = bool(denoiser.get_submodule("time_text_embed").__class__.__name__.endswith("GuidanceTextProjEmbeddings"))
    answer: Tensor = denoiser(
        hidden_states=pack(noisy_latents),
        timestep=level,
        guidance=torch.full_like(level, guidance) if guided else None,
        encoder_hidden_states=embeds,
        pooled_projections=text["pooled_prompt_embeds"],
        txt_ids=torch.zeros(embeds.shape[1], 3, device=embeds.device),
        img_ids=image_ids(height, width, noisy_latents.device),
        return_dict=False,
    )[0]
    return unpack(answer, height, width)


def pack(latents: "Tensor") -> "Tensor":
    """[B, C, H, W] => packed_latents [B, N, 4C]."""
    return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)


def unpack(packed_latents: "Tensor", height: int, width: int) -> "Tensor":
    """packed_latents [B, N, 4C] => [B, C, H, W]."""
    return rearrange(packed_latents, "b (h w) (c p q) -> b c (h p) (w q)", h=height // 2, w=width // 2, p=2, q=2)


def image_ids(height: int, width: int, device: "torch.device") -> "Tensor":
    """img_ids [N, 3] = (0, row, column) of each token."""
    import torch

    sides = (torch.arange(side // 2, device=device) for side in (height, width))
    rows, columns = torch.meshgrid(*sides, indexing="ij")
    ids = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1)
    return ids.reshape(-1, 3).float()
