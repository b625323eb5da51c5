"""params.yaml and local.yaml: typed, strict, read by the parser that DVC uses (YAML 1.2: `1e-4` is a number)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from eridiff.errors import ConfigError, did_you_mean


class Section(BaseModel):
    """One section of a configuration file: frozen, unknown keys refused, no conversion of types."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


SectionT = TypeVar("SectionT", bound=Section)


class ModelParams(Section):
    """Which model is trained."""

    family: str
    """The architecture: a folder of eridiff/families."""
    base: str
    """The base: a folder of data/bases, made by `eridiff base add`."""
    allow_cpu: bool = False
    """Run on a CPU where there is no CUDA device. Only the small bases are any use there."""


def read_yaml(path: Path) -> Any:
    """Parse a YAML file as DVC does.

    Raises: ConfigError for a missing file, a syntax error or a duplicate key, with the line.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing. A preset to copy lies in presets/.") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no valid YAML: {error}") from None


def load_section(model: type[SectionT], name: str, path: Path = Path("params.yaml")) -> SectionT:
    """Read and validate one section of params.yaml.

    Raises: ConfigError that names the key's path, its value, the choices and the nearest known name.
    """
    params = read_yaml(path)
    if not isinstance(params, Mapping) or name not in params:
        raise ConfigError(f"{path}: section '{name}' is missing.")
    return validate(model, params[name], where=str(path), prefix=name)


def validate(model: type[SectionT], data: object, *, where: str, prefix: str) -> SectionT:
    """Check plain data against a section's model; `prefix` is the key path of the section in its file."""
    try:
        text = json.dumps(data)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {prefix or 'the file'}: not plain values: {error}.") from None
    try:
        return model.model_validate_json(text)  # JSON mode: lists fill tuples, strict otherwise
    except ValidationError as error:
        lines = [_explain(model, dict(problem), where, prefix) for problem in error.errors()]
        raise ConfigError("\n       ".join(lines)) from None


def _explain(model: type[Section], problem: dict[str, Any], where: str, prefix: str) -> str:
    """One pydantic problem as one sentence: path, value, choices, nearest known name."""
    location = [str(part) for part in problem["loc"]]
    path = ".".join(filter(None, [prefix, *location]))
    if problem["type"] == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        return f"{where}: unknown key '{path}' (value {problem['input']!r}).{did_you_mean(location[-1], known)}"
    if problem["type"] == "missing":
        return f"{where}: '{path}' is missing."
    if problem["type"] == "literal_error":
        choices = did_you_mean(str(problem["input"]), _choices_at(model, location))
        return f"{where}: '{path}' is {problem['input']!r}, which is none of its choices.{choices}"
    return f"{where}: '{path}' is {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}."


def _fields_at(model: type[Section], location: list[str]) -> list[str]:
    """Names of the fields of the (sub)section at a location."""
    for part in location:
        field = model.model_fields.get(part)
        sections = [
            kind
            for kind in (_leaf_types(field.annotation) if field else [])
            if isinstance(kind, type) and issubclass(kind, Section)
        ]
        if sections:
            model = sections[0]
    return list(model.model_fields)


def _choices_at(model: type[Section], location: list[str]) -> list[str]:
    """The values that a Literal field at a location may have."""
    current: type[Section] = model
    for part in location:
        field = current.model_fields.get(part)
        if field is None:
            continue
        kinds = _leaf_types(field.annotation)
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
        if not sections:
            return [str(kind) for kind in kinds if isinstance(kind, str | int)]
        current = sections[0]
    return []


def _leaf_types(annotation: Any) -> list[Any]:
    """All types and literal values inside an annotation such as `tuple[Literal['a', 'b'], ...] | None`."""
    inner = get_args(annotation)
    return [leaf for arg in inner for leaf in _leaf_types(arg)] if inner else [annotation]
