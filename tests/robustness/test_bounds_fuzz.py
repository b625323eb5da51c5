"""Readers and printers under fuzzing: whatever a file holds, they answer or refuse by name, in bounded time and memory.

A quick round runs with the other tests. A long one:

    ERIDIFF_FUZZ=20000 python -m pytest tests/robustness/test_bounds_fuzz.py

What it finds belongs into tests/support/corpus.py, with its answer.
"""

import json
import os
import random
import resource
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from eridiff.bases.inspect import inspect_path
from eridiff.bases.licences import read_licences
from eridiff.bases.pointer_files import read_pointer
from eridiff.check import SECTIONS, check_params, load_all
from eridiff.core.config import parse_yaml, read_yaml, validate
from eridiff.core.errors import BaseError, ConfigError, DataError, EridiffError, report
from eridiff.core.printable import INDENT, UNSAFE, indented, printable
from eridiff.core.progress import say
from eridiff.core.value_limits import find_fault, shown
from eridiff.dvc.experiments import changes, refuse_lost
from eridiff.flow.form import read_request, read_sets
from eridiff.machine.local import bases_dir, load_local
from eridiff.projects.eridiffusion_keys import ACTIONS
from eridiff.projects.import_eridiffusion import import_config
from tests.conftest import ROOT
from tests.support.checkouts import SMALL, link_bases
from tests.support.corpus import HEADERS, POINTERS, YAML, tensor

EXAMPLES = int(os.environ.get("ERIDIFF_FUZZ", "25"))
SECONDS, MIB = 20, 400  # of one example; of what a whole round adds to the process
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    derandomize=EXAMPLES < 100,
)
PARAMS = read_yaml(SMALL / "params" / "tiny-sdxl.yaml")


