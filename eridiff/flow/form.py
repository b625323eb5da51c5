"""What a run is asked for: a form typed from the configuration's own schema, and what was filled in."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from eridiff.check import SECTIONS
from eridiff.core.config import Section, parse_yaml, read_yaml, validate
from eridiff.core.errors import ConfigError, did_you_mean
from eridiff.core.sections import docstrings, nested
from eridiff.dvc.experiments import changes, refuse_lost

CHECKOUT = "(checkout)"  # no name of a project: those begin with a letter or digit
FIELDS = {
    "project": "The pictures: a folder of projects/, or the checkout's own.",
    "preset": "A params file of presets/ in place of the project's own params.yaml, for this run alone.",
    "overrides": "Keys of params.yaml, for this run alone. What is left empty stays as it is. With any, or with a "
    "preset, the run is an experiment: it works in a copy, and params.yaml stays as it is.",
    "stop_at": "The last stage to run; empty: all.",
    "minutes": "Minutes after which any one stage is stopped; empty: as dvc.yaml says. What it kept is used again.",
}
MAX_MINUTES = 100_000.0  # ten weeks


class Asked(Section):
    """What a form or a command line sends, before it is looked at."""

    project: str
    """A project's name."""
    preset: str | None
    """A preset's name."""
    overrides: Annotated[dict[str, Any], Field(max_length=100)] | None
    """Section -> key -> value."""
    stop_at: str | None
    """A stage's name."""
    minutes: Annotated[float, Field(gt=0, le=MAX_MINUTES)] | None
    """Of any one stage."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One run: where, with which `--set-param` (none: in place), up to which stage, and minutes for each stage."""

    project: str
    folder: Path
    changes: tuple[str, ...]
    stop_at: str | None
    minutes: float | None


def projects(root: Path) -> dict[str, Path]:
    """Name -> folder: the checkout's own pipeline, then every project."""
    found = sorted(path.parent for path in root.glob("projects/*/dvc.yaml"))
    return {CHECKOUT: root} | {folder.name: folder for folder in found}


def presets(root: Path) -> dict[str, Path]:
    """Name -> params file."""
    return {path.stem: path for path in sorted(root.glob("presets/*.yaml"))}


def stage_names(root: Path) -> list[str]:
    """Stages of the checkout's dvc.yaml in its order, then those that only projects have."""
    names: dict[str, None] = {}
    for folder in projects(root).values():
        try:
            record = read_yaml(folder / "dvc.yaml")
            names |= dict.fromkeys(record["stages"])
        except (ConfigError, TypeError, KeyError):
            continue  # a run of that project says what is wrong; the others can still be chosen
    return list(names)


def form_schema(root: Path) -> dict[str, Any]:
    """The form as a JSON schema: what there is to choose from in this checkout, and every key of params.yaml."""
    definitions: dict[str, Any] = {}
    sections: dict[str, Any] = {}
    for position, (name, model) in enumerate(SECTIONS.items()):
        definitions |= {kind: _loose(schema) for kind, schema in _described(model).items()}
        sections[name] = {"$ref": f"#/definitions/{model.__name__}", "title": name, "position": position}
    definitions["Overrides"] = {"type": "object", "properties": sections, "additionalProperties": False}
    kinds: dict[str, dict[str, Any]] = {
        "project": {"type": "string", "enum": list(projects(root)), "default": CHECKOUT},
        "preset": {"type": "string", "enum": list(presets(root))},
        "stop_at": {"type": "string", "enum": stage_names(root)},
        "minutes": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_MINUTES},
        "overrides": {"$ref": "#/definitions/Overrides"},
    }
    fields = {
        name: {**kind, "title": name.replace("_", " "), "description": FIELDS[name], "position": position}
        for position, (name, kind) in enumerate(kinds.items())
    }
    return {"title": "Parameters", "type": "object", "properties": fields, "required": [], "definitions": definitions}


