"""Models and pipelines of a base: a family names the classes of its components, and all are loaded here."""

from importlib import import_module
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from eridiff.assemble import assemble, build_empty, is_of_transformers
from eridiff.families import Family, TextEncoders
from eridiff.keptbases import keep, kept_path, load_kept
from eridiff.pointers import ModelSource
from eridiff.schedulers import make_scheduler

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from eridiff.quantise import Storage


def load_vae(family: Family, source: ModelSource, dtype: "torch.dtype") -> "nn.Module":
    """The VAE, frozen, in eval mode, on the CPU."""
    return _load_model(family, source, "vae", dtype)


def load_text_encoders(family: Family, source: ModelSource, dtype: "torch.dtype") -> TextEncoders:
    """Tokenizers and text encoders, frozen, in eval mode, on the CPU."""
    names = family.PARTS["text"]
    return TextEncoders(
        tokenizers={name: _load_tokenizer(family, source, name) for name in names if name in family.TOKENIZERS},
        encoders={name: _load_model(family, source, name, dtype) for name in names if name in family.MODELS},
    )


def load_denoiser(
    family: Family, source: ModelSource, dtype: "torch.dtype", storage: "Storage | None" = None
) -> "nn.Module":
    """The denoiser, frozen, in eval mode.

    storage: the device where it goes as it is loaded, and in how many bits; None: on the CPU, as it is.
    """
    return _load_model(family, source, family.DENOISER, dtype, storage)


def make_pipeline(
    family: Family,
    source: ModelSource,
    scheduler: str,
    *,
    text: TextEncoders | None = None,
    vae: "nn.Module | None" = None,
    denoiser: "nn.Module | None" = None,
) -> Any:
    """diffusers' pipeline of the parts that are there, with a scheduler of the family's SCHEDULERS.

    Its `components` name the models; one called `vae` has a `decoder`, whose pixels are checked.
    """
    components = dict.fromkeys(family.PARTS["text"]) | (text.components if text else {})
    pipeline: Any = find_class(family.PIPELINE)(
        **components,
        **{family.DENOISER: denoiser},
        vae=vae,
        scheduler=make_scheduler(family.SCHEDULERS, scheduler, source.config("scheduler")),
        **family.PIPELINE_OPTIONS,
    )
    if vae is not None:  # called, by some, for one in fp16 that overflows there; diffusers' own says it is deprecated
        pipeline.upcast_vae = vae.float
    return pipeline


def find_class(name: str) -> Any:
    """A class by its full name, such as `diffusers.AutoencoderKL`; its library is imported now."""
    module, _, own = name.rpartition(".")
    return getattr(import_module(module), own)


def _load_model(
    family: Family, source: ModelSource, component: str, dtype: "torch.dtype", storage: "Storage | None" = None
) -> "nn.Module":
    """A frozen model in eval mode."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # a stage's own lines say what goes on
    kind = find_class(family.MODELS[component])
    if source.empty:
        empty = build_empty(kind, source.config(component), dtype)
        return frozen(storage.settle_all(empty) if storage else empty)
    kept = _kept_path(source, component, storage, dtype)
    model: nn.Module | None = load_kept(kept, kind, source.config(component), storage) if kept and storage else None
    if model is None:
        model = _read_model(kind, source, component, dtype, storage)
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


def _read_model(
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


def _load_tokenizer(family: Family, source: ModelSource, component: str) -> Any:
    """A tokenizer of the base."""
    if source.empty:
        return EmptyTokenizer()
    return find_class(family.TOKENIZERS[component]).from_pretrained(source.folders[component], local_files_only=True)


class EmptyTokenizer:
    """Stands in for a tokenizer where only shapes matter: zeros, as many as are asked for."""

    model_max_length = 77  # of CLIP

    def __call__(self, captions: list[str], *, max_length: int, **_: Any) -> Any:
        """input_ids [B, max_length]."""
        import torch

        return SimpleNamespace(input_ids=torch.zeros(len(captions), max_length, dtype=torch.long))
