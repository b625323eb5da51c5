"""Values that one section of params.yaml inherits from another, such as `export.ema` from `sample.ema`.

A stage declares its own section, and DVC refuses a key that params.yaml leaves out. So `check`, which reads the whole
file, writes data/choices.json, and a stage that needs such a value depends on that file: another value there runs it,
and no other edit of the other section does.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eridiff.core.errors import ConfigError
from eridiff.core.json_files import load_json

EXPORT_EMA = "export.ema"


def inherited_text(sections: Mapping[str, Any]) -> str:
    """The file's text. sections: the typed sections of params.yaml by name."""
    own, samples = sections["export"].ema, sections["sample"].ema
    return json.dumps({EXPORT_EMA: samples if own is None else own}, indent=1, sort_keys=True) + "\n"


def inherited_differences(sections: Mapping[str, Any]) -> list[str]:
    """Where a section differs from the section that it would inherit from, and what that means."""
    own, samples = sections["export"].ema, sections["sample"].ema
    if own is None or own == samples:
        return []
    kinds = {True: "the moving average", False: "the adapters of the last step"}
    return [
        f"params.yaml: export.ema is {str(own).lower()} and sample.ema {str(samples).lower()}: the exported file holds "
        f"{kinds[own]}, the pictures show {kinds[samples]}. Remove export.ema to export what they show."
    ]


def read_inherited(path: Path, key: str) -> Any:
    """One inherited value.

    Raises: ConfigError where the file is missing or has no such key.
    """
    try:
        return load_json(path)[key]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} does not say {key}: run `dvc repro`, whose stage check writes it.") from None
