"""The stages of a dvc.yaml or dvc.lock, as DVC writes them; and the `${section.key}` of a dvc.yaml."""

import re
from collections.abc import Mapping
from typing import Any

from eridiff.core.errors import ConfigError

TEMPLATE = re.compile(r"\$\{(\w+)\.(\w+)\}")


def stages_of(record: Any, where: str) -> dict[str, Any]:
    """The stages of a dvc.yaml or dvc.lock; {} where it has none.

    Raises: ConfigError where they are not what DVC writes.
    """
    stages = record.get("stages") if isinstance(record, Mapping) else None
    if stages is None:
        return {}
    if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
        raise ConfigError(f"{where}: `stages` is not what DVC writes.")
    return stages


def fill_templates(value: Any, params: Mapping[str, Any]) -> Any:
    """A stage of dvc.yaml with `${section.key}` filled in, as far as params have it."""
    if isinstance(value, Mapping):
        return {fill_templates(key, params): fill_templates(item, params) for key, item in value.items()}
    if isinstance(value, list):
        return [fill_templates(item, params) for item in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        section = params.get(match[1])
        found = section.get(match[2]) if isinstance(section, Mapping) else None
        return match[0] if found is None else str(found)

    return TEMPLATE.sub(fill, value)
