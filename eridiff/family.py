"""Families: one folder each, found by its name; this file is the protocol that a folder's family.py fulfils.

A family is three files: family.py (latents, objective, LoRA targets, names of its classes, text, predict), keys.py
(two-way key tables) and workflow.py (the ComfyUI graph), with versions.yaml beside them. Modules are the
implementation: no class, no registry.
"""

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from eridiff.core.errors import ConfigError, did_you_mean
from eridiff.versions import FamilyVersions
from eridiff.weights.lora_keys import Dialect
from eridiff.weights.signatures import Look
from eridiff.weights.tensor_keys import ComponentKeys

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Where each crop of a batch comes from: what a denoiser may be told about its picture's geometry."""

    original: "Tensor"  # [B, 2] fp32 (width, height) of the whole picture
    crop: "Tensor"  # [B, 2] fp32 (left, top) of the crop in the resized picture
    target: tuple[int, int]  # (width, height) of the bucket

    @classmethod
    def of(
        cls, *, original: Sequence[tuple[int, int]], crop: Sequence[tuple[int, int]], target: tuple[int, int]
    ) -> "Sizes":
        """Of whole numbers, one pair a sample, on the CPU."""
        import torch

        pairs = [torch.tensor(list(rows), dtype=torch.float32) for rows in (original, crop)]
        return cls(original=pairs[0], crop=pairs[1], target=target)

    def map(self, change: "Callable[[Tensor], Tensor]") -> "Sizes":
        """The same sizes with every tensor changed."""
        return Sizes(original=change(self.original), crop=change(self.crop), target=self.target)


class Family(Protocol):
    """What every eridiff/families/NAME/family.py defines at module level."""

    OBJECTIVE: Literal["ddpm", "flow"]
    PIPELINE: str  # full name of the class of diffusers' pipeline
    PIPELINE_OPTIONS: Mapping[str, Any]  # what its class is given besides components
    PARTS: Mapping[str, tuple[str, ...]]  # part -> components (folders of diffusers' layout)
    MODELS: Mapping[str, str]  # component with weights -> full name of its class, diffusers' or transformers'
    TOKENIZERS: Mapping[str, str]  # component -> full name of its class
    DENOISER: str  # component that is trained, and the prefix of its LoRA keys
    SIDE_MULTIPLE: int  # sides of pictures must be multiples of this many pixels
    PATCH: int  # latent pixels a side of one image token
    BLOCKS: tuple[str, ...]  # classes of the blocks that repeat, those first that keep most bytes for each operation
    TARGET_SETS: Mapping[str, str]  # target set -> regular expression over full module names
    SCHEDULERS: Mapping[str, tuple[str, Mapping[str, Any]]]  # name in params -> (diffusers class, config changes)
    MAX_TOKENS: tuple[int, ...]  # choices of text.max_tokens; the first is the default
    GUIDANCE: bool  # whether the denoiser may take an embedded guidance value
    NEGATIVE: bool  # whether the pipeline takes a negative prompt
    VERSIONS: FamilyVersions  # what its code means to each stage: versions.yaml beside it

    def unused_modules(self, config: Mapping[str, Any]) -> Mapping[str, str]:
        """Full names of a denoiser's modules that never get a gradient -> reason; from the denoiser's config."""

    def embed_prompt(
        self, pipeline: Any, prompt: str, negative: str | None, guided: bool, max_tokens: int
    ) -> dict[str, "Tensor"]:
        """A prompt's embeddings [1, ...] by the pipeline that has the text encoders, named as its call wants them.

        guided: by classifier-free guidance, which needs the negative prompt's too.
        """

    def encode_text(self, encoders: "TextEncoders", captions: list[str], max_tokens: int) -> dict[str, "Tensor"]:
        """Captions -> named embeddings with batch first, equal to the pipeline's encode_prompt."""

    def tokens_lost(self, encoders: "TextEncoders", caption: str, max_tokens: int) -> int:
        """How many tokens of a caption no encoder sees: 0 where at least one encoder takes it whole."""

    def predict(
        self,
        denoiser: "nn.Module",
        noisy_latents: "Tensor",
        level: "Tensor",
        text: Mapping[str, "Tensor"],
        sizes: Sizes,
        guidance: float,
    ) -> "Tensor":
        """The denoiser's answer [B, C, H, W] for noisy latents at timesteps (ddpm) or sigmas (flow) [B]."""


