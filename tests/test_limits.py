"""Nothing that tests start or wait for is without end: every test has a limit, and every process."""

import ast
import sys
from pathlib import Path

import pytest

from tests import processes
from tests.conftest import LIMITS, ROOT

# Where a process is given its limit, and the server that ends with the tests (its standard input closes).
EXEMPT = {"tests/processes.py", "tests/e2e/prefork.py"}
CALLS = {"run", "call", "check_call", "check_output"}


def unlimited(source: str) -> list[int]:
    """Lines of calls that start a process without a limit."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = f"{ast.unparse(node.func.value)}.{node.func.attr}"
            waits = name in {f"subprocess.{call}" for call in CALLS}
            if name in ("subprocess.Popen", "os.system", "os.popen") or (
                waits and not any(keyword.arg == "timeout" for keyword in node.keywords)
            ):
                lines.append(node.lineno)
        elif isinstance(node, ast.ImportFrom) and node.module == "subprocess":
            lines.append(node.lineno)  # by another name no call would be seen
    return lines


def test_every_process_has_a_limit() -> None:
    files = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "tests").rglob("*.py"))}
    assert set(files) >= EXEMPT
    found = [f"{name}:{line}" for name, path in files.items() for line in unlimited(path.read_text("utf-8"))]
    assert [place for place in found if place.split(":")[0] not in EXEMPT] == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("subprocess.run(['a'])", [1]),
        ("subprocess.run(['a'], timeout=3)", []),
        ("x = 1\nsubprocess.Popen(['a'])", [2]),
        ("from subprocess import run", [1]),
        ("import os\nos.system('a')", [2]),
    ],
)
def test_a_call_without_a_limit_is_seen(source: str, lines: list[int]) -> None:
    assert unlimited(source) == lines


def test_a_process_is_killed_when_its_time_is_over() -> None:
    with processes.begin([sys.executable, "-c", "input()"], limit=0.01, stdin=processes.PIPE) as process:
        assert process.wait(timeout=60) == -9


def test_every_test_has_a_limit(request: pytest.FixtureRequest) -> None:
    assert float(request.config.getini("timeout")) > 0
    assert set(LIMITS) <= {line.split(":")[0] for line in request.config.getini("markers")}
    for item in request.session.items:
        marked = [mark for mark in LIMITS if item.get_closest_marker(mark)]
        assert not marked or item.get_closest_marker("timeout"), item.nodeid


def test_the_list_of_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import costs

    lines = [f'{{"test": "t{number}", "wall": {number}.0, "cpu": 0.5}}\n' for number in range(30)]
    (tmp_path / "costs").write_text("".join(lines))
    monkeypatch.setattr(sys, "argv", ["costs", str(tmp_path / "costs")])
    costs.main()
    header, *rows, total = capsys.readouterr().out.splitlines()
    assert header.split() == ["wall", "s", "CPU", "s", "test"]
    assert [row.split() for row in rows] == [[f"{n}.0", "0.5", f"t{n}"] for n in range(29, 9, -1)]
    assert total.split() == ["435", "15", "sum", "of", "30", "tests"]
