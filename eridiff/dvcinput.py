"""What DVC would read without end before any stage starts: refused by name, since nothing else would be said."""

from pathlib import Path

from eridiff.config import read_yaml
from eridiff.intake import refuse_endless
from eridiff.project import find_upward


def refuse_unbounded(project: Path) -> None:
    """Refuse params.yaml where it is out of the bounds of YAML, and pipes and devices among pictures and pointers.

    Raises: ConfigError, DataError.
    """
    params = project / "params.yaml"
    if params.exists():
        read_yaml(params)
    refuse_endless(project / "data" / "raw")
    if root := find_upward("eridiff/families", project):
        refuse_endless(root / "data" / "bases")
