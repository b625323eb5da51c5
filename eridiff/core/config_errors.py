"""What is wrong with a section of a configuration file, in sentences: pydantic's problems, explained."""

from typing import Any

from pydantic import BaseModel, ValidationError

from eridiff.core.errors import did_you_mean
from eridiff.core.sections import leaf_types, section_of
from eridiff.core.value_limits import shown


def explain_all(model: type[BaseModel], error: ValidationError, where: str, prefix: str) -> list[str]:
    """One sentence for each wrong key; the branches of a union, which pydantic names apart, are one key."""
    by_path: dict[str, list[str]] = {}
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "literal_error")
    for problem in problems:
        location = _real_location(model, problem["loc"], unknown=problem["type"] == "extra_forbidden")
        inside = any(other["loc"][: len(problem["loc"])] == problem["loc"] for other in problems if other != problem)
        if problem["type"] == "too_short" and inside:
            continue  # a list whose items are wrong counts as empty
        path = ".".join(filter(None, [prefix, *location]))
        by_path.setdefault(path, []).append(_explain(model, dict(problem), location, path))
    return [f"{where}: {' Or: '.join(dict.fromkeys(sentences))}" for sentences in by_path.values()]


def _real_location(model: type[BaseModel], location: tuple[int | str, ...], *, unknown: bool) -> list[str]:
    """A problem's location as keys and places of the file, without pydantic's names of union branches.

    unknown: whether its last part is a key that the section does not have.
    """
    if not location:
        return []
    section: type[BaseModel] | None = model
    real = []
    for part in location[:-1]:
        if isinstance(part, int):
            real.append(str(part))
        elif section is not None and part in section.model_fields:
            real.append(part)
            section = section_of(section, part)
    last = location[-1]
    known = section is not None and (unknown or last in section.model_fields)
    branch = not known and not isinstance(last, int)
    return real if branch else [*real, str(last)]


def _explain(model: type[BaseModel], problem: dict[str, Any], location: list[str], path: str) -> str:
    """One pydantic problem as one sentence: path, value, choices, nearest known name."""
    value = problem["input"]
    if problem["type"] == "extra_forbidden":
        known = _section_at(model, location[:-1]).model_fields
        return f"unknown key '{path}' (value {shown(value)}).{did_you_mean(location[-1], known)}"
    if problem["type"] == "missing":
        return f"'{path}' is missing."
    if problem["type"] == "literal_error":
        names = [part for part in location if not part.isdigit()]
        kinds = leaf_types(_section_at(model, names[:-1]).model_fields[names[-1]].annotation)
        choices = did_you_mean(str(value), [kind for kind in kinds if isinstance(kind, str)])
        return f"'{path}' is {shown(value)}, which is none of its choices.{choices}"
    if problem["type"] == "value_error":  # a rule of ours; one about a whole section names the values itself
        said = "" if isinstance(value, dict) else f" is {shown(value)}"
        return f"'{path}'{said}: {str(problem['ctx']['error']).rstrip('.')}."
    return f"'{path}' is {shown(value)}: {problem['msg'][0].lower()}{problem['msg'][1:]}."


def _section_at(model: type[BaseModel], location: list[str]) -> type[BaseModel]:
    """The (sub)section at a location."""
    for part in location:
        if not part.isdigit():
            model = section_of(model, part) or model
    return model
