"""dvc.yaml as data: each stage's command, deps, params and outs, with params.yaml's values filled in."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eridiff.config import read_yaml
from eridiff.errors import ConfigError

PLACEHOLDER = re.compile(r"\$\{([\w.]+)\}")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of dvc.yaml; paths are relative to its folder."""

    name: str
    cmd: str
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]
    meta: Mapping[str, Any]


def read_stages(folder: Path) -> dict[str, Stage]:
    """Stages of the dvc.yaml in a folder, in its order, with `${section.key}` filled from params.yaml beside it.

    Raises: ConfigError where a filled key is missing or not a string.
    """
    record, params = read_yaml(folder / "dvc.yaml"), read_yaml(folder / "params.yaml")
    stages = {}
    for name, body in record["stages"].items():
        body = _fill(body, params)
        outs = [*body.get("outs", []), *body.get("metrics", []), *body.get("plots", [])]
        stages[name] = Stage(
            name=name,
            cmd=body["cmd"],
            deps=tuple(body.get("deps", [])),
            params=tuple(body.get("params", [])),
            outs=tuple(_path(out) for out in outs),
            meta=body.get("meta", {}),
        )
    return stages


def _path(out: str | Mapping[str, Any]) -> str:
    """The path of an out, which may be written as `path:` with options under it."""
    return out if isinstance(out, str) else str(next(iter(out)))


def _fill(value: Any, params: Any) -> Any:
    """Fill placeholders in all strings of a nested value."""
    if isinstance(value, str):
        return PLACEHOLDER.sub(lambda match: _lookup(match[1], params), value)
    if isinstance(value, list):
        return [_fill(item, params) for item in value]
    if isinstance(value, dict):
        return {_fill(key, params): _fill(item, params) for key, item in value.items()}
    return value


def _lookup(path: str, params: Any) -> str:
    """The value of a key path such as model.base."""
    value = params
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ConfigError(f"params.yaml: '{path}' is missing; dvc.yaml needs it.")
        value = value[part]
    if not isinstance(value, str):
        raise ConfigError(f"params.yaml: '{path}' is {value!r}; dvc.yaml needs a name there.")
    return value