@contextmanager
def in_time() -> Iterator[None]:
    """Ends an example that hangs."""

    def hangs(signum: int, frame: FrameType | None) -> None:
        raise AssertionError(f"not done within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True, scope="module")
def memory() -> Iterator[None]:
    """What all rounds together may add to the process's largest size."""
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start < MIB << 10


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout for all examples."""
    place = tmp_path_factory.mktemp("fuzz")
    link_bases(place)
    (place / "eridiff" / "families").mkdir(parents=True, exist_ok=True)
    (place / "presets").symlink_to(ROOT / "presets")
    return place


@pytest.fixture(autouse=True)
def there(folder: Path, machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def refused(call: Callable[[], Any], *kinds: type[EridiffError]) -> bool:
    """Whether it refuses, by one of these kinds and no other, in a message that can be printed."""
    with in_time():
        try:
            call()
        except kinds as error:
            text = indented(error.message)
            assert not UNSAFE.search(text.replace("\n", "")) and len(text) < 100_000
            text.encode("utf-8")
            return True
    return False


# Values and texts

LETTERS = st.text(max_size=6) | st.text(
    "\x00\x1b\n\r\t\x85\u202e\u2028\ud800\udcff?;:{}[]'\"\\#&*!|>%@`,- ", max_size=6
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**11, -(10**11), 2**63, 2**64, 10**400, 10**4000, 0, -1])
    | st.floats()
    | st.sampled_from([1e300, 5e-324, -0.0])
    | LETTERS
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(LETTERS, inner, max_size=4), max_leaves=12
)
PIECES = st.sampled_from(
    [
        "a: ",
        "b: ",
        "- ",
        "? ",
        "{",
        "}",
        "[",
        "]",
        ", ",
        "&a ",
        "*a ",
        "<<: ",
        "!!int ",
        "!!float ",
        "!!bool ",
        "!!set ",
        "!!omap ",
        "!!binary ",
        "!!timestamp ",
        "!!null ",
        "!x ",
        "0x",
        "0o",
        "0b",
        "1e",
        "_",
        "9",
        ".inf",
        ".nan",
        "~",
        "null",
        "yes",
        "2024-02-30",
        "'",
        '"',
        "\\x1b",
        "\\ud800",
        "\\N",
        "\\",
        ">-",
        "#",
        "---",
        "...",
        "%YAML 1.1\n",
        "%TAG ! a\n",
        "\n",
        "\n  ",
        "\n    ",
        "\t",
        ": ",
        "train",
        "steps",
        "lora",
        "\x85",
        "\u2028",
        "\ufeff",
        "\x00",
    ]
)
TEXTS = st.lists(PIECES | LETTERS, max_size=40).map("".join)


def leaves_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside a plain value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [found for key, item in inner for found in leaves_of(item, (*path, key))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value at a path."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def mutated(value: Any) -> st.SearchStrategy[Any]:
    """A value with one to three others in it."""
    paths = leaves_of(value)

    def put(changes: list[tuple[tuple[Any, ...], Any]]) -> Any:
        found = value
        for path, new in changes:
            with suppress(KeyError, IndexError, TypeError):  # the place is gone by an earlier change
                found = replaced(found, path, new)
        return found

    return st.lists(st.tuples(st.sampled_from(paths), VALUES), min_size=1, max_size=3).map(put)


# YAML


@FUZZ
@given(TEXTS)
def test_yaml_is_read_or_refused(text: str) -> None:
    found: list[Any] = []
    if not refused(lambda: found.append(parse_yaml(text, "f")), ConfigError):
        assert not find_fault(found[0])
        shown(found[0])
        for name, model in SECTIONS.items():
            refused(lambda model=model, name=name: validate(model, found[0], where="f", prefix=name), ConfigError)


@FUZZ
@given(TEXTS)
@example(YAML["merge bomb"][0])
def test_every_reader_of_yaml_reads_or_refuses(folder: Path, text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    for name, read in (
        ("params.yaml", check_params),
        ("x.yaml", import_config),
        ("local.yaml", lambda _: load_local()),
    ):
        path = folder / name
        path.write_text(text, "utf-8")
        refused(lambda read=read, path=path: read(path), ConfigError, BaseError)
        path.unlink()
    refused(lambda: read_sets([text, f"train.steps={text}"]), ConfigError)


@FUZZ
@given(st.binary(max_size=60))
def test_bytes_that_are_no_text(folder: Path, data: bytes) -> None:
    path = folder / "params.yaml"
    path.write_bytes(data)
    refused(lambda: load_all(path), ConfigError)


@FUZZ
@given(mutated(PARAMS))
def test_params_with_odd_values(params: Any) -> None:
    if not isinstance(params, dict):
        return
    for name, model in SECTIONS.items():
        refused(lambda name=name, model=model: validate(model, params.get(name), where="f", prefix=name), ConfigError)


KEYS = st.sampled_from(sorted(ACTIONS))


@FUZZ
@given(st.sampled_from(["sdxl", "sd35", "flux"]), st.lists(st.tuples(KEYS, VALUES), max_size=5))
def test_their_files_with_odd_values(folder: Path, family: str, odd: list[tuple[str, Any]]) -> None:
    record: dict[str, Any] = {}
    for key, value in [*odd, ("model.type", family)]:
        *sections, last = key.split(".")
        inner = record
        for section in sections:
            if not isinstance(inner.get(section), dict):
                inner[section] = {}
            inner = inner[section]
        inner[last] = value
    with suppress(ValueError):  # a number that json does not write
        path = folder / "their.yaml"
        path.write_text(json.dumps(record), "utf-8")
        refused(lambda: import_config(path), ConfigError)


# Forms


@FUZZ
@given(st.tuples(VALUES, VALUES, VALUES, VALUES, VALUES))
def test_forms_of_any_kind(folder: Path, asked: tuple[Any, ...]) -> None:
    (folder / "params.yaml").write_bytes((SMALL / "params" / "tiny-sdxl.yaml").read_bytes())
    refused(lambda: read_request(folder, *asked), ConfigError)
    refused(lambda: read_request(folder, "(checkout)", None, asked[0], None, None), ConfigError)


@FUZZ
@given(LETTERS | st.lists(LETTERS, max_size=3), st.sampled_from(["a:\n  b: 1\n", "a: {b: 1}\n", "a: {b: [1, 2]}\n"]))
@example("?;", "a: {b: 1}\n")
def test_an_override_passes_as_it_is_or_is_refused(folder: Path, value: Any, style: str) -> None:
    path = folder / "over.yaml"
    path.write_text(style)

    def passed() -> None:
        wanted = {"a": {"b": value}}
        if fault := find_fault(value):
            raise ConfigError(fault)
        refuse_lost(path, list(changes(read_yaml(path), wanted)), wanted)

    refused(passed, ConfigError)


# JSON

POINTER = json.loads((SMALL / "bases" / "tiny-sdxl" / "vae.json").read_text()) if (SMALL / "bases").exists() else {}


@FUZZ
@given(mutated(POINTER) | VALUES)
@example(POINTERS["components that are a list"][0])
def test_pointers_and_licences_are_read_or_refused(record: Any) -> None:
    place = bases_dir() / "odd"
    place.mkdir(exist_ok=True)
    with suppress(ValueError):
        text = json.dumps(record)
        for name in ("vae.json", "license.json"):
            (place / name).write_text(text)
        refused(lambda: read_pointer("odd", "vae"), BaseError)
        refused(lambda: read_licences("odd"), ConfigError)


# Headers

NAMES = LETTERS | st.sampled_from(
    ["__metadata__", "first_stage_model.a", "a.lora_up.weight", "v_pred", "a.scale_weight"]
)
LINES = (
    st.builds(tensor, dtype=st.sampled_from(["F32", "F16", "U8", "XX"]), shape=st.lists(st.integers(-1, 9))) | VALUES
)


def write_any(path: Path, header: Any, extra: int, *, noise: int) -> None:
    text = bytearray(json.dumps(header).encode())
    random.seed(noise)
    for _ in range(noise):
        text[random.randrange(len(text))] = random.randrange(256)
    path.write_bytes(struct.pack("<Q", len(text)) + bytes(text) + bytes(extra))


@FUZZ
@given(st.dictionaries(NAMES, LINES, max_size=5) | VALUES, st.integers(0, 40), st.integers(0, 3))
def test_headers_are_read_or_refused(folder: Path, header: Any, extra: int, noise: int) -> None:
    path = folder / "m.safetensors"
    with suppress(ValueError):
        write_any(path, header, extra, noise=noise)
        refused(lambda: [say(line) for line in inspect_path(path)], BaseError, DataError)


@FUZZ
@given(st.sampled_from(sorted(HEADERS)), st.binary(max_size=40))
def test_weight_files_of_any_bytes(folder: Path, name: str, data: bytes) -> None:
    path = folder / "b.safetensors"
    for content in (data, struct.pack("<Q", len(data)) + data, b"GGUF" + data):
        path.write_bytes(content)
        refused(lambda: inspect_path(path), BaseError, DataError)


# Printing


@FUZZ
@given(st.text())
@example("a\nerror: forged\x1b[2K\r\u202e\ud800\udcff")
def test_what_is_printed_is_shown(capsys: pytest.CaptureFixture[str], text: str) -> None:
    once = printable(text)
    assert not UNSAFE.search(once) and printable(once) == once
    once.encode("utf-8")
    say(text)
    report(text)
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    for line in [*out.split("\n")[1:-1], *err.split("\n")[1:-1]]:
        assert line.startswith(("  ", INDENT)) and not UNSAFE.search(line)
