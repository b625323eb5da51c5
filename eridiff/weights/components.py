"""Components of a base: what a folder in diffusers' layout, or a part of a single file, is by content and config."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from eridiff.core.errors import BaseError
from eridiff.core.files import canonical_json, digest_file, digest_json
from eridiff.core.json_files import Record, read_json
from eridiff.core.threads import on_cores
from eridiff.formats.safetensors import RawTensor, TensorFile, digest_tensors
from eridiff.machine.filedigests import FileDigests
from eridiff.weights.component_tensors import Canonical, ComponentTensors
from eridiff.weights.files import TensorSource
from eridiff.weights.nonfinite import read_scan, scan
from eridiff.weights.tensor_keys import table_version

CONFIG_FILES = ("config.json", "scheduler_config.json")
# Keys of a config that count what is made one by one, and how many of it a model may have.
COUNTS = {"layers": 1000, "timesteps": 100_000}
BLOCKS = re.compile("layers|block")  # lists with a value for each block
MAX_BLOCKS = 100
# Keys of a config that say who wrote it, not what the model is.
NEUTRAL_CONFIG_KEYS = {"architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}


@dataclass(frozen=True, kw_only=True)
class Component:
    """One component of a base: a model (config, weights), a scheduler (config) or a tokenizer (files)."""

    name: str
    config: dict[str, Any]
    files: dict[str, int]  # file name -> size in bytes
    digest: str  # of the tensors, or of the files where there are none

    def identity(self) -> dict[str, str]:
        """What the component is, for keys: digests of its content and of its config."""
        return {"content": self.digest, "config": digest_json(self.config)}

    @property
    def variant(self) -> str | None:
        """The argument `variant` of diffusers' loaders: the weights' suffix, such as `fp16`; None without one."""
        return next((found for name in self.files if (found := weights_suffix(name))), None)


def sound_config(config: dict[str, Any]) -> dict[str, Any]:
    """A config whose counts are those of a model: of each layer or block something is made.

    Raises: ValueError that names the key.
    """
    for key, value in config.items():
        values = value if isinstance(value, list) else [value]
        if BLOCKS.search(key) and len(values) > MAX_BLOCKS:
            raise ValueError(f"{key} has {len(values)} values, more than {MAX_BLOCKS}")
        most = next((most for word, most in COUNTS.items() if word in key), None)
        large = [one for one in values if most is not None and isinstance(one, int | float) and one > most]
        if large:
            raise ValueError(f"{key} is {large[0]}, more than {most}")
    return config


class ComponentRecord(Record):
    """A component as a pointer has it."""

    config: Annotated[dict[str, Any], AfterValidator(sound_config)]
    files: dict[Annotated[str, Field(pattern="^[^/]+$")], Annotated[int, Field(ge=0, lt=1 << 63)]]
    digest: str


def weights_suffix(name: str) -> str | None:
    """The suffix in a file's name: fp16 of `model.fp16.safetensors` and `model.fp16-00001-of-00002.safetensors`."""
    found = re.fullmatch(r"(?:diffusion_pytorch_)?model(?:-\d+-of-\d+)?\.(\w+)(?:-\d+-of-\d+)?\.safetensors", name)
    return found[1] if found else None


def described(name: str, config: Mapping[str, Any], files: Mapping[str, int], digest: str) -> Component:
    """A component with the keys of its config that say what it is."""
    meant = {k: v for k, v in config.items() if not k.startswith("_") and k not in NEUTRAL_CONFIG_KEYS}
    return Component(name=name, config=meant, files=dict(files), digest=digest)


def describe_tensors(tensors: ComponentTensors, config: Mapping[str, Any], digests: FileDigests) -> Component:
    """What a part of a file, or of shards, is: the same as a folder that holds the same tensors."""
    files = {path.name: path.stat().st_size for path in tensors.found.weights.paths}
    return described(tensors.component, config, files, digest_json(tensors.digests(digests)))


def describe_scheduler(config: Mapping[str, Any]) -> Component:
    """A scheduler, which is its config."""
    return described("scheduler", config, {}, digest_json({}))


