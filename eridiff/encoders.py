"""Pieces that the families' loading and text code share: components from folders, tokenizing as pipelines do."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from eridiff.assemble import assemble, is_of_transformers
from eridiff.sources import ModelSource

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def load_component(kind: Any, source: ModelSource, component: str, dtype: "torch.dtype") -> "nn.Module":
    """A frozen model of class `kind` (diffusers or transformers) in eval mode, on the CPU or as source.storage says."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # a stage's own lines say what goes on
    storage = source.storage if source.storage and component in source.storage.components else None
    tensors = source.tensors(component, own_names=storage is not None and not is_of_transformers(kind))
    model: nn.Module
    if tensors:
        model = assemble(kind, source.config(component), tensors, dtype, storage)
    else:
        variant = source.component(component).variant
        model = kind.from_pretrained(
            source.folders[component], dtype=dtype, variant=variant, local_files_only=True, use_safetensors=True
        )
    return (storage.settle_all(model) if storage else model).requires_grad_(False).eval()


def load_tokenizers(kinds: Mapping[str, Any], source: ModelSource) -> dict[str, Any]:
    """Tokenizers by component name."""
    return {name: kind.from_pretrained(source.folders[name], local_files_only=True) for name, kind in kinds.items()}


def token_ids(tokenizer: Any, captions: list[str], max_length: int, device: "torch.device") -> "Tensor":
    """Token ids [B, max_length], padded and cut as diffusers' pipelines do."""
    encoded = tokenizer(captions, padding="max_length", max_length=max_length, truncation=True, return_tensors="pt")
    ids: Tensor = encoded.input_ids
    # a plain copy would wait for all that the device still has to do, and the next captions with it
    return ids.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else ids.to(device)


def count_lost(tokenizer: Any, caption: str, max_length: int) -> int:
    """How many tokens of a caption a tokenizer's limit cuts off."""
    return max(0, len(tokenizer(caption, truncation=False, verbose=False).input_ids) - max_length)


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
