"""Every command in the docs is one that exists: the programs' own parsers take it, or the page says why it is not run.

A block is marked by a comment in the line before it: `<!-- not run: needs a GPU -->`.
"""

import argparse
import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from dvc.cli import DvcParserError
from typer.exceptions import TyperException

from eridiff.cli import app
from eridiff.formats.tables import write_table
from eridiff.words import WORDS
from tests.conftest import ROOT
from tests.support import pages
from tests.support.pages import FENCE

PAGES = [path for path in pages.PAGES if path.name != "CHANGELOG.md"]  # which names the commands of its versions
MARK = re.compile(r"<!-- (?:not run: needs .+|run by (tests/[\w/]+\.py).*) -->\s*\Z")
PLAIN = {"cd", "cp", "do", "done", "echo", "export", "for", "git", "ps", "rm", "source", "touch"}  # the shell's, git's
TOOLS = {"pytest"}  # modules of others that `python -m` runs


@dataclass(frozen=True, kw_only=True)
class Block:
    """Shell lines of a page, and the comment that says why no test runs them."""

    page: str
    text: str
    mark: str | None


def shell_blocks(path: Path) -> list[Block]:
    text, found = path.read_text("utf-8"), []
    for match in FENCE.finditer(text):
        lines = match[2].replace("\\\n", " ").splitlines()
        if match[1] not in ("sh", "bash"):
            lines = [line[2:] for line in lines if line.startswith("$ ")]  # a terminal's: the rest is what it printed
        mark = MARK.search(text[: match.start()])
        found += [Block(page=path.name, text="\n".join(lines), mark=mark[0] if mark else None)] if lines else []
    return found


BLOCKS = [block for path in PAGES for block in shell_blocks(path)]


def commands(text: str) -> list[list[str]]:
    """The simple commands of shell lines, without settings of variables in front and without redirections."""
    found: list[list[str]] = []
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|>")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in (";", "&&", "||", "|"):
                found += [words] if words else []
                words = []
            elif words or not re.fullmatch(r"[A-Z_]+=.*", word):
                words.append(word)
    return [words[: words.index(">")] if ">" in words else words for words in found]


@cache
def dvc_parser() -> argparse.ArgumentParser:
    from dvc.cli.parser import get_main_parser

    parser: argparse.ArgumentParser = get_main_parser()
    return parser


@cache
def eridiff_command() -> Any:
    return typer.main.get_command(app)


def find_command(words: list[str], group: Any) -> tuple[Any, list[str]]:
    """The command that words name in an app of typer, and the words after its name."""
    while hasattr(group, "commands") and words and words[0] in group.commands:
        group, words = group.commands[words[0]], words[1:]
    return group, words


def parse_typer(words: list[str], group: Any) -> None:
    """Parse as the app itself does; raises where it would refuse."""
    command, rest = find_command(words, group)
    assert not hasattr(command, "commands"), f"{words}: no such command"
    command.make_context("command", rest)


