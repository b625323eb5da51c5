"""Where model files may lie on this machine: named by the user, ComfyUI's folders, the hub's cache. By name, unread."""

import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from eridiff.config import read_yaml
from eridiff.errors import ConfigError
from eridiff.pickles import PICKLE_SUFFIXES
from eridiff.project import bases_dir, load_local

COMFYUI = ("ComfyUI", "comfyui", "comfy/ComfyUI", "Documents/ComfyUI")  # below the home folder
KINDS = ("checkpoints", "diffusion_models", "unet", "vae", "text_encoders", "clip", "diffusers")
TOKENIZERS = ("comfy/text_encoders/t5_tokenizer",)  # that ComfyUI brings along
MODEL_SUFFIXES = (".safetensors", ".sft", ".gguf", *PICKLE_SUFFIXES)


class Places:
    """The places of one base, or of any (name: empty)."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.local = load_local()

    @cached_property
    def named(self) -> list[Path]:
        """Folders and files that local.yaml names for this base."""
        value = self.local.bases.get(self.name, ())
        return [Path(path).expanduser() for path in ([value] if isinstance(value, str) else value)]

    @cached_property
    def roots(self) -> list[Path]:
        """Folders of models that the user names: ERIDIFF_MODELS, then local.yaml's model_folders."""
        paths = [*os.environ.get("ERIDIFF_MODELS", "").split(os.pathsep), *self.local.model_folders]
        return [Path(path).expanduser() for path in paths if path]

    @cached_property
    def comfyui(self) -> Path | None:
        """ComfyUI's own folder: ERIDIFF_COMFYUI, else local.yaml's comfyui, else where it is usually put.

        Raises: ConfigError where the folder that is named is none.
        """
        named = os.environ.get("ERIDIFF_COMFYUI") or self.local.comfyui
        if named:
            folder = Path(named).expanduser()
            if not folder.is_dir():
                raise ConfigError(f"comfyui (local.yaml or ERIDIFF_COMFYUI) names {folder}, which is no folder.")
            return folder
        return next((Path.home() / name for name in COMFYUI if (Path.home() / name / "models").is_dir()), None)

    @cached_property
    def comfyui_folders(self) -> list[Path]:
        """ComfyUI's folders of models, those of its extra_model_paths.yaml with them."""
        if self.comfyui is None:
            return []
        found = [self.comfyui / "models" / kind for kind in KINDS]
        found += extra_model_paths(self.comfyui / "extra_model_paths.yaml")
        return [folder for folder in dict.fromkeys(found) if folder.is_dir()]

    @cached_property
    def snapshots(self) -> list[Path]:
        """Model folders in the hub's cache."""
        return sorted(hub_cache().glob("models--*/snapshots/*/model_index.json"))

    def model_folders(self) -> Iterator[Path]:
        """Folders in diffusers' layout that may be the base, in order."""
        yield from (path for path in self.named if not path.is_file())
        yield from (root / self.name for root in self.roots)
        yield bases_dir() / self.name
        yield from (index.parent for index in self.snapshots)

    def files(self) -> Iterator[Path]:
        """Single files that may hold parts of the base, in order."""
        yield from (path for path in self.named if path.is_file())
        for folder in [*self.roots, *self.comfyui_folders]:
            yield from weight_files(folder)

    def tokenizers(self) -> Iterator[Path]:
        """Folders of T5's tokenizer that belong to no base."""
        yield shared_t5()
        if self.comfyui is not None:
            yield from (self.comfyui / name for name in TOKENIZERS if (self.comfyui / name).is_dir())

    def described(self) -> str:
        """The places in words, for messages."""
        folders = [str(folder) for folder in (*self.named, *(root / self.name for root in self.roots))]
        folders += [str(bases_dir() / self.name), *map(str, self.roots)]
        comfyui = f"ComfyUI ({self.comfyui})" if self.comfyui else "ComfyUI (not found: `comfyui:` in local.yaml)"
        return ", ".join([*folders, comfyui, f"the hub's cache ({hub_cache()})"])


def weight_files(folder: Path) -> list[Path]:
    """Weight files below a folder, sorted."""
    return sorted(path for end in ("safetensors", "sft") for path in folder.rglob(f"*.{end}") if path.is_file())


def model_files(folder: Path) -> Iterator[Path]:
    """Weight files below a folder, read or not, each set of shards by its first."""
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in MODEL_SUFFIXES and path.is_file()):
        if not re.search(r"-0*(?!1-)[1-9]\d*-of-\d+\.", path.name):
            yield path


def shared_t5() -> Path:
    """Where a person may put T5's tokenizer for all bases."""
    return bases_dir() / "t5_tokenizer"


def extra_model_paths(path: Path) -> list[Path]:
    """The folders of models that ComfyUI's extra_model_paths.yaml names."""
    found: list[Path] = []
    record = read_yaml(path) if path.exists() else None
    for section in record.values() if isinstance(record, dict) else ():
        if not isinstance(section, dict):
            continue
        base = Path(os.path.expandvars(str(section.get("base_path", "")))).expanduser()
        for kind in KINDS:
            lines = str(section.get(kind) or "").splitlines()
            found += [path.parent / base / os.path.expandvars(line.strip()) for line in lines if line.strip()]
    return found


def hub_cache() -> Path:
    """The hub's cache of models, as huggingface_hub places it."""
    if chosen := os.environ.get("HF_HUB_CACHE"):
        return Path(chosen).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser() / "hub"
