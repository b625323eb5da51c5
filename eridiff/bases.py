"""`eridiff base add`: pointers for a model folder, and where the folder lies on this machine."""

import json
from pathlib import Path

from eridiff.config import read_yaml
from eridiff.errors import BaseError
from eridiff.families import family_names, load_family, load_keys
from eridiff.filedigests import FileDigests
from eridiff.files import write_text
from eridiff.project import NAME, bases_dir, checkout_root
from eridiff.sources import Pointer, describe_component, pointer_text


def detect_family(folder: Path) -> str:
    """The family of a model folder in diffusers' layout, by the pipeline that its model_index.json names.

    Raises: BaseError where the folder is none, or of a pipeline that no family trains.
    """
    index = folder / "model_index.json"
    if not index.exists():
        raise BaseError(f"{folder} is no model folder in diffusers' layout: it has no model_index.json.")
    try:
        pipeline = json.loads(index.read_text("utf-8")).get("_class_name")
    except ValueError:
        raise BaseError(f"{index} is no valid JSON: copy the model folder again.") from None
    known = {load_family(name).PIPELINE: name for name in family_names()}
    if pipeline not in known:
        raise BaseError(f"{folder} is a '{pipeline}', which no family trains. Known: {', '.join(sorted(known))}.")
    return known[pipeline]


def make_pointers(name: str, folder: Path) -> list[Pointer]:
    """The pointers of base NAME to what a model folder holds.

    Raises: BaseError where the folder is no base of a family, or lacks a component.
    """
    family_name = detect_family(folder)
    family, canonical = load_family(family_name), load_keys(family_name).canonical
    with FileDigests() as digests:
        return [
            Pointer(
                base=name,
                family=family_name,
                part=part,
                components={c: describe_component(folder / c, canonical, digests) for c in components},
            )
            for part, components in family.PARTS.items()
        ]


def add_base(name: str, folder: Path) -> list[Path]:
    """Write data/bases/NAME/{vae,text,denoiser}.json for a model folder; returns the pointers' paths.

    A folder outside data/bases is remembered in local.yaml. Everything is read before anything is written.
    """
    if not NAME.fullmatch(name):
        raise BaseError(f"'{name}' is no name for a base: letters, digits, '.', '_' and '-' only.")
    pointers = make_pointers(name, folder)
    target = bases_dir() / name
    for pointer in pointers:
        write_text(target / f"{pointer.part}.json", pointer_text(pointer))
    if folder.resolve() != target.resolve():
        _remember(name, folder.resolve())
    return [target / f"{pointer.part}.json" for pointer in pointers]


def _remember(name: str, folder: Path) -> None:
    """Note the folder under `bases` in the checkout's local.yaml, keeping what stands there."""
    import io

    from ruamel.yaml import YAML

    path = checkout_root() / "local.yaml"
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 1 << 16
    record = (yaml.load(path.read_text("utf-8")) if path.exists() and read_yaml(path) else None) or {}
    if not record.get("bases"):
        record["bases"] = {}
    record["bases"][name] = str(folder)
    buffer = io.StringIO()
    yaml.dump(record, buffer)
    write_text(path, buffer.getvalue())
