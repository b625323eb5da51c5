"""What an upgrade of a project will make run again, and why: its dvc.lock against the dvc.yaml and versions to come.

What else changed meanwhile (params, pictures) is no part of it: `eridiff why` says that.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eridiff.core.config import parse_yaml
from eridiff.dvc.project_versions import family_of, known_versions, params_of
from eridiff.dvc.stage_records import fill_templates, stages_of
from eridiff.versions import Versions, describe_change

PARAMS = "params.yaml"


def foresee_reruns(folder: Path, pipeline: str, lock: str) -> list[str]:
    """A line a stage that will run again, and why; then those that may follow it. pipeline, lock: texts to come.

    Raises: ConfigError where one of them is not what DVC writes.
    """
    recorded = stages_of(parse_yaml(lock, "dvc.lock"), "dvc.lock")
    if not recorded:
        return ["nothing has run here yet"]
    params = params_of(folder)
    stages = fill_templates(stages_of(parse_yaml(pipeline, "dvc.yaml"), ""), params)
    family = family_of(params)
    files = {name: file for file in known_versions(family).values() for name in file.numbers}
    lines, changed, following = [], set[str](), []
    for name, stage in stages.items():
        reasons = list(_reasons(stage, recorded[name], files, family or "")) if name in recorded else ["it is new"]
        if reasons:
            lines.append(f"{name} will run again: {'; '.join(reasons)}")
        elif any(_within(dep, out) for dep in stage.get("deps", []) for out in changed):
            following.append(name)
        else:
            continue
        changed |= _outs(stage)
    lines += [f"{', '.join(following)} will run too if what they read changes by it"] if following else []
    return lines or ["no stage will run again"]


def _reasons(
    stage: Mapping[str, Any], entry: Mapping[str, Any], files: Mapping[str, Versions], family: str
) -> Iterator[str]:
    """Why DVC will run a stage that has run already. stage: of dvc.yaml; entry: of dvc.lock."""
    if stage["cmd"] != entry.get("cmd"):
        yield "its command changed"
    had = entry.get("params", {})
    names = {param for param in stage.get("params", []) if isinstance(param, str)}
    compared = [
        ("reads", set(stage.get("deps", [])), {dep["path"] for dep in entry.get("deps", [])}),
        ("writes", _outs(stage), {out["path"] for out in entry.get("outs", [])}),
        ("depends on the params", names, set(had.get(PARAMS, {}))),
    ]
    for verb, now, before in compared:
        yield from (f"it {verb} {path} now" for path in sorted(now - before) if "${" not in path)
        if not any("${" in path for path in now):
            yield from (f"it no longer {verb} {path}" for path in sorted(before - now))
    for path, name in _versions(stage):
        if name in files and (path in had or not name.startswith("family.")):  # else it is of another family
            before, number = had.get(path, {}).get(name), files[name].numbers[name]
            if before != number:
                yield describe_change(files[name], name, before, number, family)


def _versions(stage: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The versions that a stage names: (file, name)."""
    named = [param for param in stage.get("params", []) if isinstance(param, Mapping)]
    return [(path, name) for param in named for path, names in param.items() for name in names]


def _outs(stage: Mapping[str, Any]) -> set[str]:
    listed = [out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]
    return {next(iter(out)) if isinstance(out, Mapping) else out for out in listed}


def _within(dep: str, out: str) -> bool:
    """Whether a dep is an out, in it or above it."""
    return dep == out or dep.startswith(f"{out}/") or out.startswith(f"{dep}/")
