"""Single files that make up a base: which components each holds, and what is still wanted, from ComfyUI's folders."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eridiff.bases.marks import denoiser_marks, scheduler_beside, settle_scheduler
from eridiff.bases.places import Places, shared_t5, weight_files
from eridiff.bases.recognise import components_in
from eridiff.bases.tokenizers import PADS, clip_tokenizer
from eridiff.core.errors import BaseError, DataError
from eridiff.core.progress import say, warn
from eridiff.family import load_family, load_keys, published
from eridiff.machine.local import bases_dir
from eridiff.weights.component_tensors import ComponentTensors, as_kind, map_component
from eridiff.weights.components import read_config
from eridiff.weights.files import Found, open_weights

DECISIVE = ("prediction_type", "rescale_betas_zero_snr")  # keys of a scheduler's config that change the objective
T5_URL = "https://github.com/comfyanonymous/ComfyUI/tree/master/comfy/text_encoders/t5_tokenizer"


@dataclass(frozen=True, kw_only=True)
class Collected:
    """A base out of files: each component's tensors, config or folder."""

    family: str
    tensors: Mapping[str, ComponentTensors]  # by component
    configs: Mapping[str, dict[str, Any]]
    tokenizers: Mapping[str, Path]
    folder: Path | None  # of --config

    @property
    def files(self) -> list[Path]:
        """The files, each once, and the folder that gave configs and tokenizers."""
        paths = [path for one in self.tensors.values() for path in one.found.weights.paths[:1]]
        return list(dict.fromkeys([*paths, *([self.folder] if self.folder else [])]))


def collect(paths: Sequence[Path], config: Path | None) -> Collected:
    """The base that files make up; what they do not hold is looked for in ComfyUI's folders under its usual names.

    config: a folder in diffusers' layout to take configs and tokenizers from; None: those that the makers published.
    Raises: BaseError where a file is no component of a base, or a component is nowhere to be found.
    """
    given = [found for path in paths for found in _found_in(path)]
    denoiser = _denoiser(given, paths)
    family = denoiser.family
    configs = _configs(denoiser, config)
    configs["scheduler"] = _scheduler(denoiser, configs["scheduler"], config, paths)
    keys, tensors = load_keys(family), {}
    for component, wanted in keys.COMPONENTS.items():
        fitting = [as_kind(found, wanted.kind, configs[component]) for found in given]
        chosen = [found for found in fitting if found.kind == wanted.kind]
        if len(chosen) > 1:
            names = " and ".join(str(found.weights.paths[0]) for found in chosen)
            raise BaseError(f"{names} both hold {component} ({chosen[0].look.what}): leave one out.")
        found = chosen[0] if chosen else _usual(family, component, wanted.kind, configs)
        tensors[component] = map_component(found, wanted, component, configs[component], keys.canonical)
    _tell_unread(given, tensors)
    tokenizers = dict(_tokenizers(family, config, Places()))
    return Collected(family=family, tensors=tensors, configs=configs, tokenizers=tokenizers, folder=config)


def _found_in(path: Path) -> list[Found]:
    """The components in one file.

    Raises: BaseError where it has none, or one that is no base.
    """
    found, _ = components_in(open_weights(path))
    if not found:
        raise BaseError(f"{path} holds no component of a known model: `eridiff inspect {path}` shows what it holds.")
    for one in found:
        if one.look.refusal:
            raise BaseError(f"{path} is no base: {one.look.what}; {one.look.refusal}.")
    return found


def _denoiser(given: Sequence[Found], paths: Sequence[Path]) -> Found:
    found = [one for one in given if one.kind == "denoiser"]
    if len(found) == 1:
        return found[0]
    if found:
        raise BaseError(f"several denoisers: {', '.join(_named(one) for one in found)}. Give one.")
    here = ", ".join(_named(one) for one in given)
    raise BaseError(
        f"{', '.join(map(str, paths))}: no denoiser among {here}. Give the file of the UNet or transformer."
    )


def _named(one: Found) -> str:
    return f"{one.look.what} ({one.weights.paths[0].name})"


def _configs(denoiser: Found, folder: Path | None) -> dict[str, dict[str, Any]]:
    """Component -> config: of a folder, or as published.

    Raises: BaseError where the sizes are of no published model, or the folder is of another family.
    """
    keys, family = load_keys(denoiser.family), load_family(denoiser.family)
    names = [c for components in family.PARTS.values() for c in components]
    if folder is None:
        if not denoiser.look.model:
            raise BaseError(
                f"{denoiser.weights.paths[0]}: {denoiser.look.what}, which nobody published. Name a folder in "
                "diffusers' layout with its configs: --config FOLDER."
            )
        configs = {
            name: dict(config) for name, config in published(denoiser.family).models[denoiser.look.model].items()
        }
    else:
        paths = {
            name: folder / name / ("scheduler_config.json" if name == "scheduler" else "config.json") for name in names
        }
        wanted = {name: path for name, path in paths.items() if name in keys.COMPONENTS or name == "scheduler"}
        if missing := [str(path) for path in wanted.values() if not path.exists()]:
            raise BaseError(f"--config {folder} is missing {', '.join(missing)}: it is no base of {denoiser.family}.")
        configs = {name: read_config(path) for name, path in wanted.items()}
    return configs