@dataclass(frozen=True)
class TextEncoders:
    """Tokenizers and encoders by their component names."""

    tokenizers: Mapping[str, Any]
    encoders: Mapping[str, "nn.Module"]

    @property
    def components(self) -> dict[str, Any]:
        """Both, by component name."""
        return {**self.tokenizers, **self.encoders}

    def to(self, device: "torch.device") -> "TextEncoders":
        """Move the encoders to a device."""
        for encoder in self.encoders.values():
            encoder.to(device)
        return self


def family_names() -> list[str]:
    """Names of all families: the folders of eridiff/families (a test may append a folder of its own)."""
    return sorted(
        path.parent.name
        for folder in importlib.import_module("eridiff.families").__path__
        for path in Path(folder).glob("*/family.py")
    )


def load_family(name: str) -> Family:
    """The module eridiff.families.NAME.family.

    Raises: ConfigError for an unknown family, with those that exist.
    """
    if name not in family_names():
        raise ConfigError(
            f"params.yaml: model.family is '{name}', which is no family.{did_you_mean(name, family_names())}"
        )
    return cast(Family, importlib.import_module(f"eridiff.families.{name}.family"))


def pipeline_name(name: str) -> str:
    """A family's pipeline, as the model_index.json of a model folder names it."""
    return load_family(name).PIPELINE.rpartition(".")[2]


def load_keys(name: str) -> "Keys":
    """The module eridiff.families.NAME.keys."""
    load_family(name)
    return cast(Keys, importlib.import_module(f"eridiff.families.{name}.keys"))


def load_workflow(name: str) -> "Workflow":
    """The module eridiff.families.NAME.workflow."""
    load_family(name)
    return cast(Workflow, importlib.import_module(f"eridiff.families.{name}.workflow"))


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a family's makers published (its published.json)."""

    models: Mapping[str, Mapping[str, Any]]  # published model -> component -> config
    tokenizers: Mapping[str, str]  # component -> kind of tokenizer: clip-l, clip-g, t5
    files: Mapping[str, Sequence[str]]  # component -> ComfyUI's folder of it, then names of files that hold it
    comfyui: Mapping[str, Mapping[str, str]]  # model -> component -> the makers' file that holds it in ComfyUI
    hub: Mapping[str, str]  # model -> repository on the hub
    gigabytes: Mapping[str, Mapping[str, float]]  # model -> part -> size of its weights in 16 bits
    predecessor: Sequence[str]  # names of the family in configurations of this project's predecessor


def published(name: str) -> Published:
    """A family's published.json; all empty where it has none."""
    path = Path(str(importlib.import_module(f"eridiff.families.{name}").__file__)).with_name("published.json")
    record = json.loads(path.read_text("utf-8")) if path.exists() else {"common": {}}
    return Published(
        models={model: record["common"] | own for model, own in record.get("models", {}).items()},
        tokenizers=record.get("tokenizers", {}),
        files=record.get("files", {}),
        comfyui=record.get("comfyui", {}),
        hub=record.get("hub", {}),
        gigabytes=record.get("gigabytes", {}),
        predecessor=record.get("predecessor", []),
    )


class Keys(Protocol):
    """What every eridiff/families/NAME/keys.py defines at module level."""

    DIALECTS: tuple[Dialect, ...]  # the files of an export, the primary one first
    IMPLEMENTATION: str  # of modelspec: whose code the base is made for
    NETWORK_MODULE: str  # the module of sd-scripts that loads the kohya file
    COMPONENTS: Mapping[str, ComponentKeys]  # component with weights -> its names in single files
    LOOKS: tuple[Look, ...]  # how the denoiser shows itself in a file, and what is taken for it

    def architecture(self, config: Mapping[str, Any]) -> str:
        """The base's name in modelspec, from the denoiser's config."""

    def base_version(self, config: Mapping[str, Any]) -> str:
        """The base's name in `ss_base_model_version`, from the denoiser's config."""

    def canonical(self, component: str, name: str) -> str:
        """The canonical name of a tensor of a component's file, so that equal weights have equal digests."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a workflow shows: an exported LoRA on its base."""

    lora: str  # file name of the primary export
    files: Mapping[str, str]  # component of the base -> name of the file that holds it in ComfyUI
    prompt: str
    size: tuple[int, int]  # (width, height)
    denoiser_config: Mapping[str, Any]
    scheduler_config: Mapping[str, Any]


class Workflow(Protocol):
    """What every eridiff/families/NAME/workflow.py defines at module level."""

    def workflow(self, scene: Scene) -> dict[str, Any]:
        """A graph in ComfyUI's API format (node number -> class_type, inputs) that loads the base and the LoRA."""
