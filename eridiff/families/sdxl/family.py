"""SDXL (Podell et al. 2023): UNet over 4-channel latents, told of sizes and crops through time_ids.

Legend: B batch, C channels, H W sides of latents, L text tokens, D text width, P pooled width.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eridiff.family import Sizes, TextEncoders
from eridiff.models.samplers import Spec
from eridiff.models.text_encoders import count_lost, join_hidden_states, name_embeds
from eridiff.versions import family_versions

if TYPE_CHECKING:
    from torch import Tensor, nn

OBJECTIVE: Literal["ddpm", "flow"] = "ddpm"
PIPELINE = "diffusers.StableDiffusionXLPipeline"
PIPELINE_OPTIONS = {"add_watermarker": False}
PARTS = {
    "vae": ("vae",),
    "text": ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    "denoiser": ("unet", "scheduler"),
}
MODELS = {
    "vae": "diffusers.AutoencoderKL",
    "text_encoder": "transformers.CLIPTextModel",
    "text_encoder_2": "transformers.CLIPTextModelWithProjection",
    "unet": "diffusers.UNet2DConditionModel",
}
TOKENIZERS = dict.fromkeys(("tokenizer", "tokenizer_2"), "transformers.CLIPTokenizer")
DENOISER = "unet"
SIDE_MULTIPLE = 8  # the VAE's factor
PATCH = 2  # the UNet's deepest attention sees latents at a quarter; only used for the shift of flows
MAX_TOKENS = (77,)
GUIDANCE = False
NEGATIVE = True
BLOCKS: tuple[str, ...] = ("BasicTransformerBlock", "ResnetBlock2D")
VERSIONS = family_versions(Path(__file__).parent)

_BLOCK = r".*\.attentions\.\d+\.transformer_blocks\.\d+\."
TARGET_SETS = {
    "attention": _BLOCK + r"attn[12]\.(to_q|to_k|to_v|to_out\.0)",
    "all-linear": (
        r".*\.attentions\.\d+\.(proj_in|proj_out|transformer_blocks\.\d+\."
        r"(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2)))"
    ),
}
SCHEDULERS: dict[str, Spec] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


def unused_modules(config: Mapping[str, Any]) -> dict[str, str]:
    """None: every linear module of the UNet gets a gradient."""
    return {}


def embed_prompt(
    pipeline: Any, prompt: str, negative: str | None, guided: bool, max_tokens: int
) -> dict[str, "Tensor"]:
    """The prompt's embeddings, and if guided the negative one's, as the pipeline itself makes them."""
    embeds = pipeline.encode_prompt(prompt, negative_prompt=negative, do_classifier_free_guidance=guided)
    return name_embeds(embeds)


def encode_text(encoders: TextEncoders, captions: list[str], max_tokens: int) -> dict[str, "Tensor"]:
    """prompt_embeds [B, 77, D] (both hidden_states[-2] joined) and pooled_prompt_embeds [B, P] (of OpenCLIP-G)."""
    hidden, first = join_hidden_states(encoders.encoders.values(), encoders.tokenizers.values(), captions)
    return {"prompt_embeds": hidden, "pooled_prompt_embeds": first[1]}


def tokens_lost(encoders: TextEncoders, caption: str, max_tokens: int) -> int:
    """Tokens beyond CLIP's 77, which no encoder sees."""
    return count_lost(encoders.tokenizers["tokenizer"], caption, 77)


def predict(
    denoiser: "nn.Module",
    noisy_latents: "Tensor",
    level: "Tensor",
    text: Mapping[str, "Tensor"],
    sizes: Sizes,
    guidance: float,
) -> "Tensor":
    """The UNet's answer [B, C, H, W] at timesteps `level` [B]."""
    conditions = {"text_embeds": text["pooled_prompt_embeds"], "time_ids": time_ids(sizes)}
    answer: Tensor = denoiser(
        noisy_latents, level, text["prompt_embeds"], added_cond_kwargs=conditions, return_dict=False
    )[0]
    return answer


def time_ids(sizes: Sizes) -> "Tensor":
    """[B, 6] = (original h, w, crop top, left, target h, w), fp32 until the embedding: bf16 makes 1023 1024."""
    import torch

    target = [torch.full_like(sizes.crop[:, :1], side) for side in reversed(sizes.target)]
    return torch.cat([sizes.original.flip(1), sizes.crop.flip(1), *target], dim=1)
