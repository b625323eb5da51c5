"""`eridiff inspect`: what a weight file, a model folder or a pointer is, by headers alone."""

from collections.abc import Iterator
from pathlib import Path

from eridiff.bases.lora_files import describe_lora, is_lora
from eridiff.bases.marks import denoiser_marks, scheduler_beside, settle_scheduler
from eridiff.bases.places import MODEL_SUFFIXES, model_files
from eridiff.bases.pointer_report import describe_pointer, is_pointer, pointer_files, refuse_other_json
from eridiff.bases.recognise import components_in
from eridiff.core.errors import BaseError, DataError
from eridiff.family import family_names, load_family, load_keys, published
from eridiff.weights.component_tensors import ComponentTensors, map_component, shorten
from eridiff.weights.components import read_config
from eridiff.weights.files import Found, Weights, open_weights

GIB, MIB = 2**30, 2**20


def inspect_path(path: Path) -> list[str]:
    """Lines that say what a file is, or each weight file and pointer below a folder.

    Raises: BaseError where a file is none, or a folder has none; DataError where a file is damaged.
    """
    if not path.is_dir():
        return list(_describe_file(path))
    lines: list[str] = []
    for file in [*pointer_files(path), *model_files(path)]:
        name = str(file.relative_to(path))
        try:
            lines += _describe_file(file, name)
        except (BaseError, DataError) as error:  # the folder's other files are told all the same
            lines.append(f"{name}: {error}")
    if not lines:
        raise BaseError(f"{path} holds no weight file: no {', '.join(MODEL_SUFFIXES)}; and no pointer of a base.")
    return lines


def _describe_file(path: Path, name: str = "") -> Iterator[str]:
    """One weight file or pointer. name: as it is told; its own where it is empty."""
    if is_pointer(path):
        return describe_pointer(path, name or path.name)
    refuse_other_json(path)
    return describe(open_weights(path), name)


def describe(weights: Weights, name: str = "") -> Iterator[str]:
    """What one file, or one set of shards, holds: a line a component, then what is missing or of no use; or a LoRA.

    name: as the file is told; the first file's own where it is empty.
    """
    lora = is_lora(weights.where)
    found, rest = ([], []) if lora else components_in(weights)
    shards = f" and {len(weights.paths) - 1} more shards" if len(weights.paths) > 1 else ""
    yield f"{name or weights.paths[0].name}{shards}: {len(weights.where)} tensors, {describe_size(sum_bytes(weights))}"
    if lora:
        yield from (f"  {line}" for line in describe_lora(weights))
        return
    if not found:
        yield f"  no component of a known model: {shorten(rest)}"
        return
    for one in found:
        yield "  " + describe_found(one)
        if one.look.refusal:
            yield f"    no base: {one.look.refusal}."
        yield from (f"    {line}" for line in differences(one))
    if rest:
        yield f"  of no component: {len(rest)} tensors: {shorten(rest)}"
    yield from (f"  {line}" for one in found if one.family for line in objective_of(one))


def objective_of(found: Found) -> Iterator[str]:
    """What a denoiser's marks, and a scheduler's config beside its file, say of the objective; none where none does."""
    objective, path = load_family(found.family).OBJECTIVE, found.weights.paths[0]
    marks, beside = denoiser_marks(found, objective), scheduler_beside(path)
    if found.look.refusal or not (marks or beside):
        return
    try:
        stated = read_config(beside) if beside else {}
        yield from settle_scheduler(stated, marks, objective, path.name, beside.name if beside else "")[1]
    except BaseError as error:
        yield f"no base: {error}"


def describe_found(found: Found) -> str:
    """One component in one line: what it is, its names, its number formats, its size."""
    formats = ", ".join(f"{name} x {count}" for name, count in found.formats.most_common())
    scaled = ", scaled fp8" if found.scaled else ""
    where = f"below {found.prefix}" if found.prefix else "without a prefix"
    names = {"original": "its makers' names", "diffusers": "diffusers' names"}[found.look.layout]
    who = f"{found.family}: " if found.family else ""
    return f"{who}{found.look.what}: {names} {where}; {formats}{scaled}; {describe_size(found.bytes)}"


def differences(found: Found) -> Iterator[str]:
    """Against the published model: tensors that are missing, tensors that nothing reads, and which base it fits."""
    if found.look.refusal:
        return
    if found.family:
        if not found.look.model:
            yield "sizes of no published model: give its configs, `eridiff base add NAME FILE --config FOLDER`"
            return
        yield from _compare(as_published(found, found.look.model))
        return
    places = fitting(found)
    yield f"fits {', '.join(places)}" if places else "fits no published model"


def fitting(found: Found) -> list[str]:
    """Which families' components a VAE or text encoder fits: with nothing missing, and the least unread."""
    unread: dict[str, int] = {}
    for family in family_names():
        keys, configs = load_keys(family), published(family).models
        for component, kind in keys.COMPONENTS.items():
            if kind.kind == found.kind and configs:
                config = next(iter(configs.values()))[component]
                tensors = map_component(found, kind, component, config, keys.canonical, whole=False)
                if not tensors.missing:
                    unread[f"{family} ({component})"] = len(tensors.extra)
    return [place for place, count in unread.items() if count == min(unread.values())]


def as_published(found: Found, model: str) -> ComponentTensors:
    """A denoiser read as the published model that its shapes show."""
    keys = load_keys(found.family)
    component = next(name for name, kind in keys.COMPONENTS.items() if kind.kind == "denoiser")
    config = published(found.family).models[model][component]
    return map_component(found, keys.COMPONENTS[component], component, config, keys.canonical, whole=False)


def _compare(tensors: ComponentTensors) -> Iterator[str]:
    if tensors.missing:
        yield f"missing: {len(tensors.missing)} tensors: {shorten(tensors.missing)}"
    if tensors.extra:
        yield f"not read: {len(tensors.extra)} tensors: {shorten(tensors.extra)}"


def sum_bytes(weights: Weights) -> int:
    """Bytes of all tensors."""
    return sum(file.size(name) for name, file in weights.where.items())


def describe_size(count: int) -> str:
    """A size as a person reads it."""
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / MIB:.2f} MiB"