def module_exists(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return name in TOOLS or path.with_suffix(".py").exists() or (path / "__main__.py").exists()


def check_python(words: list[str]) -> None:
    if words[1] == "-m":
        assert module_exists(words[2]), f"{words}: no such module"
    elif words[1] != "-c":
        assert (ROOT / words[1]).exists(), f"{words}: no such file"


def check_make(words: list[str]) -> None:
    settings = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    assert set(settings) <= {"ARGS", "TORCH", "PYTHON"}, f"{words}: no such variable of the Makefile"
    assert {word for word in words[1:] if "=" not in word} <= set(WORDS), f"{words}: no such word"
    for name in re.findall(r"tests/[\w/.]+", settings.get("ARGS", "")):
        assert (ROOT / name).exists(), f"{words}: no such test"


def check(words: list[str]) -> None:
    """Raises where a command is none that exists."""
    program = Path(words[0]).name
    if program == "eridiff":
        parse_typer(words[1:], eridiff_command())
    elif program == "dvc":
        dvc_parser().parse_args(words[1:])
    elif program == "make":
        check_make(words)
    elif program in ("python", "python3"):
        check_python(words)
    else:
        assert program in PLAIN, f"{words}: a program that this test does not know"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_exist(path: Path) -> None:
    for block in shell_blocks(path):
        for words in commands(block.text) if block.mark is None else ():
            check(words)


@pytest.mark.parametrize(
    "line",
    ["eridiff wyh", "eridiff new cats --image x", "eridiff store gc --day 3", "dvc reproduce", "make replay",
     "make test ARGS=tests/test_nothing.py", "python -m eridiff.nothing", "nosuchprogram x"],
)  # fmt: skip
def test_a_command_that_does_not_exist_is_found(line: str) -> None:
    (words,) = commands(line)
    with pytest.raises((AssertionError, TyperException, DvcParserError)):
        check(words)


def test_what_is_said_to_be_run_is_a_test() -> None:
    named = [match[1] for block in BLOCKS if block.mark and (match := MARK.search(block.mark)) and match[1]]
    assert named and all((ROOT / name).exists() for name in named)


def options_of(words: list[str]) -> set[str]:
    return {word.split("=")[0] for word in words if re.match(r"-{1,2}[a-z]", word)}


@pytest.mark.parametrize("path", [path for path in PAGES if path.name != "decisions.md"], ids=lambda path: path.name)
def test_commands_within_a_sentence_exist(path: Path) -> None:
    """`eridiff store gc --forget FOLDER` in a text or a table exists, but for decisions, which name what is gone."""
    text = FENCE.sub("", path.read_text("utf-8"))
    if path.name == "troubleshooting.md":  # its first column quotes messages
        text = re.sub(r"^\| .*? \|", "", text, flags=re.M)
    for line in re.findall(r"`eridiff ([a-z][^`\n]*)`", " ".join(text.split())):
        command, rest = find_command(shlex.split(line), eridiff_command())
        assert not (hasattr(command, "commands") and rest), f"eridiff {line}: no such command"
        known = {name for param in command.params for name in param.opts} if hasattr(command, "params") else set()
        assert options_of(rest) <= known, f"eridiff {line}: no such option"


@pytest.mark.slow
def test_options_of_the_page_exist() -> None:
    from stages.flow import app as flow_app

    seen = 0
    for block in BLOCKS:
        for words in commands(block.text):
            arguments = [word.removeprefix("ARGS=") for word in words if word.startswith("ARGS=--")]
            if words[0] == "make" and arguments and words[1] in ("flow", "serve"):
                parse_typer([words[1], *shlex.split(arguments[0])], typer.main.get_command(flow_app))
                seen += 1
    assert seen


# What the docs' blocks call -> the test that runs it: its file's stem and its name.
RUN_BY = {
    "dvc commit": "test_leaves",
    "dvc exp run": "e2e/test_own_pictures",
    "dvc exp show": "test_demo::test_one_table",
    "dvc repro": "test_table::test_first_run",
    "eridiff base add": "test_table::test_vae",
    "eridiff base find": "test_places",
    "eridiff base list": "test_places",
    "eridiff import-config": "test_import_eridiffusion::test_the_command_writes_once",
    "eridiff inspect": "test_lora_files::test_ones_own_in_every_dialect",
    "eridiff new": "test_new::test_three_decisions_and_it_runs",
    "eridiff plan": "test_plan::test_flux_on_a_card_of_12_is_put_into_four_bits",
    "eridiff store dedupe": "test_store_disk::test_store_cache_and_project_are_one_inode",
    "eridiff store du": "test_store_disk::test_store_cache_and_project_are_one_inode",
    "eridiff store gc": "test_store_repair::test_two_projects_share_one_store",
    "eridiff store ls": "test_store_repair::test_two_projects_share_one_store",
    "eridiff store repair": "test_store_repair::test_a_flipped_bit_in_the_inode_that_all_three_share",
    "eridiff store verify": "test_store_repair::test_a_flipped_bit_in_the_inode_that_all_three_share",
    "eridiff why": "test_table::test_one_caption",
    "make flow": "test_flow_once::test_it_runs_once_and_then_nothing_does",
    "make repro": "test_killed",
    "make serve": "e2e/test_flow::test_a_schedule_fires_each_minute",
    "python -c": "test_docs_commands::test_the_one_line_that_shows_the_captions",
    "python -m eridiff.reference": "test_docs::test_generated_pages_are_current",
}
ONLY_SHOW = {"dvc metrics show", "dvc metrics diff"}  # DVC's own: its parser takes them, and they change nothing


def form(words: list[str]) -> str:
    """What a command calls, without its arguments: `eridiff store gc`."""
    program = Path(words[0]).name
    long = (program.startswith("python") and words[1] == "-m") or words[:2] in (["dvc", "exp"], ["dvc", "metrics"])
    grouped = program == "eridiff" and words[1] in ("base", "store")
    return " ".join([program, *words[1 : 3 if long or grouped else 2]])


FORMS = sorted({form(w) for b in BLOCKS if not b.mark for w in commands(b.text) if w[0] not in PLAIN} - ONLY_SHOW)


@pytest.mark.parametrize("called", FORMS)
def test_a_test_runs_it(called: str) -> None:
    stem, _, function = RUN_BY[called].partition("::")
    texts = [path.read_text("utf-8") for path in (ROOT / "tests").rglob(f"{stem}.py")]
    (text,) = [text for text in texts if f"\ndef {function}" in text]
    assert called.split()[-1].rpartition(".")[2] in text, f"{stem} does not name it"


def test_the_one_line_that_shows_the_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = re.findall(r"^python -c .*$", (ROOT / "docs/captions.md").read_text("utf-8"), re.M)
    row = {"path": "fox.png", "clean": "a fox", "rules": ["unicode"]}
    write_table(tmp_path / "data/captions/captions.parquet", [row], {"path": "str", "clean": "str", "rules": "strs"})
    monkeypatch.chdir(tmp_path)
    exec(compile(shlex.split(line)[2], "docs/captions.md", "exec"), {})
    assert capsys.readouterr().out == "fox.png a fox ['unicode']\n"