def _scheduler(
    denoiser: Found, config: Mapping[str, Any], folder: Path | None, paths: Sequence[Path]
) -> dict[str, Any]:
    """The scheduler's config by the denoiser's marks, and by a scheduler's config beside its file.

    Raises: BaseError where they name an objective that is not trained, or where a config may be another file's.
    """
    objective, path = load_family(denoiser.family).OBJECTIVE, denoiser.weights.paths[0]
    marks, stated = denoiser_marks(denoiser, objective), str(folder or "")
    beside = scheduler_beside(path)
    named = read_config(beside) if beside else {}
    if beside and not folder:
        stated = str(beside)
        given, _ = settle_scheduler(named, marks, objective, str(path), stated)
        others = set(weight_files(path.parent)) - {*paths, *denoiser.weights.paths}
        plain = settle_scheduler(config, marks, objective, str(path))[0] if others else {}
        if others and any(given.get(key) != plain.get(key) for key in DECISIVE):
            raise BaseError(
                f"{beside} says other things of the objective than {path.name} does, and may belong to "
                f"{min(others).name}, which lies there too. Put each model into a folder of its own, or name the "
                "folder whose configs count: --config FOLDER."
            )
        config = named
    settled, lines = settle_scheduler(config, marks, objective, str(path), stated)
    overruled = any((named[key] or None) != (settled.get(key) or None) for key in DECISIVE if key in named)
    for line in [*lines, *([f"objective: not heeded: {beside}"] if overruled else [])]:
        say(line)
    return settled


def _usual(family: str, component: str, kind: str, configs: Mapping[str, Mapping[str, Any]]) -> Found:
    """A component that no given file holds, from ComfyUI's folders by its usual names.

    Raises: BaseError that says which file goes where.
    """
    folder, *names = published(family).files.get(component, [""])
    by_name = {path.name: path for path in reversed(list(Places().files()))}
    for name in names:
        if name in by_name:
            try:
                held, _ = components_in(open_weights(by_name[name]))
            except (BaseError, DataError) as error:
                warn(f"{by_name[name]} is not used: {error}")
                continue
            for found in (as_kind(one, kind, configs[component]) for one in held):
                if found.kind == kind:
                    say(f"{component}: {by_name[name]}")
                    return found
    raise BaseError(
        f"no file holds {component}. Give it too, or put {' or '.join(names)} into {folder} of ComfyUI's models. "
        f"Searched: {Places().described()}."
    )


def _tokenizers(family: str, config: Path | None, places: Places) -> Iterator[tuple[str, Path]]:
    """Component -> folder of its tokenizer: of --config, built in, ComfyUI's, or of another base.

    Raises: BaseError that says where T5's goes.
    """
    kinds = published(family).tokenizers
    for component, kind in kinds.items():
        if config is not None and (config / component).is_dir():
            yield component, config / component
        elif kind in PADS:
            yield component, clip_tokenizer(kind)
        else:
            found = [folder for folder in _t5_folders(component, places) if _is_t5(folder)]
            if not found:
                raise BaseError(_where_t5(component, places))
            yield component, found[0]


def _t5_folders(component: str, places: Places) -> Iterator[Path]:
    yield from (folder / component for folder in places.model_folders() if folder != bases_dir())
    yield from places.tokenizers()


def _is_t5(folder: Path) -> bool:
    """Whether a folder holds T5's tokenizer, and not a CLIP's under the same name."""
    config = folder / "tokenizer_config.json"
    if not config.exists() or not (folder / "tokenizer.json").exists():
        return False
    return str(read_config(config).get("tokenizer_class", "")).startswith("T5")


def _where_t5(component: str, places: Places) -> str:
    looked = f"ComfyUI's {places.comfyui}/comfy/text_encoders/t5_tokenizer" if places.comfyui else "ComfyUI (not found)"
    return (
        f"T5's tokenizer ({component}) is not on this machine; no weight file holds it. ComfyUI brings it along: name "
        "ComfyUI's folder in local.yaml (comfyui: PATH). Or download tokenizer.json and tokenizer_config.json (2.4 MB) "
        f"of {T5_URL} into {shared_t5()}. Searched: {looked}, {shared_t5()}, the hub's cache."
    )


def _tell_unread(given: Sequence[Found], collected: Mapping[str, ComponentTensors]) -> None:
    """Say what of the given files is not used."""
    used = {id(tensors.found.weights): tensors for tensors in collected.values()}
    for one in given:
        if id(one.weights) not in used and one.kind != "denoiser":
            warn(f"{one.weights.paths[0]} is not used: the base has no {one.look.what}.")
    for component, tensors in collected.items():
        if tensors.extra:
            warn(f"{component}: {len(tensors.extra)} tensors of {tensors.found.weights.paths[0].name} are not read.")
