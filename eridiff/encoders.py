"""Pieces that the families' loading and text code share: components from folders, tokenizing as pipelines do."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from eridiff.assemble import assemble, build_empty, is_of_transformers
from eridiff.keptbases import keep, kept_path, load_kept
from eridiff.sources import ModelSource

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from eridiff.quantise import Storage


def load_component(kind: Any, source: ModelSource, component: str, dtype: "torch.dtype") -> "nn.Module":
    """A frozen model of class `kind` (diffusers or transformers) in eval mode, on the CPU or as source.storage says."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # a stage's own lines say what goes on
    storage = source.storage if source.storage and component in source.storage.components else None
    if source.empty:
        empty = build_empty(kind, source.config(component), dtype)
        return frozen(storage.settle_all(empty) if storage else empty)
    kept = _kept_path(source, component, storage, dtype)
    model: nn.Module | None = load_kept(kept, kind, source.config(component), storage) if kept and storage else None
    if model is None:
        model = _load(kind, source, component, dtype, storage)
        if kept:
            keep(model, kept)
    return frozen(model)


def frozen(model: "nn.Module") -> "nn.Module":
    """The model in eval mode, without gradients, and with position biases that lie in memory as attention reads them.

    T5 permutes its biases. Fused kernels refuse such a view, and torch takes the plain one, in fp32 with all scores in
    memory: transformers 5.23 copies it for them, some versions before do not.
    """
    module: Any
    for module in model.modules():
        if getattr(module, "has_relative_attention_bias", False):
            module.compute_bias = MethodType(_contiguous_bias, module)
    return model.requires_grad_(False).eval()


def _contiguous_bias(module: Any, *given: Any, **more: Any) -> "Tensor":
    bias: Tensor = type(module).compute_bias(module, *given, **more)
    return bias.contiguous()


def _kept_path(source: ModelSource, component: str, storage: "Storage | None", dtype: "torch.dtype") -> Path | None:
    """Where the component is kept once it is quantised; None where it is not."""
    if storage is None or storage.kind is None or storage.store is None:
        return None
    return kept_path(storage.store, source.component(component).identity(), storage.kind, dtype)


def _load(
    kind: Any, source: ModelSource, component: str, dtype: "torch.dtype", storage: "Storage | None"
) -> "nn.Module":
    """The model out of the base's files."""
    tensors = source.tensors(component, own_names=storage is not None and not is_of_transformers(kind))
    model: nn.Module
    if tensors:
        model = assemble(kind, source.config(component), tensors, dtype, storage)
    else:
        variant = source.component(component).variant
        model = kind.from_pretrained(
            source.folders[component], dtype=dtype, variant=variant, local_files_only=True, use_safetensors=True
        )
    return storage.settle_all(model) if storage else model


def load_tokenizers(kinds: Mapping[str, Any], source: ModelSource) -> dict[str, Any]:
    """Tokenizers by component name."""
    if source.empty:
        return {name: EmptyTokenizer() for name in kinds}
    return {name: kind.from_pretrained(source.folders[name], local_files_only=True) for name, kind in kinds.items()}


class EmptyTokenizer:
    """Stands in for a tokenizer where only shapes matter: zeros, as many as are asked for."""

    model_max_length = 77  # of CLIP

    def __call__(self, captions: list[str], *, max_length: int, **_: Any) -> Any:
        """input_ids [B, max_length]."""
        import torch

        return SimpleNamespace(input_ids=torch.zeros(len(captions), max_length, dtype=torch.long))


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
