"""What must never hang, explode or trace back: every input is refused by name, in bounded time and memory."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from pydantic.fields import FieldInfo
from typer.testing import CliRunner

from eridiff import cli
from eridiff.bases.inspect import inspect_path
from eridiff.bases.licences import Licences, read_licences, stated_licence
from eridiff.bases.places import extra_model_paths
from eridiff.bases.pointer_files import read_pointer
from eridiff.check import SECTIONS, check_params, load_all
from eridiff.cli import app
from eridiff.core.config import Section, parse_yaml, read_yaml
from eridiff.core.errors import BaseError, ConfigError, DataError, Mistakes, all_of, report, run_main
from eridiff.core.printable import UNSAFE, printable
from eridiff.core.progress import say, warn
from eridiff.core.value_limits import MAX_SHOWN, find_fault, shown
from eridiff.dvc.experiments import changes, refuse_lost
from eridiff.flow.form import Asked, read_request, read_sets
from eridiff.formats.safetensors import TensorFile
from eridiff.machine.local import LocalConfig, bases_dir, load_local
from eridiff.params.train import TrainParams, kept_steps
from eridiff.projects.import_eridiffusion import import_config
from stages.check import main as check_stage
from tests.conftest import ROOT
from tests.support.checkouts import SMALL, link_bases
from tests.support.corpus import HEADERS, NUMBERS, OVERRIDES, POINTERS, YAML, header_file, tensor
from tests.support.originals import write_split

PARAMS = SMALL / "params" / "tiny-sdxl.yaml"

READERS: dict[str, Callable[[Path], Any]] = {
    "params.yaml": check_params,
    "their.yaml": import_config,
    "local.yaml": lambda _: load_local(),
    "extra_model_paths.yaml": extra_model_paths,
}

# YAML: params.yaml, local.yaml, import-config, --set


@pytest.mark.parametrize("name", YAML)
def test_yaml_that_is_out_of_bounds(name: str, tmp_path: Path) -> None:
    text, says = YAML[name]
    path = tmp_path / "params.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=says):
        load_all(path)


@pytest.mark.parametrize(
    "name", ["alias bomb", "merge bomb", "itself", "5,000 hex digits", "half a letter", "an escape"]
)
def test_every_reader_of_yaml_has_the_same_bounds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, says = YAML[name]
    monkeypatch.chdir(tmp_path)
    for file, read in READERS.items():
        (tmp_path / file).write_text(text, "utf-8")
        with pytest.raises(ConfigError, match=says):
            read(tmp_path / file)


@pytest.mark.parametrize("value", ["&m {x: *m}", "[" * 3000, "9" * 5000, '"\\ud800"', "{", "!!int x", '"\\N"'])
def test_values_of_a_command_line_have_the_same_bounds(value: str) -> None:
    with pytest.raises(ConfigError, match=r"--set train\.steps"):
        read_sets([f"train.steps={value}"])


def test_a_value_and_a_section_under_one_name() -> None:
    with pytest.raises(ConfigError, match="lora has a value of its own already"):
        read_sets(["train.lora=1", "train.lora.rank=2"])


def test_values_are_counted_as_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eridiff.core.config.MAX_VALUES", 6)  # ten thousand would take a second
    assert parse_yaml("a: [1, 2, 3]", "f") == {"a": [1, 2, 3]}
    with pytest.raises(ConfigError, match="more than 6 values"):
        parse_yaml("a: [1, 2, 3, 4]", "f")


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match="a pipe, no file"):  # opened, it would wait for ever
        read_yaml(tmp_path / "pipe.yaml")
    (tmp_path / "endless.yaml").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="a device, no file"):
        read_yaml(tmp_path / "endless.yaml")


def test_aliases_and_merges_within_bounds_are_read() -> None:
    text = "a: &a {x: 1, y: [1, 2]}\nb: {<<: *a, z: *a}\nc: [*a, *a]"
    assert parse_yaml(text, "f")["b"] == {"x": 1, "y": [1, 2], "z": {"x": 1, "y": [1, 2]}}


def test_the_demos_own_files_are_far_within_bounds() -> None:
    for path in [ROOT / "dvc.lock", ROOT / "dvc.yaml", *sorted((ROOT / "presets").glob("*.yaml"))]:
        assert not find_fault(read_yaml(path)), path


def put(params: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    *sections, last = key.split(".")
    inner = params
    for section in sections:
        inner[section] = dict(inner.get(section) or {})
        inner = inner[section]
    inner[last] = value
    return params


@pytest.mark.parametrize("key", NUMBERS)
def test_numbers_that_are_out_of_bounds(key: str, tmp_path: Path) -> None:
    value, says = NUMBERS[key]
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps(put(dict(read_yaml(PARAMS)), key, value)))  # JSON is YAML
    with pytest.raises(ConfigError, match=says) as caught:
        load_all(path)
    assert key in str(caught.value)
    assert len(str(caught.value)) < 1000, "a long value is cut"


def test_too_many_pictures_are_counted(tmp_path: Path) -> None:
    params = put(dict(read_yaml(PARAMS)), "sample.seeds", list(range(1000)))
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps(put(params, "sample.strengths", [n / 10 for n in range(1, 100)])))
    with pytest.raises(ConfigError, match=r"1000 seeds, .* pictures, more than 100000"):
        load_all(path)


def test_the_steps_kept_of_many_are_calculated_not_listed() -> None:
    def kept(steps: int, every: int, keep: int) -> list[int]:
        return kept_steps(TrainParams(steps=steps, save_every=every, keep=keep))

    tracemalloc.start()
    assert kept(10_000_000, 1, 3) == [9_999_998, 9_999_999, 10_000_000]
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    for steps, every, keep in [(10, 3, 2), (9, 3, 2), (9, 3, 9), (2, 3, 2), (10, 10, 1), (10, 3, 1), (10, 3, 4)]:
        saved = sorted({*range(every, steps + 1, every), steps})
        assert kept(steps, every, keep) == saved[-keep:]


# Every number has two bounds


def open_numbers(annotation: Any, metadata: list[Any], where: str) -> Iterator[str]:
    """Numbers, lists and tables inside a type that lack a bound."""
    names = {type(bound).__name__ for bound in metadata}
    origin, args = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        inner = [part for info in annotation.__metadata__ for part in getattr(info, "metadata", [info])]
        yield from open_numbers(annotation.__origin__, inner, where)
    elif annotation in (int, float):
        if not (names & {"Ge", "Gt"} and names & {"Le", "Lt"}):
            yield f"{where}: {annotation.__name__}"
    elif origin in (Union, UnionType):
        for arg in args:  # the length of an optional list stands at the union
            yield from open_numbers(arg, metadata, where)
    elif origin is tuple and args[-1] is not Ellipsis:
        for arg in args:
            yield from open_numbers(arg, [], where)
    elif origin in (tuple, list, dict):
        if "MaxLen" not in names:
            yield f"{where}: {origin.__name__}"
        for arg in args:
            if arg is not Ellipsis:
                yield from open_numbers(arg, [], where)
    elif origin is not Literal and annotation not in (str, bool, NoneType, Any):
        assert isinstance(annotation, type) and issubclass(annotation, Section), f"{where}: {annotation} is of no kind"


def all_models() -> set[type[Section]]:
    """Every model of ours, wherever it stands."""
    found = subclasses(Section)
    assert {*SECTIONS.values(), LocalConfig, Licences, Asked} <= found
    return {model for model in found if model.__module__.startswith("eridiff")}


def subclasses(model: type[Section]) -> set[type[Section]]:
    return {model}.union(*(subclasses(inner) for inner in model.__subclasses__())) - {Section}


def test_every_number_and_list_of_every_model_is_bounded() -> None:
    lacking = [
        missing
        for model in all_models()
        for name, field in model.model_fields.items()
        for missing in open_numbers(field.annotation, field.metadata, f"{model.__name__}.{name}")
    ]
    assert lacking == []
    assert all(model.model_config.get("str_max_length") for model in all_models())


def test_the_walk_can_fail() -> None:
    class Loose(Section):
        number: int
        half: int | None = FieldInfo(ge=1)  # type: ignore[assignment]
        many: tuple[float, ...] = ()

    found = [m for n, f in Loose.model_fields.items() for m in open_numbers(f.annotation, f.metadata, n)]
    assert found == ["number: int", "half: int", "many: tuple", "many: float"]


def test_every_number_of_the_command_line_is_bounded() -> None:
    found = {}
    for path in [ROOT / "eridiff/cli.py", ROOT / "eridiff/store/commands.py", ROOT / "stages/flow.py"]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple):
                kind, *options = node.slice.elts
                if re.search(r"\b(int|float)\b", ast.unparse(kind)) and isinstance(options[0], ast.Call):
                    found[ast.unparse(node)] = {keyword.arg for keyword in options[0].keywords}
    assert len(found) >= 4
    for option, keywords in found.items():
        assert {"min", "max"} <= keywords, option


@pytest.mark.parametrize("number", ["nan", "inf", "0", "1e300"])
def test_numbers_of_the_command_line_that_are_out_of_bounds(number: str) -> None:
    done = CliRunner().invoke(app, ["plan", "--memory", number])
    assert done.exit_code == 2 and "Invalid value for '--memory'" in done.output


# Forms and overrides


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("project", None),
        ("project", ["a"]),
        ("preset", {}),
        ("stop_at", 3),
        ("minutes", "5"),
        ("minutes", float("nan")),
        ("minutes", 1e300),
        ("overrides", [1]),
        ("overrides", {"train": {"steps": 10**11}}),
        ("overrides", {"export": {"title": "a\x85b"}}),
        ("overrides", {"export": {"title": "\ud800"}}),
    ],
)
def test_a_form_of_another_kind_is_refused(field: str, value: Any) -> None:
    asked: dict[str, Any] = {"project": "(checkout)", "preset": None, "overrides": None, "stop_at": None}
    with pytest.raises(ConfigError, match=field):
        read_request(ROOT, **{**asked, "minutes": None, field: value})


@pytest.mark.parametrize("text", OVERRIDES)
def test_an_override_that_dvc_would_change_is_refused(text: str, tmp_path: Path) -> None:
    """Written on lines of its own it passes; within braces DVC's writer leaves the quotes away."""
    path = tmp_path / "params.yaml"
    for style, passes in (("a:\n  b: 1\n", True), ("a: {b: 1}\n", False)):
        path.write_text(style)
        wanted = {"a": {"b": text}}
        sets = list(changes(read_yaml(path), wanted))
        if passes:
            refuse_lost(path, sets, wanted)
        else:
            with pytest.raises(ConfigError, match=r"DVC would not pass this on as it is: .*without brackets"):
                refuse_lost(path, sets, wanted)
        assert path.read_text() == style, "only a copy is changed"