def _described(model: type[Section]) -> dict[str, Any]:
    """Name of a section's type -> its JSON schema, each field with its docstring; those inside it, then itself."""
    schema = model.model_json_schema(ref_template="#/definitions/{model}")
    schemas = {**schema.pop("$defs", {}), model.__name__: schema}
    for kind in [model, *(inner for _, inner in nested(model, ""))]:
        for name, text in docstrings(kind).items():
            field = schemas[kind.__name__]["properties"][name]
            if schemas.get(field.get("$ref", "").rpartition("/")[2], {}).get("description") != text:
                field["description"] = text
    return schemas


def _loose(schema: Any) -> Any:
    """A schema without defaults and required keys, and without `null`: an empty field changes nothing.

    Fields are called what their keys are called.
    """
    if isinstance(schema, list):
        return [_loose(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    loose = {key: _loose(value) for key, value in schema.items() if key != "default"}
    if isinstance(loose.get("required"), list):
        del loose["required"]
    if isinstance(fields := loose.get("properties"), dict):
        loose["properties"] = {name: {**field, "title": name} for name, field in fields.items()}
    if loose.get("type") == "boolean":  # a choice, since a switch has no place for "as it is"
        del loose["type"]
        loose["enum"] = [True, False]
    kinds = loose.get("anyOf")
    if isinstance(kinds, list) and {"type": "null"} in kinds:
        kinds.remove({"type": "null"})
        if len(kinds) == 1:
            del loose["anyOf"]
            loose = {**kinds[0], **loose}
    return loose


def read_request(
    root: Path,
    project: str,
    preset: str | None,
    overrides: Mapping[str, Any] | None,
    stop_at: str | None,
    minutes: float | None,
) -> Request:
    """What a filled-in form asks for.

    Raises: ConfigError that names the field or key, its value and the choices.
    """
    fields = {"project": project, "preset": preset, "overrides": overrides, "stop_at": stop_at, "minutes": minutes}
    asked = validate(Asked, fields, where="the run", prefix="")
    folder = _choose(projects(root), asked.project, "project", "make one with `eridiff new`")
    own = _sections(folder / "params.yaml")
    wanted = own if preset is None else _sections(_choose(presets(root), preset, "preset", "presets/ holds them"))
    wanted = _merged(wanted, overrides or {})
    for name in overrides or {}:
        if name not in SECTIONS:
            raise ConfigError(f"overrides: params.yaml has no section '{name}'.{did_you_mean(name, SECTIONS)}")
        validate(SECTIONS[name], wanted[name], where="overrides", prefix=name)
    sets = tuple(changes(own, wanted))
    if sets:
        refuse_lost(folder / "params.yaml", sets, wanted)
    return Request(project=asked.project, folder=folder, changes=sets, stop_at=asked.stop_at, minutes=asked.minutes)


def _sections(path: Path) -> dict[str, Any]:
    """A params file as it stands.

    Raises: ConfigError where it has no sections.
    """
    params = read_yaml(path)
    if not isinstance(params, dict):
        raise ConfigError(f"{path} has no sections. Known: {', '.join(SECTIONS)}.")
    return params


def _choose(known: Mapping[str, Path], name: str, field: str, way_out: str) -> Path:
    if name not in known:
        raise ConfigError(f"{field}: there is no '{name}': {way_out}.{did_you_mean(name, known)}")
    return known[name]


def _merged(base: Any, over: Any) -> Any:
    """Nested dicts merged; anything else, and lists as a whole, replaced."""
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        return {**base, **{key: _merged(base.get(key), value) for key, value in over.items()}}
    return over


def read_sets(sets: list[str]) -> dict[str, Any]:
    """`section.key=value` from a command line as nested overrides; values are YAML, as in params.yaml.

    Raises: ConfigError where one is not of that form.
    """
    nested: dict[str, Any] = {}
    for text in sets:
        path, equals, value = text.partition("=")
        *parents, last = path.split(".")
        if not equals or not parents or not all([*parents, last]):
            raise ConfigError(f"--set {text}: write it as section.key=value, such as train.steps=100.")
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {text}: {parent} has a value of its own already, by another --set.")
        inner[last] = parse_yaml(value, f"--set {path}")
    return nested
