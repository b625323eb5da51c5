"""params.yaml and local.yaml: typed, strict, read by the parser that DVC uses (YAML 1.2: `1e-4` is a number)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from eridiff.errors import ConfigError, did_you_mean


class Section(BaseModel):
    """One section of a configuration file: frozen, unknown keys refused, no conversion of types."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


SectionT = TypeVar("SectionT", bound=Section)
Quantised = Literal["fp8", "int8", "nf4"]  # storage of a frozen model's layers (eridiff/quantise.py)
Activations = Literal["keep", "selective", "recompute", "offload"]  # until the backward pass (eridiff/activations.py)


class ModelParams(Section):
    """Which model is trained."""

    family: str
    """The architecture: a folder of eridiff/families."""
    base: str
    """The base: a folder of data/bases, made by `eridiff base add`."""
    allow_cpu: bool = False
    """Run on a CPU where there is no CUDA device. Only the small bases are any use there."""


def _way_to(path: Path) -> str:
    """What to do about a missing file: it lies further up where a command was run in a folder of a project."""
    here = path.resolve().parent
    above = [folder for folder in here.parents if (folder / path.name).exists()]
    if above and not (here / "dvc.yaml").exists():
        return f"Run this in {above[0]}."
    return "A preset to copy lies in presets/."


def read_yaml(path: Path) -> Any:
    """Parse a YAML file as DVC does.

    Raises: ConfigError for a missing file, a syntax error or a duplicate key, with the line.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing. {_way_to(path)}") from None
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
        raise ConfigError("\n       ".join(_explain_all(model, error, where, prefix))) from None


def _explain_all(model: type[Section], error: ValidationError, where: str, prefix: str) -> list[str]:
    """One sentence for each wrong key; the branches of a union, which pydantic names apart, are one key."""
    by_path: dict[str, list[str]] = {}
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "literal_error")
    for problem in problems:
        location = _real_location(model, problem["loc"])
        inside = any(other["loc"][: len(problem["loc"])] == problem["loc"] for other in problems if other != problem)
        if problem["type"] == "too_short" and inside:
            continue  # a list whose items are wrong counts as empty
        path = ".".join(filter(None, [prefix, *location]))
        by_path.setdefault(path, []).append(_explain(model, dict(problem), location, path))
    return [f"{where}: {' Or: '.join(dict.fromkeys(sentences))}" for sentences in by_path.values()]


def _real_location(model: type[Section], location: tuple[int | str, ...]) -> list[str]:
    """A problem's location as keys and places of the file, without pydantic's names of union branches."""
    if not location:
        return []
    section: type[Section] | None = model
    real = []
    for part in location[:-1]:
        if isinstance(part, int):
            real.append(str(part))
        elif section is not None and part in section.model_fields:
            real.append(part)
            section = _section_of(section, part)
    last = location[-1]
    branch = section is None and not isinstance(last, int)
    return real if branch else [*real, str(last)]


def _section_of(model: type[Section], name: str) -> type[Section] | None:
    """The section that a field holds (by itself, in a list, or optional)."""
    kinds = _leaf_types(model.model_fields[name].annotation)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def _explain(model: type[Section], problem: dict[str, Any], location: list[str], path: str) -> str:
    """One pydantic problem as one sentence: path, value, choices, nearest known name."""
    value = problem["input"]
    if problem["type"] == "extra_forbidden":
        known = _section_at(model, location[:-1]).model_fields
        return f"unknown key '{path}' (value {value!r}).{did_you_mean(location[-1], known)}"
    if problem["type"] == "missing":
        return f"'{path}' is missing."
    if problem["type"] == "literal_error":
        names = [part for part in location if not part.isdigit()]
        kinds = _leaf_types(_section_at(model, names[:-1]).model_fields[names[-1]].annotation)
        choices = did_you_mean(str(value), [kind for kind in kinds if isinstance(kind, str)])
        return f"'{path}' is {value!r}, which is none of its choices.{choices}"
    if problem["type"] == "value_error":  # a rule of ours; one about a whole section names the values itself
        shown = "" if isinstance(value, dict) else f" is {value!r}"
        return f"'{path}'{shown}: {str(problem['ctx']['error']).rstrip('.')}."
    return f"'{path}' is {value!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}."


def _section_at(model: type[Section], location: list[str]) -> type[Section]:
    """The (sub)section at a location."""
    for part in location:
        if not part.isdigit():
            model = _section_of(model, part) or model
    return model


def _leaf_types(annotation: Any) -> list[Any]:
    """All types and literal values inside an annotation such as `tuple[Literal['a', 'b'], ...] | None`."""
    inner = get_args(annotation)
    return [leaf for arg in inner for leaf in _leaf_types(arg)] if inner else [annotation]