@pytest.mark.parametrize("form", ["'a\x85    b'", '"a\x85b"', "a\x85b", "a  # b\x85"])
def test_what_dvc_writes_of_an_invisible_line_end_is_refused(form: str, tmp_path: Path) -> None:
    """`dvc exp run -S` itself writes U+0085 as the first of these; read as YAML says, the value would be `a b`."""
    path = tmp_path / "params.yaml"
    path.write_text(f"x: 1\nclass_word: {form}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"params\.yaml: line 2 holds the control character U\+0085"):
        read_yaml(path)


def test_keys_that_hydras_grammar_does_not_take_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"the key 'a\?;' cannot be passed"):
        list(changes({}, {"a?;": 1}))
    with pytest.raises(ConfigError, match=r"the key 'x:y' cannot be passed"):
        list(changes({}, {"a": {"x:y": 1}}))
    assert list(changes({"a?;": 1, 5: 2}, {"a?;": 1, 5: 2})) == []


# JSON: pointers, licences, configs


def write(path: Path, record: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(record if isinstance(record, str) else json.dumps(record))


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    link_bases(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", POINTERS)
def test_pointers_that_are_none(name: str, checkout: Path) -> None:
    record, says = POINTERS[name]
    write(bases_dir() / "odd" / "vae.json", record)
    with pytest.raises(BaseError, match=rf"vae\.json is no pointer \(.*({says}).*make it again"):
        read_pointer("odd", "vae")


def test_a_pointer_that_is_a_pipe_is_not_waited_for(checkout: Path) -> None:
    (bases_dir() / "odd").mkdir(parents=True)
    os.mkfifo(bases_dir() / "odd" / "vae.json")
    with pytest.raises(BaseError, match=r"vae\.json is no pointer \(a pipe, no file\)"):
        read_pointer("odd", "vae")


def test_licences_that_are_none(checkout: Path) -> None:
    for record, says in POINTERS.values():
        if isinstance(record, str):
            write(bases_dir() / "odd" / "license.json", record)
            with pytest.raises(ConfigError, match=says):
                read_licences("odd")


def test_one_broken_pointer_does_not_hide_the_other_bases(checkout: Path) -> None:
    from eridiff.bases.listing import find_base, list_bases

    write(bases_dir() / "odd" / "denoiser.json", {"family": [], "components": []})
    lines = {line.split(":")[0]: line for line in list_bases()}
    assert "odd/denoiser.json is no pointer" in lines["odd"]
    assert lines["tiny-sdxl"] == "tiny-sdxl: sdxl, found"
    assert list(find_base("tiny-sdxl"))


@pytest.mark.parametrize("text", ["[]", "null", "3", '"a"', "[" * 3000, '{"a": 1, "a": 2}', '{"a": NaN', "\x00"])
def test_configs_that_are_none(text: str, tmp_path: Path) -> None:
    from eridiff.bases.add import add_base
    from eridiff.weights.components import read_config

    for name in ("scheduler/scheduler_config.json", "model_index.json"):
        write(tmp_path / name, text)
    with pytest.raises(BaseError, match="is no valid JSON"):
        read_config(tmp_path / "scheduler" / "scheduler_config.json")
    with pytest.raises(BaseError, match=r"model_index\.json is no valid JSON"):
        add_base("odd", [tmp_path])


COUNTED = {
    "num_layers": (10**15, "num_layers is 1000000000000000, more than 1000"),
    "transformer_layers_per_block": ([1, 10**9], "transformer_layers_per_block is 1000000000, more than 1000"),
    "block_out_channels": ([320] * 101, "block_out_channels has 101 values, more than 100"),
    "num_train_timesteps": (1e9, "num_train_timesteps is 1000000000.0, more than 100000"),
}


@pytest.mark.parametrize("key", COUNTED)
def test_configs_that_count_to_no_end(key: str, checkout: Path) -> None:
    from eridiff.weights.components import read_config

    value, says = COUNTED[key]
    write(checkout / "config.json", {key: value})
    with pytest.raises(BaseError, match=says):
        read_config(checkout / "config.json")
    components = {"vae": {"config": {key: value}, "files": {}, "digest": ""}}
    write(bases_dir() / "odd" / "vae.json", {"family": "sdxl", "part": "vae", "components": components})
    with pytest.raises(BaseError, match=says):
        read_pointer("odd", "vae")


def test_every_published_config_is_within_bounds() -> None:
    from eridiff.family import family_names, published
    from eridiff.weights.components import sound_config

    configs = [c for name in family_names() for variant in published(name).models.values() for c in variant.values()]
    assert len(configs) > 20
    for config in configs:
        assert sound_config(config) == config and not find_fault(config)


@pytest.mark.parametrize("change", [{"num_layers": None}, {"num_layers": []}, {"num_single_layers": "x"}, None])
def test_a_config_of_another_kind_is_named(change: dict[str, Any] | None, checkout: Path) -> None:
    from eridiff.bases.add import add_base

    files = write_split(checkout / "files")
    config = checkout / "config"
    shutil.copytree(SMALL / "bases" / "tiny-flux", config)
    path = config / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change} if change else {"a": 1}))
    with pytest.raises(BaseError, match=r"the config of transformer is none of its kind \((Type|Key)Error: .*copy"):
        add_base("odd", files, config)


