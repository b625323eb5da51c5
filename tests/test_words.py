"""The words: what `make check` runs, and which build of torch is chosen."""

from pathlib import Path

import pytest

from eridiff import words


def test_check_runs_lint_format_types_and_contracts(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(words, "run", lambda command, failed: ran.append([Path(command[0]).name, *command[1:]]))
    words.check()
    assert [command[2] for command in ran if command[0] == "python"] == ["ruff", "ruff", "mypy", "tests.proofs"]
    assert ["lint-imports", "--no-cache", "--no-logo"] in ran


def test_a_word_that_fails_ends_with_its_code_and_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        words.run(["false"], "the types are wrong")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: the types are wrong (exit code 1).\n"


def test_torch_is_for_the_machine_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (words.choose_torch("cpu"), words.choose_torch("cuda")) == ("cpu", "cuda")
    monkeypatch.setattr(words.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert words.choose_torch("auto") == "cuda"
    monkeypatch.setattr(words.shutil, "which", lambda name: None)
    monkeypatch.setattr(words.Path, "exists", lambda self: False)
    assert words.choose_torch("auto") == "cpu"
