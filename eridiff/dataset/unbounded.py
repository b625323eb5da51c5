"""What DVC would read without end before any stage starts: refused by name, since nothing else would be said."""

import os
from pathlib import Path

from eridiff.core.config import read_yaml
from eridiff.core.errors import ConfigError
from eridiff.core.files import read_text
from eridiff.dataset.intake import refuse_endless
from eridiff.machine.local import find_home

SETTINGS = ("params.yaml", "dvc.yaml")  # files of YAML that DVC reads whole
TEXTS = ("dvc.lock", ".dvcignore", ".dvc/config", ".dvc/config.local")
MAX_TEXT_BYTES = 1 << 20  # of one of these


def refuse_unbounded(project: Path) -> None:
    """Refuse files of YAML and settings that are out of bounds, or no files; and pipes and devices among the data.

    Raises: ConfigError, DataError.
    """
    pointers = [str(path.relative_to(project)) for path in sorted(project.glob("data/*.dvc"))]
    for path in (project / name for name in (*SETTINGS, *pointers)):
        if os.path.lexists(path):  # also a link that leads nowhere
            read_yaml(path)
    for path in (project / name for name in TEXTS):
        if os.path.lexists(path):
            try:
                read_text(path, MAX_TEXT_BYTES)
            except OSError as error:
                raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    refuse_endless(project / "data")
    if home := find_home(project):
        refuse_endless(home / "data" / "bases")