def test_a_pipeline_that_is_a_list(tmp_path: Path) -> None:
    from eridiff.bases.add import add_base

    write(tmp_path / "model_index.json", {"_class_name": []})
    with pytest.raises(BaseError, match=r"is a '\[\]', which no family trains"):
        add_base("odd", [tmp_path])


def test_licence_texts_with_page_breaks_and_of_any_length(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("A" * 5000 + "\n\x0cmore")
    (tmp_path / "NOTICE").write_bytes(b"one\x0ctwo\r\n\xff")
    found = stated_licence(tmp_path)
    assert found is not None and len(found.name) == 200
    assert found.notices == ("one two\n\ufffd",)
    assert not find_fault(found.model_dump())
    (tmp_path / "NOTICE").write_text("x" * (1 << 19))
    with pytest.raises(ConfigError, match="no text of a licence"):
        stated_licence(tmp_path)


# Headers of weight files


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_are_out_of_bounds(name: str, tmp_path: Path) -> None:
    path = header_file(tmp_path / "m.safetensors", *HEADERS[name])
    tracemalloc.start()
    with pytest.raises(DataError, match=r"m\.safetensors (is damaged|is no whole|has a header of)"):
        inspect_path(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * path.stat().st_size + (8 << 20)


def test_a_header_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write((1 << 30).to_bytes(8, "little"))
        file.truncate(1 << 31)  # a hole
    with pytest.raises(DataError, match="has a header of 1073741824 bytes, which no model has"):
        inspect_path(path)


def test_names_of_any_language_are_read(tmp_path: Path) -> None:
    path = header_file(tmp_path / "m.safetensors", {"ünï.код.层": tensor(), "__metadata__": {"a": "b\nc\u202e"}}, 4)
    assert TensorFile(path).names == ["ünï.код.层"]


@pytest.mark.parametrize("name", ["m-1-of-99999999999.safetensors", "m-00001-of-9" + "9" * 200 + ".safetensors"])
def test_a_name_that_claims_any_number_of_shards(name: str, tmp_path: Path) -> None:
    header_file(tmp_path / name, {"a": tensor()}, 4)
    with pytest.raises(BaseError, match=r"is missing .* and more: the model was copied incompletely") as caught:
        inspect_path(tmp_path / name)
    assert str(caught.value).count("safetensors") == 20


@pytest.mark.parametrize("name", ["m-3-of-2.safetensors", "m-0-of-1.safetensors", "m-2-of-1.safetensors"])
def test_a_shard_that_is_none_of_its_own(name: str, tmp_path: Path) -> None:
    for one in (name, "m-1-of-1.safetensors", "m-1-of-2.safetensors", "m-2-of-2.safetensors"):
        header_file(tmp_path / one, {"a": tensor()}, 4)
    with pytest.raises(BaseError, match=r"is none of the [12] files that its name speaks of"):
        inspect_path(tmp_path / name)


def test_a_lora_with_odd_metadata_is_still_a_lora(tmp_path: Path) -> None:
    from eridiff.bases.add import add_base

    header = {
        "a.lora_up.weight": tensor(),
        "__metadata__": {"ss_network_dim": "9" * 5000, "eridiff": "{", "x": "[" * 99},
    }
    path = header_file(tmp_path / "mine.safetensors", header, 4)
    with pytest.raises(BaseError, match="is a LoRA"):
        add_base("odd", [path])


# What is printed


def test_what_a_terminal_obeys_is_shown() -> None:
    assert printable("a\x1b[2K\rb\x85\u202e\u2028\ud800\udcff\x7f\n") == (
        "a\\x1b[2K\\rb\\x85\\u202e\\u2028\\ud800\\xff\\x7f\\n"
    )
    for plain in ("größe 写真 🦊 👩‍🎨 שלום", "a\u200bb"):
        assert printable(plain) == plain


def test_a_name_forges_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forged = "a\nerror: all is lost\x1b[2K\rb"
    say(forged)
    warn(forged)
    report(f"{forged} is no file")
    report(all_of([f"{forged}: first", "second"]))
    shown_text = "".join(capsys.readouterr())
    assert not UNSAFE.search(shown_text.replace("\n", ""))
    lines = [line for line in shown_text.split("\n") if not line.startswith("  ")]
    assert lines == ["a", "warning: a", "error: a", "error: a", "error: second", ""]


def test_several_mistakes_stay_several(tmp_path: Path) -> None:
    import pickle

    assert all_of(["a", "b"]) == "a\nerror: b"
    again = pickle.loads(pickle.dumps(DataError(all_of(["a", "b"]))))
    assert isinstance(again.message, Mistakes) and again.message.parts == ("a", "b")


def test_values_in_messages_are_cut() -> None:
    for value in ("x" * 10**6, list(range(10**6)), 10**6000, {"a": ["x" * 10**6]}, "\x1b" * 500):
        assert len(shown(value)) <= MAX_SHOWN and not UNSAFE.search(shown(value))


def test_nothing_prints_but_through_the_one_place() -> None:
    """`print`, `echo` and writes to the standard streams: only progress and errors, and words before any package."""
    allowed = {"progress.py", "errors.py", "words.py"}
    for path in [*(ROOT / "eridiff").rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        calls = [node.func for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        texts = {ast.unparse(call) for call in calls}
        out = {text for text in texts if re.fullmatch(r"print|.*\.(secho|echo)|sys\.std(out|err)\.write", text)}
        assert path.name in allowed or not out, path


# The command line


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command as `python -m` would: exit code, output, errors. Anything but an exit goes through."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process keeps its own

    def call(main: Callable[[], None], *arguments: str | bytes) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["eridiff", *map(os.fsdecode, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(str(ended.value.code or 0)), out, err

    return call


def test_paths_that_are_no_utf8(checkout: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    odd = os.fsencode(checkout) + b"/\xff\x1b[31m.safetensors"
    Path(os.fsdecode(odd)).write_bytes(b"cut")
    code, _, err = run(cli.main, "inspect", odd)
    assert code == 1 and err.startswith("error: ") and "\\xff\\x1b[31m.safetensors is no whole" in err
    code, out, _ = run(cli.main, "inspect", ".")
    assert code == 0 and "\\xff\\x1b[31m.safetensors: " in out and "\x1b" not in out
    code, _, err = run(cli.main, "base", "add", "x", odd)
    assert code == 1 and "is no UTF-8: rename that file or folder." in err


def test_a_stream_that_lacks_letters(checkout: Path) -> None:
    """In another process, with the encoding of an old terminal."""
    Path("größe 写.safetensors").write_bytes(b"cut")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "eridiff", "inspect", "."]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0 and b"gr\\xf6\\xdfe \\u5199.safetensors: " in done.stdout and not done.stderr


def test_a_bad_params_file_ends_a_stage_with_one_message(
    checkout: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    (checkout / "params.yaml").write_text("&m {x: *m}")
    code, out, err = run(lambda: run_main(check_stage))
    assert (code, out, err) == (1, "", "error: params.yaml is no valid YAML: *m stands inside what it names\n")


@pytest.mark.parametrize("argument", ["x" * 5000, "loop", "params.yaml/x"])
def test_paths_that_the_system_refuses(argument: str, checkout: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    (checkout / "loop").symlink_to("loop")
    (checkout / "params.yaml").write_text("")
    for command in (["inspect"], ["import-config"], ["base", "add", "x"]):
        code, _, err = run(cli.main, *command, argument)
        assert code == 1 and err.startswith("error: "), command
