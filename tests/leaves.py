"""Every leaf of params.yaml's schema and the stages that a change of it reruns: tests/leaves.txt.

`check` reads params.yaml as a file, so it runs at every edit; the others are listed.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from eridiff.check import SECTIONS
from eridiff.core.sections import nested

LEAVES = Path(__file__).parent / "leaves.txt"


def schema_leaves() -> list[str]:
    """Dotted paths of all leaves; inside a list of sections `[]` stands for the place."""
    found = []
    for name, model in SECTIONS.items():
        models = [(name, model), *nested(model, name)]
        sections = {path.removesuffix("[]") for path, _ in models}
        found += [leaf for path, kind in models for leaf in _fields(path, kind) if leaf not in sections]
    return sorted(found)


def _fields(path: str, model: type[BaseModel]) -> list[str]:
    return [f"{path}.{field}" for field in model.model_fields]


def listed_leaves() -> dict[str, set[str]]:
    """Leaf -> stages, as the file says."""
    lines = [line.split() for line in LEAVES.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    return {line[0]: set(line[1:]) for line in lines}


def mutate(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, list):
        return [*value, mutate(value[-1])] if value else [1]
    return 1 if value is None else {**value, "more": 1}
