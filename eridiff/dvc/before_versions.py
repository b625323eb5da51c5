"""dvc.yaml and dvc.lock from before there were versions of code (eridiff/versions.py): they list files of code as deps.

In such a lock the files go and the versions come; deps that are data, params and outs stay as they are, so that what
changed among them still runs. DVC reads the result as if it had run the stages so itself.
"""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eridiff.core.config import parse_yaml, read_yaml
from eridiff.core.errors import ConfigError
from eridiff.core.files import read_file
from eridiff.dvc.project_versions import refuse_other_versions
from eridiff.dvc.stage_records import fill_templates, stages_of
from eridiff.versions import FIRST, NAME

MENTIONED = re.compile(rb"(eridiff|stages)/\S*\.py")
CODE = re.compile(r"(\.\./\.\./)?(eridiff|stages)/.*\.py")
FAMILY = re.compile(r".*eridiff/families/([^/$]+)/[^/]+\.py")


def lists_code(path: Path) -> bool:
    """Whether a dvc.yaml or dvc.lock is of that form; False where it is missing.

    Raises: ConfigError where it cannot be read.
    """
    return path.exists() and any(_code(_deps(stage)) for stage in stages_of(read_yaml(path), str(path)).values())


def refuse_early(project: Path) -> None:
    """Refuse to run a project whose dvc.yaml or dvc.lock is of that form, since every stage would run again.

    Or a standalone one whose versions are another eridiff's. Raises: ConfigError that names the command.
    """
    for name in ("dvc.yaml", "dvc.lock"):
        if _may_list_code(project / name) and lists_code(project / name):
            raise ConfigError(
                f"{name} is from before code had versions: it lists files of eridiff's code. Run `eridiff upgrade` in "
                f"{project.resolve()} first. It changes no result and runs nothing; without it every stage would run."
            )
    refuse_other_versions(project)


def _may_list_code(path: Path) -> bool:
    """Whether a file has to be parsed to know. A dvc.yaml of today need not be, which saves a tenth of a second."""
    if path.name == "dvc.lock":  # a damaged one is named
        return True
    try:
        return MENTIONED.search(read_file(path)) is not None
    except OSError:  # lists_code says why
        return True


def with_versions(lock: Path, pipeline: str) -> tuple[str, list[str]]:
    """A lock of that form in today's, and the stages that it is about. pipeline: the text of today's dvc.yaml.

    Its results are of the first version of everything, whatever the numbers are now.
    """
    record, named = read_yaml(lock), stages_of(parse_yaml(pipeline, "dvc.yaml"), "dvc.yaml")
    changed = []
    for stage, entry in record["stages"].items():
        files = _code(_deps(entry))
        if not files or stage not in named:
            continue
        entry["deps"] = [dep for dep in entry["deps"] if dep["path"] not in files]
        params = {**entry.pop("params", {}), **_versions(named[stage], files)}
        outs = entry.pop("outs", [])
        ordered = sorted(params, key=lambda path: (path != "params.yaml", path))  # as DVC writes them
        entry |= {"params": {path: params[path] for path in ordered}, "outs": outs}
        changed.append(stage)
    return _dump(record), changed


def _versions(stage: Mapping[str, Any], files: list[str]) -> dict[str, dict[str, int]]:
    """What a stage of dvc.yaml names of versions, at the first number; of the family whose code the lock lists."""
    families = [match[1] for file in files if (match := FAMILY.fullmatch(file))]
    found = {}
    for param in stage.get("params", []):
        for path, keys in param.items() if isinstance(param, Mapping) else ():
            filled = fill_templates(path, {"model": {"family": families[0]}} if families else {})
            if Path(path).name == NAME and "$" not in filled:
                found[filled] = dict.fromkeys(sorted(keys), FIRST)
    return found


def _deps(stage: Mapping[str, Any]) -> list[str]:
    """Paths of a stage's deps, in dvc.yaml (texts) or dvc.lock (records)."""
    return [str(dep["path"] if isinstance(dep, Mapping) else dep) for dep in stage.get("deps", [])]


def _code(paths: list[str]) -> list[str]:
    return [path for path in paths if CODE.fullmatch(path)]


def _dump(record: Any) -> str:
    """As DVC writes dvc.lock."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = False
    text = io.StringIO()
    yaml.dump(record, text)
    return text.getvalue()
