"""Code in strings, which tests hand to another python: no linter and no mover of modules sees what it imports."""

import ast
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
OURS = ("eridiff", "stages", "tests")


def embedded(source: str) -> Iterator[str]:
    """The string literals of a source that are code with imports of ours; what is put into them stands as 0."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "0" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if "import " in text and any(name in text for name in OURS):
            yield textwrap.dedent(text)


def missing(code: str) -> list[str]:
    """What a piece of code imports of ours and does not find; nothing of a text that is no code."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if _ours(name.name) and not _there(name.name, None)]
        elif isinstance(node, ast.ImportFrom) and node.module and _ours(node.module):
            found += [f"{node.module}.{name.name}" for name in node.names if not _there(node.module, name.name)]
    return found


def _ours(module: str) -> bool:
    return module.split(".")[0] in OURS


def _there(module: str, name: str | None) -> bool:
    """Whether a module, and a name of it, is there; read from the source, since torch takes seconds to import."""
    path = ROOT.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if name is None or not source.is_file():
        return source.is_file()
    return name in _bound(source) or _there(f"{module}.{name}", None)


@cache
def _bound(source: Path) -> set[str]:
    bound = set()
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
        elif isinstance(node, ast.alias):
            bound.add(node.asname or node.name)
    return bound


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "eridiff", "stages"])
def test_code_in_strings_imports_what_is_there(folder: str) -> None:
    lost = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        if path.parent == Path(__file__).parent:
            continue  # examples of what must not be
        if names := [name for code in embedded(path.read_text("utf-8")) for name in missing(code)]:
            lost[path.relative_to(ROOT).as_posix()] = names
    assert lost == {}


def test_what_is_not_there_is_found() -> None:
    code = "from eridiff.nowhere import a\\nfrom eridiff.core.errors import run_main, Lost\\nprint({3})"
    source = f'RUN = f"{code}"'
    assert [name for code in embedded(source) for name in missing(code)] == [
        "eridiff.nowhere.a",
        "eridiff.core.errors.Lost",
    ]
