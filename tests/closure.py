"""Which of our modules a stage imports, read from the source: what dvc.yaml's deps must say.

`python -m tests.closure --write` renews the code deps of dvc.yaml.
"""

import ast
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
FAMILY = "eridiff/families/${model.family}/family.py"
NEUTRAL = ROOT / "tests" / "neutral.txt"
# What a stage loads of a family by its name (load_family, load_keys, load_workflow), which the source does not show.
FAMILY_FILES = {
    "latents": ("family", "keys"),
    "text": ("family", "keys"),
    "train": ("family", "keys"),
    "sample": ("family", "keys"),
    "export": ("family", "keys", "workflow"),
}


def module_path(name: str) -> Path | None:
    """The file of one of our modules, None for any other."""
    base = ROOT.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.exists():
            return path
    return None


@cache
def imports_of(path: Path) -> frozenset[Path]:
    """Files of our modules that a file imports, at any depth of its code."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {
            module for name in names if name.split(".")[0] in ("eridiff", "stages") and (module := module_path(name))
        }
    return frozenset(found)


def closure(start: Path) -> set[Path]:
    """A file and all of our files that it imports, directly or not, with the packages around them."""
    seen: set[Path] = set()
    todo = [start]
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo += imports_of(path)
            package = path.parent / "__init__.py"
            if package.exists():
                todo.append(package)
    return seen


def neutral() -> dict[str, tuple[set[str], str]]:
    """Path -> (stages for which it cannot change a byte, reason)."""
    table = {}
    for line in NEUTRAL.read_text("utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            path, stages, reason = line.split(None, 2)
            table[path] = (set(stages.split(",")), reason)
    return table


def code_deps(stage: str) -> list[str]:
    """The code that a stage's deps must list: its import closure less what is neutral there."""
    files = closure(ROOT / "stages" / f"{stage}.py")
    for name in FAMILY_FILES.get(stage, ()):
        for folder in sorted((ROOT / "eridiff" / "families").glob("*/family.py")):
            files |= closure(folder.parent / f"{name}.py")
    names = {_templated(path.relative_to(ROOT)) for path in files}
    spared = {path for path, (stages, _) in neutral().items() if stage in stages or "all" in stages}
    return sorted(names - spared)


def _templated(path: Path) -> str:
    """A file of a family's folder under the name that params.yaml fills in."""
    parts = path.parts
    if parts[:2] == ("eridiff", "families") and len(parts) == 4:
        return "/".join((*parts[:2], "${model.family}", parts[3]))
    return path.as_posix()


def main() -> None:
    """Rewrite the code deps in dvc.yaml, comments kept."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    path = ROOT / "dvc.yaml"
    record = yaml.load(path.read_text("utf-8"))
    for name, body in record["stages"].items():
        data = [dep for dep in body["deps"] if not dep.endswith(".py")]
        body["deps"] = data + code_deps(name)
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(record, file)


if __name__ == "__main__" and "--write" in sys.argv:
    main()