def describe_folder(
    folder: Path, canonical: Canonical, digests: FileDigests, weights: str | None = None, name: str = ""
) -> Component:
    """Read what a component's folder holds: config, file sizes, digest over tensors (or files).

    weights: the suffix of those that are meant; None: those without one, or else the only ones.
    name: of the component, where the folder is called otherwise.
    Raises: BaseError where the folder is missing, has no valid config or holds no such weights.
    """
    refuse_missing(folder)
    config_path = next((folder / file for file in CONFIG_FILES if (folder / file).exists()), None)
    config = read_config(config_path) if config_path else {}
    weight_files = _weight_files(folder, weights)
    visible = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    others = [path for path in visible if path != config_path]
    files = weight_files or ([] if config_path and config_path.name == "scheduler_config.json" else others)
    name = name or folder.name
    sizes = {path.name: path.stat().st_size for path in files}
    return described(name, config, sizes, _content_digest(name, files, canonical, digests))


def refuse_missing(folder: Path) -> None:
    """Raises: BaseError where a component's folder is missing."""
    if not folder.is_dir():
        raise BaseError(f"{folder} is missing: a base in diffusers' layout has this folder.")


def refuse_nonfinite(place: Path | ComponentTensors, component: Component, digests: FileDigests) -> None:
    """Refuse weights with numbers that are not finite; what was seen of a file is remembered as its digests are.

    place: the component's folder, or its tensors in files. One tensor is in memory at a time.
    Raises: BaseError that names file and tensors.
    """
    for file, names, what in _weights_of(place, component):
        text = digests.remember(file.path, what, lambda file=file, names=names: scan(_raw(file, names)))  # type: ignore[misc]
        if broken := read_scan(text):
            more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
            raise BaseError(
                f"{file.path}: weights of {component.name} are not finite: "
                f"{', '.join(one.described() for one in broken[:3])}{more}. The file is damaged, or was saved from a "
                "training or merge that failed: it draws black pictures and trains to nothing. Fetch it again, or take "
                "another base."
            )


def _weights_of(place: Path | ComponentTensors, component: Component) -> Iterator[tuple[TensorSource, list[str], str]]:
    """(file, tensors of the component in it, name of what is remembered) of every weight file."""
    if isinstance(place, Path):
        for name in sorted(name for name in component.files if name.endswith(".safetensors")):
            file = TensorFile(place / name)
            yield file, file.names, "finite"
        return
    prefix = place.found.prefix
    wanted = {prefix + name for _, name in place.sources.values()}
    wanted |= {scale for _, name in place.sources.values() if (scale := place.found.scale(name))}
    for source in place.found.weights.files:
        names = [name for name in source.names if name in wanted]
        yield source, names, f"finite:{component.name}:{prefix}:{table_version(place.rows)}"


def _raw(file: TensorSource, names: Iterable[str]) -> Iterator[tuple[str, RawTensor]]:
    return ((name, file.raw(name)) for name in names)


def read_config(path: Path) -> dict[str, Any]:
    """A component's config.

    Raises: BaseError where it is no valid JSON, or no object.
    """
    try:
        return sound_config(read_json(path))
    except ValueError as error:
        raise BaseError(f"{path} is no valid JSON of a model ({error}): copy the model folder again.") from None


def _weight_files(folder: Path, suffix: str | None) -> list[Path]:
    """The weight files that count; none for a tokenizer or a scheduler."""
    by_suffix: dict[str | None, list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        by_suffix.setdefault(weights_suffix(path.name), []).append(path)
    if not by_suffix and list(folder.glob("*.bin")):
        raise BaseError(f"{folder} holds pickled weights only; eridiff reads safetensors.")
    if suffix is None and None not in by_suffix and by_suffix:
        if len(by_suffix) > 1:
            names = ", ".join(sorted(map(str, by_suffix)))
            raise BaseError(f"{folder} holds the weights {names} and none without a suffix: choose with --weights.")
        return next(iter(by_suffix.values()))
    return by_suffix.get(suffix, by_suffix.get(None, []))


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
    digests = on_cores(file.names, lambda name: digest_tensors({"": file.raw(name)}))
    return canonical_json(dict(zip(file.names, digests, strict=True)))
