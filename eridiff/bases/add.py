"""`eridiff base add`: pointers for a model folder or for single files, and where they lie on this machine."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from eridiff.bases.collect import Collected, collect
from eridiff.bases.find import candidates
from eridiff.bases.hub import REPOSITORY, fetch_snapshot, page_of
from eridiff.bases.licences import (
    Licence,
    licence_path,
    licences_text,
    published_licence,
    stated_licence,
    tagged_licence,
    terms,
    unknown,
)
from eridiff.bases.marks import find_marks, refuse_normalised, settle_scheduler
from eridiff.bases.places import Places
from eridiff.bases.pointer_files import pointers_of, write_pointer
from eridiff.bases.recognise import components_in
from eridiff.core.config import read_yaml
from eridiff.core.errors import BaseError, DataError
from eridiff.core.files import read_text, write_text
from eridiff.core.json_files import read_json
from eridiff.core.progress import say
from eridiff.family import family_names, load_family, load_keys, pipeline_name
from eridiff.formats.safetensors import TensorFile
from eridiff.machine.filedigests import FileDigests
from eridiff.machine.local import NAME, bases_dir, places_file
from eridiff.weights.components import (
    Component,
    describe_folder,
    describe_scheduler,
    describe_tensors,
    read_config,
    refuse_missing,
    refuse_nonfinite,
)
from eridiff.weights.files import Found, Weights, open_weights
from eridiff.weights.pointers import Pointer


def detect_family(folder: Path) -> str:
    """The family of a model folder in diffusers' layout, by the pipeline that its model_index.json names.

    Raises: BaseError where the folder is none, or of a pipeline that no family trains.
    """
    index = folder / "model_index.json"
    if not index.exists():
        raise BaseError(f"{folder} is no model folder in diffusers' layout: it has no model_index.json.")
    try:
        pipeline = str(read_json(index).get("_class_name"))
    except ValueError as error:
        raise BaseError(f"{index} is no valid JSON ({error}): copy the model folder again.") from None
    known = {pipeline_name(name): name for name in family_names()}
    if pipeline not in known:
        raise BaseError(f"{folder} is a '{pipeline}', which no family trains. Known: {', '.join(sorted(known))}.")
    return known[pipeline]


def make_pointers(name: str, folder: Path, weights: str | None = None) -> list[Pointer]:
    """The pointers of base NAME to what a model folder holds. weights: as in `describe_folder`.

    Raises: BaseError where the folder is no base of a family, or is missing a component.
    """
    family = detect_family(folder)
    canonical = load_keys(family).canonical
    for component in (component for components in load_family(family).PARTS.values() for component in components):
        refuse_missing(folder / component)  # before any weight is read
    scheduler = _scheduler_of(folder, family)

    with FileDigests() as digests:

        def describe(component: str) -> Component:
            if component == "scheduler":
                return describe_scheduler(scheduler)
            described = describe_folder(folder / component, canonical, digests, weights)
            refuse_nonfinite(folder / component, described, digests)
            return described

        return _pointers(name, family, describe)


def _scheduler_of(folder: Path, family: str) -> dict[str, Any]:
    """The scheduler's config of a model folder, by the marks in the denoiser's files too; says what they made of it.

    Raises: BaseError where it is missing, or names an objective that is not trained.
    """
    path, module = folder / "scheduler" / "scheduler_config.json", load_family(family)
    if not path.exists():
        raise BaseError(f"{path} is missing: a base in diffusers' layout has this file.")
    files = sorted((folder / module.DENOISER).glob("*.safetensors"))
    marks = find_marks(Weights(tuple(TensorFile(file) for file in files)), module.OBJECTIVE)
    settled, lines = settle_scheduler(read_config(path), marks, module.OBJECTIVE, str(folder), str(path))
    for line in lines:
        say(line)
    return settled


def point_to_files(name: str, collected: Collected) -> list[Pointer]:
    """The pointers of base NAME to single files."""
    canonical = load_keys(collected.family).canonical

    with FileDigests() as digests:

        def describe(component: str) -> Component:
            if component in collected.tensors:
                described = describe_tensors(collected.tensors[component], collected.configs[component], digests)
                refuse_nonfinite(collected.tensors[component], described, digests)
                return described
            if component in collected.tokenizers:
                return describe_folder(collected.tokenizers[component], canonical, digests, name=component)
            return describe_scheduler(collected.configs[component])

        return _pointers(name, collected.family, describe)


def _pointers(name: str, family: str, describe: Any) -> list[Pointer]:
    pointers = [
        Pointer(base=name, family=family, part=part, components={c: describe(c) for c in components})
        for part, components in load_family(family).PARTS.items()
    ]
    for pointer in pointers:
        if vae := pointer.components.get("vae"):
            refuse_normalised(vae.config, f"base '{name}'")
    return pointers


def add_base(
    name: str, sources: Sequence[str | Path], config: Path | None = None, weights: str | None = None
) -> list[Path]:
    """Write data/bases/NAME/{vae,text,denoiser}.json and license.json; returns their paths.

    sources: one folder in diffusers' layout, or a repository of the hub; or single files, by path or by name where
    ComfyUI has them. config: a folder in diffusers' layout whose configs and tokenizers the files are read with.
    weights: which ones of a folder that has several, such as fp16.
    What lies outside data/bases is remembered in local.yaml. Everything is read before anything is written.
    """
    if not NAME.fullmatch(name):
        raise BaseError(f"'{name}' is no name for a base: letters, digits, '.', '_' and '-' only.")
    paths = [_locate(source) for source in sources]
    if len(paths) == 1 and paths[0].is_dir():
        if config is not None:
            raise BaseError(f"--config belongs to single files; {paths[0]} is a folder with configs of its own.")
        pointers, used = make_pointers(name, paths[0], weights), paths
        licences = licences_of_folder(paths[0])
    else:
        if folders := [str(path) for path in paths if path.is_dir()]:
            raise BaseError(f"a base is one folder, or files: {', '.join(folders)} is a folder among several sources.")
        collected = collect(paths, config)
        pointers, used = point_to_files(name, collected), collected.files
        licences = licences_of_files(collected)
    target = bases_dir() / name
    for pointer in pointers:
        write_pointer(target / f"{pointer.part}.json", pointer)
    write_text(licence_path(name), licences_text(licences))
    say(f"licence: {terms(licences)}, according to {licences[0].source}" if licences else f"licence: {unknown(name)}")
    if [path.resolve() for path in used] != [target.resolve()]:
        _remember(name, [path.resolve() for path in used])
    return [*(target / f"{pointer.part}.json" for pointer in pointers), licence_path(name)]


def licences_of_folder(folder: Path) -> tuple[Licence, ...]:
    """The licences of a model folder: what it states, then its makers' of a model of this form."""
    family = detect_family(folder)
    weights = min((folder / load_family(family).DENOISER).glob("*.safetensors"), default=None)
    try:
        found = components_in(open_weights(weights))[0] if weights else []
    except (BaseError, DataError):  # a name for its form is not needed
        found = []
    return _licences(found, stated_licence(folder, page_of(folder)))


