"""What a stage run was: versions, device, seconds, counts. Written to runs/STAGE.json, never to an out."""

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from eridiff import __version__
from eridiff.core.files import write_text

LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "safetensors",
    "bitsandbytes",
    "pyarrow",
    "pillow",
    "dvc",
)


def record_run(stage: str, **facts: Any) -> None:
    """Write runs/STAGE.json."""
    record = {
        "stage": stage,
        "python": platform.python_version(),
        "platform": sys.platform,
        "versions": {"eridiff": __version__, **{name: _version(name) for name in LIBRARIES}},
        **facts,
    }
    write_text(Path("runs") / f"{stage}.json", json.dumps(record, indent=1, sort_keys=True, default=str) + "\n")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
