"""Bases: small pointers in git say which weights are meant; where the files lie is found per machine.

`data/bases/NAME/PART.json` names the components of one part (vae, text, denoiser): their configs, their files
with sizes, and a digest over their tensors under canonical names. A stage depends on the pointer of each part
that it uses, so a clone whose weights lie elsewhere has nothing to rerun, and other weights are refused.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eridiff.errors import BaseError, did_you_mean
from eridiff.filedigests import FileDigests
from eridiff.files import canonical_json, digest_file, digest_json
from eridiff.project import bases_dir, load_local
from eridiff.tensorfile import TensorFile, digest_tensors

PARTS = ("vae", "text", "denoiser")
CONFIG_FILES = ("config.json", "scheduler_config.json")
# Keys of a config that say who wrote it, not what the model is.
NEUTRAL_CONFIG_KEYS = {"architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}

Canonical = Callable[[str, str], str]  # (component, tensor name in its file) -> canonical tensor name


@dataclass(frozen=True, kw_only=True)
class Component:
    """One folder of a base: a model (config, weights), a scheduler (config) or a tokenizer (files)."""

    name: str
    config: dict[str, Any]
    files: dict[str, int]  # file name -> size in bytes
    digest: str  # of the tensors, or of the files where there are none

    def identity(self) -> dict[str, str]:
        """What the component is, for keys: digests of its content and of its config."""
        return {"content": self.digest, "config": digest_json(self.config)}


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """What one part of a base is, wherever its files lie."""

    base: str
    family: str
    part: str
    components: dict[str, Component]

    def identity(self) -> dict[str, dict[str, str]]:
        """Component name -> its digests."""
        return {name: component.identity() for name, component in sorted(self.components.items())}


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """The parts of a base whose files were found and checked on this machine."""

    pointers: dict[str, Pointer]
    folders: dict[str, Path]  # component name -> the folder of its files

    def config(self, component: str) -> dict[str, Any]:
        """The config of a component."""
        return next(p.components[component].config for p in self.pointers.values() if component in p.components)


def read_pointer(base: str, part: str) -> Pointer:
    """Read `data/bases/BASE/PART.json`.

    Raises: BaseError where there is none, with the bases that exist, or where it cannot be read.
    """
    path = bases_dir() / base / f"{part}.json"
    if not path.exists():
        known = sorted(p.parent.name for p in bases_dir().glob(f"*/{part}.json"))
        raise BaseError(
            f"base '{base}' has no pointer {path.name}.{did_you_mean(base, known)} `eridiff base add {base} FOLDER` "
            "makes one from a model folder."
        )
    try:
        record = json.loads(path.read_text("utf-8"))
        components = {
            name: Component(name=name, config=c["config"], files=c["files"], digest=c["digest"])
            for name, c in record["components"].items()
        }
        return Pointer(base=base, family=record["family"], part=record["part"], components=components)
    except (ValueError, KeyError, TypeError) as error:
        raise BaseError(f"{path} is no pointer ({error!r}): make it again with `eridiff base add`.") from None


def pointer_text(pointer: Pointer) -> str:
    """The pointer file's text: sorted, indented, readable in a diff."""
    components = {
        c.name: {"config": c.config, "digest": c.digest, "files": c.files} for c in pointer.components.values()
    }
    record = {"format": 1, "family": pointer.family, "part": pointer.part, "components": components}
    return json.dumps(record, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def describe_component(folder: Path, canonical: Canonical, digests: FileDigests) -> Component:
    """Read what a component's folder holds: config, file sizes, digest over tensors (or files).

    Weights are those that the libraries load when no variant is asked for: `model.fp16.safetensors` and the like
    are not read. Raises: BaseError where the folder is missing, has no valid config or holds no such weights.
    """
    if not folder.is_dir():
        raise BaseError(f"{folder} is missing: a base in diffusers' layout has this folder.")
    config_path = next((folder / name for name in CONFIG_FILES if (folder / name).exists()), None)
    try:
        config = json.loads(config_path.read_text("utf-8")) if config_path else {}
    except ValueError:
        raise BaseError(f"{config_path} is no valid JSON: copy the model folder again.") from None
    variants = sorted(folder.glob("*.safetensors"))
    weights = [path for path in variants if "." not in path.stem]
    if not weights and (variants or list(folder.glob("*.bin"))):
        kind = f"only variants ({variants[0].name})" if variants else "pickled weights only"
        raise BaseError(f"{folder} holds {kind}; eridiff reads safetensors of no variant.")
    visible = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    others = [path for path in visible if path != config_path]
    files = weights or ([] if config_path and config_path.name == "scheduler_config.json" else others)
    return Component(
        name=folder.name,
        config={k: v for k, v in config.items() if not k.startswith("_") and k not in NEUTRAL_CONFIG_KEYS},
        files={path.name: path.stat().st_size for path in files},
        digest=_content_digest(folder.name, files, canonical, digests),
    )


def _content_digest(component: str, files: Iterable[Path], canonical: Canonical, digests: FileDigests) -> str:
    """Digest over all tensors of the files under canonical names; of whole files where they are no tensors."""
    content: dict[str, str] = {}
    for path in files:
        if path.suffix != ".safetensors":
            content[path.name] = digests.remember(path, "sha256", lambda path=path: digest_file(path))  # type: ignore[misc]
            continue
        tensors = digests.remember(path, "tensors", lambda path=path: _tensor_digests(path))  # type: ignore[misc]
        content |= {canonical(component, name): value for name, value in json.loads(tensors).items()}
    return digest_json(content)


def _tensor_digests(path: Path) -> str:
    """JSON of tensor name -> digest of its dtype, shape and bytes, as they lie in the file."""
    file = TensorFile(path)
    return canonical_json({name: digest_tensors({"": file.raw(name)}) for name in file.names})


def find_source(pointers: Iterable[Pointer], canonical: Canonical) -> ModelSource:
    """Find the files of these parts on this machine and check them against the pointers.

    Raises: BaseError that names the missing or differing file, and where it was looked for.
    """
    found = {pointer.part: pointer for pointer in pointers}
    folders: dict[str, Path] = {}
    wanted = [(p, c) for p in found.values() for c in p.components.values() if c.files]  # a scheduler is its config
    with FileDigests() as digests:
        for pointer, component in wanted:
            folder = _find_folder(pointer.base, component)
            here = describe_component(folder, canonical, digests)
            _refuse_other(folder, here, component, pointer.base)
            folders[component.name] = folder
    return ModelSource(pointers=found, folders=folders)


def _refuse_other(folder: Path, here: Component, meant: Component, base: str) -> None:
    """Refuse a folder whose weights or config are not those of the pointer."""
    if here.digest != meant.digest:
        wrong = f"its content has digest {here.digest[:12]}, the pointer says {meant.digest[:12]}"
    elif here.config != meant.config:
        keys = sorted(k for k in {*here.config, *meant.config} if here.config.get(k) != meant.config.get(k))
        wrong = f"its config differs from the pointer's in {', '.join(keys)}"
    else:
        return
    raise BaseError(
        f"{folder} is not what the pointer of base '{base}' names: {wrong}. Put the right files there, or make new "
        "pointers with `eridiff base add`."
    )


def search_folders(base: str) -> list[Path]:
    """Where a base's files may lie on this machine, in order."""
    local = load_local()
    folders = [Path(local.bases[base]).expanduser()] if base in local.bases else []
    roots = [*os.environ.get("ERIDIFF_MODELS", "").split(os.pathsep), *local.model_folders]
    folders += [Path(root).expanduser() / base for root in roots if root]
    return [*folders, bases_dir() / base]


def _find_folder(base: str, component: Component) -> Path:
    """The first searched folder that holds a component's files at their sizes."""
    searched = search_folders(base)
    for folder in searched:
        place = folder / component.name
        if place.is_dir() and all(
            (place / name).is_file() and (place / name).stat().st_size == size for name, size in component.files.items()
        ):
            return place
    wanted = ", ".join(f"{name} ({size} bytes)" for name, size in component.files.items())
    raise BaseError(
        f"the weights of base '{base}', component {component.name}, are not on this machine. Wanted: {wanted}. "
        f"Searched: {', '.join(str(folder / component.name) for folder in searched)}. Name their folder in "
        f"local.yaml (bases: {{{base}: FOLDER}}) or put FOLDER/{base} under a folder of ERIDIFF_MODELS."
    )


def pointers_of(base: str, parts: Iterable[str], family: str) -> dict[str, Pointer]:
    """Pointers of several parts, checked to be of one family.

    Raises: BaseError where a part belongs to another family.
    """
    pointers: Mapping[str, Pointer] = {part: read_pointer(base, part) for part in parts}
    for pointer in pointers.values():
        if pointer.family != family:
            raise BaseError(
                f"params.yaml: model.base '{base}' is a base of family '{pointer.family}', but model.family is "
                f"'{family}'. Change one of the two."
            )
    return dict(pointers)
