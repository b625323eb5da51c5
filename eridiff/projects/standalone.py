"""A standalone project: outside any checkout, with a git and a DVC repository of its own.

Its stages run from the installed package. Copies of the versions say of which eridiff it is; pointers of its bases lie
in its data/bases. The store and DVC's cache are the user's, shared by all of them.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from eridiff.core.files import read_text, write_text
from eridiff.dvc.project_versions import without_writer, written
from eridiff.machine.code import template
from eridiff.machine.local import user_cache
from eridiff.versions import COPIES, NAME, STAGES, version_files

IGNORED = """# timings, previews and logs of this machine
runs/
# files and folders that are not whole yet
*.tmp
# settings of this machine
local.yaml
# weights beside the pointers of a base
data/bases/*/*/
"""
PIPELINE, RULES = "dvc.yaml", ".gitignore"


def standalone_dvc_yaml(text: str) -> str:
    """The checkout's dvc.yaml for a standalone project: the versions lie in its own folder."""
    text = text.replace(f"eridiff/{NAME}", STAGES)
    return re.sub(rf"eridiff/families/(\$\{{[\w.]+\}})/{NAME}", rf"{COPIES}/\1.yaml", text)


def standalone_files() -> dict[str, str]:
    """What this eridiff writes into a standalone project, and writes again at an upgrade: place -> text."""
    files = {PIPELINE: standalone_dvc_yaml(read_text(template() / "dvc.yaml"))}
    files |= {place: read_text(path) for place, path in version_files().items()}
    return {place: written(text) for place, text in files.items()}


def outdated_files(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Which of these files are missing or otherwise in a project, but for the name of the eridiff that wrote them."""
    return [
        place
        for place, text in files.items()
        if not (folder / place).exists() or without_writer(read_text(folder / place)) != without_writer(text)
    ]


def write_standalone(folder: Path) -> None:
    """Write all of them."""
    for place, text in standalone_files().items():
        write_text(folder / place, text)


def shared_cache() -> Path:
    """DVC's cache of this user's standalone projects, where DVC's own configuration names none: beside the store's."""
    return user_cache() / "dvc"
