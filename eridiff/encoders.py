"""Text that the families share: tokens and embeddings as diffusers' pipelines make them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def token_ids(tokenizer: Any, captions: list[str], max_length: int, device: "torch.device") -> "Tensor":
    """Token ids [B, max_length], padded and cut as diffusers' pipelines do."""
    encoded = tokenizer(captions, padding="max_length", max_length=max_length, truncation=True, return_tensors="pt")
    ids: Tensor = encoded.input_ids
    # a plain copy would wait for all that the device still has to do, and the next captions with it
    return ids.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else ids.to(device)


def count_lost(tokenizer: Any, caption: str, max_length: int) -> int:
    """How many tokens of a caption a tokenizer's limit cuts off."""
    return max(0, len(tokenizer(caption, truncation=False, verbose=False).input_ids) - max_length)


def name_embeds(embeds: Iterable["Tensor | None"]) -> dict[str, "Tensor"]:
    """What `encode_prompt` of a pipeline with classifier-free guidance returns, named as its call wants them."""
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    return {name: tensor for name, tensor in zip(names, embeds, strict=True) if tensor is not None}


def join_hidden_states(
    encoders: Iterable["nn.Module"], tokenizers: Iterable[Any], captions: list[str]
) -> tuple["Tensor", "list[Tensor]"]:
    """CLIP encoders' hidden_states[-2] joined on features [B, 77, sum of widths], and each one's first output.

    The first output of a CLIPTextModelWithProjection is its projected pooled output [B, P].
    """
    import torch

    hidden, first = [], []
    for encoder, tokenizer in zip(encoders, tokenizers, strict=True):
        device = next(encoder.parameters()).device
        ids = token_ids(tokenizer, captions, tokenizer.model_max_length, device)
        answer = encoder(ids, output_hidden_states=True)
        hidden.append(answer.hidden_states[-2])
        first.append(answer[0])
    return torch.cat(hidden, dim=-1), first
