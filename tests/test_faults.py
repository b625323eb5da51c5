"""docs/faults.md: every test that the table names exists."""

import ast
import re
from functools import cache

import pytest

from tests.conftest import ROOT

ROWS = [line for line in (ROOT / "docs/faults.md").read_text("utf-8").splitlines() if line.startswith("| ")]
NAMED = sorted({name for line in ROWS for name in re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", line)})


def test_there_are_rows() -> None:
    assert len(ROWS) > 50 and len(NAMED) > 50


@cache
def functions_of(path: str) -> set[str]:
    """Names of a file's functions."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("name", NAMED)
def test_the_test_exists(name: str) -> None:
    path, _, function = name.partition("::")
    assert not function or function in functions_of(path)


def test_every_row_names_one() -> None:
    """Less the heads and rules of the tables."""
    assert [line for line in ROWS if "`tests/" not in line and not line.startswith(("| fault |", "|---"))] == []