def licences_of_files(collected: Collected) -> tuple[Licence, ...]:
    """The licences of single files: what the denoiser's own metadata state, or what lies beside it; then its makers'.

    Beside it counts only where no other weights lie there: a folder of many models says nothing of one.
    """
    found = collected.tensors[load_family(collected.family).DENOISER].found
    path, metadata = found.weights.paths[0], found.weights.files[0].metadata
    ours = {file for one in collected.tensors.values() for file in one.found.weights.paths}
    alone = set(path.parent.glob(f"*{path.suffix}")) <= ours
    return _licences([found], tagged_licence(metadata, path.name) or (stated_licence(path.parent) if alone else None))


def _licences(found: Iterable[Found], stated: Licence | None) -> tuple[Licence, ...]:
    makers = (published_licence(one.family, one.look.model) for one in found if one.kind == "denoiser")
    return tuple(licence for licence in (stated, *makers) if licence)


def _locate(source: str | Path) -> Path:
    """The file or folder that a source names: a path, a file name that ComfyUI has, or a repository of the hub.

    Raises: BaseError where there is none.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if path.name == str(source) and path.suffix:
        for file in Places().files():
            if file.name == path.name:
                return file
    if REPOSITORY.fullmatch(str(source)) and path.suffix != ".safetensors":
        return fetch_snapshot(str(source))
    raise BaseError(
        f"{source} is no file or folder, and no file of that name lies in {Places().described()}. A repository of the "
        "hub is named as OWNER/NAME."
    )


def _remember(name: str, paths: Iterable[Path]) -> None:
    """Note the places under `bases` in local.yaml, keeping what stands there."""
    from ruamel.yaml import YAML

    path = places_file()
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 1 << 16
    record = (yaml.load(read_text(path)) if path.exists() and read_yaml(path) else None) or {}
    if not record.get("bases"):
        record["bases"] = {}
    places = [str(place) for place in paths]
    record["bases"][name] = places[0] if len(places) == 1 else places
    buffer = io.StringIO()
    yaml.dump(record, buffer)
    write_text(path, buffer.getvalue())


def missing_components(name: str, family: str) -> list[str]:
    """The components of a base whose files are not on this machine, by name and size.

    Raises: BaseError where a pointer is missing or cannot be read.
    """
    return [
        component.name
        for pointer in pointers_of(name, load_family(family).PARTS, family).values()
        for component in pointer.components.values()
        if component.files and next(candidates(pointer, component), None) is None
    ]


def base_names() -> list[str]:
    """Every base that has pointers, whether or not they can be read."""
    return sorted(path.parent.name for path in bases_dir().glob("*/denoiser.json"))
