"""Runs with other params as DVC experiments: what to change, what git must know before, what came of them."""

import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eridiff.core.config import parse_yaml, read_yaml
from eridiff.core.errors import ConfigError
from eridiff.core.files import read_file, read_text
from eridiff.core.git import ask_git
from eridiff.core.value_limits import shown
from eridiff.dvc.graph import Graph

TRACKED = (".dvc/config", "dvc.yaml", "params.yaml", "data/raw.dvc")  # what an experiment's copy needs, where it is

KEY = re.compile(r"[A-Za-z_][\w-]*")  # that Hydra's grammar takes as it stands


def changes(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    """What turns one params.yaml into another, as `dvc exp run --set-param` takes it.

    Raises: ConfigError for a key or value that cannot be passed so.
    """
    for key in sorted({*old, *new}, key=str):
        path = f"{prefix}{key}"
        if not isinstance(key, str) or not KEY.fullmatch(key):
            if key in old and key in new and spelled(old[key]) == spelled(new[key]):
                continue
            raise ConfigError(f"overrides: the key {shown(path)} cannot be passed to an experiment: rename it.")
        if key not in new:
            yield f"~{path}"
        elif key not in old:
            yield f"++{path}={spelled(new[key])}"
        elif isinstance(old[key], Mapping) and isinstance(new[key], Mapping):
            yield from changes(old[key], new[key], f"{path}.")
        elif _text(old[key]) != _text(new[key]):  # 1 and 1.0 and true are equal, but not the same
            yield f"++{path}={spelled(new[key])}"


def _text(value: Any) -> str:
    return json.dumps(value, default=repr)


def spelled(value: Any) -> str:
    """A plain value in the grammar of `--set-param` (Hydra's).

    Raises: ConfigError for a text that this grammar would fill in, takes as missing (`???`), or cannot hold.
    """
    if isinstance(value, str):
        if value == "???" or "${" in value or "\n" in value or value.endswith("\\") or "\\'" in value:
            raise ConfigError(
                f"overrides: {shown(value)} cannot be passed to an experiment: write it into params.yaml."
            )
        return "'" + value.replace("'", "\\'") + "'"
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str) or not KEY.fullmatch(key)]:
            raise ConfigError(f"overrides: the key {shown(odd[0])} cannot be passed to an experiment: rename it.")
        return "{" + ",".join(f"{key}:{spelled(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(spelled, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"overrides: {value!r} is no number that params.yaml takes.")
    return json.dumps(value)


def refuse_lost(path: Path, sets: Sequence[str], wanted: Mapping[str, Any]) -> None:
    """Apply the changes to a copy of params.yaml as DVC will, and compare what came of them.

    DVC writes the file again in the style that it has: within brackets or braces its writer leaves some texts without
    quotes that its reader takes for something else, such as `?;`. Raises: ConfigError that names the key.
    """
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import apply_overrides
    from omegaconf.errors import OmegaConfBaseException

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(read_file(path))
        try:
            apply_overrides(copy, list(sets))
            found = read_yaml(copy)
        except (DvcException, OmegaConfBaseException, ConfigError, ValueError):
            found = None
    lost = list(changes(found, wanted)) if isinstance(found, dict) else list(sets)
    if lost:
        raise ConfigError(
            f"overrides: DVC would not pass this on as it is: {shown(lost[0])}. Write it into {path}, or change how "
            "the key stands there: on lines of its own, without brackets and braces."
        )


def refuse_uncommitted(folder: Path, name: str) -> None:
    """Refuse a project that git's last commit does not hold: an experiment starts from that.

    Raises: ConfigError with what is missing and the two commands to run.
    """
    wanted = [path for path in TRACKED if (folder / path).exists()]
    held = _git(folder, "ls-tree", "--name-only", "HEAD", *wanted).splitlines()
    missing = [path for path in wanted if path not in held]
    if missing:
        raise ConfigError(
            f"project {name} is not committed to git yet, and an experiment starts from a commit (not in it: "
            f"{', '.join(missing)}). Run these two, then start it again:\n"
            f"  git -C {folder} add .\n"
            f"  git -C {folder} commit -m 'project {name}' ."
        )


def _git(folder: Path, *arguments: str) -> str:
    """What git prints; nothing where it fails."""
    return (ask_git(folder, *arguments) or b"").decode("utf-8", "replace")


def lock_text(folder: Path, experiment: str | None) -> str:
    """dvc.lock of the project as it stands, or of one of its experiments; empty where there is none."""
    if experiment is None:
        path = folder / "dvc.lock"
        return read_text(path) if path.exists() else ""
    names = _git(folder, "for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
    found = [name for name in names if name.endswith(f"/{experiment}")]
    return _git(folder, "show", f"{found[-1]}:./dvc.lock") if found else ""


def results(folder: Path, experiment: str | None) -> dict[str, Path]:
    """Out -> its file in DVC's cache, for the project as it stands or one of its experiments; folders file by file.

    Files that the cache does not hold are left out.
    """
    record = parse_yaml(lock_text(folder, experiment), "dvc.lock") or {"stages": {}}
    outs = [out for stage in record["stages"].values() for out in stage.get("outs", [])]
    graph = Graph(folder)
    try:
        found: dict[str, Path] = {}
        for out in outs:
            place = graph.object_path(out["md5"])
            if not out["md5"].endswith(".dir"):
                found[out["path"]] = place
            elif place.exists():
                listing = graph.listing(out["md5"])
                found |= {f"{out['path']}/{name}": graph.object_path(md5) for name, md5 in listing.items()}
    finally:
        graph.close()
    return {path: place for path, place in found.items() if place.exists()}
