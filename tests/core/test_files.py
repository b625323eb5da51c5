"""One rule for all that is read: regular files alone, within bounds. Whatever stands there is refused by name."""

import errno
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eridiff.bases.inspect import inspect_path
from eridiff.bases.licences import licence_path, read_licences
from eridiff.bases.pointer_files import read_pointer_file
from eridiff.core.config import read_yaml
from eridiff.core.errors import DISK_ERRORS, BaseError, ConfigError, DataError, EridiffError
from eridiff.core.files import digest_file, map_file, read_file, read_text
from eridiff.core.json_files import load_json
from eridiff.dvc.outs import digest_md5
from eridiff.dvc.repair import mend
from eridiff.formats.safetensors import TensorFile
from eridiff.formats.seals import read_sealed
from eridiff.formats.tables import read_facts, read_table
from eridiff.models.lora import read_checkpoint
from eridiff.params.inherited import EXPORT_EMA, read_inherited
from eridiff.projects.import_eridiffusion import import_config
from eridiff.store.pins import read_pin
from eridiff.weights.files import open_weights
from tests.conftest import ROOT
from tests.dataset.test_unbounded import KINDS, fill
from tests.robustness.test_bounds_fuzz import in_time
from tests.support.checkouts import make_checkout

MIB = 1 << 20
READERS: dict[str, Callable[[Path], Any]] = {
    "a.txt": read_text,
    "a.bin": read_file,
    "choices.json": lambda path: read_inherited(path, EXPORT_EMA),
    "metrics.json": load_json,
    "a.yaml": read_yaml,
    "their.yaml": import_config,
    "captions.parquet": read_table,
    "index.parquet": read_facts,
    "pin.sealed.json": lambda path: read_sealed(path, "Remove it."),
    "pin.json": read_pin,
    "lora.safetensors": open_weights,
    "looked.safetensors": inspect_path,
    "vae.json": read_pointer_file,
}
# These read to the end by what they are for, so a terabyte takes its time; or take any bytes.
WHOLE: dict[str, Callable[[Path], Any]] = {
    "a.bin": map_file,
    "digest.bin": digest_file,
    "md5.bin": digest_md5,
    "checkpoint.safetensors": read_checkpoint,
    "header.safetensors": TensorFile,
}


def refusal(read: Callable[[Path], Any], path: Path) -> str:
    """What is said, in bounded time and memory: an error of ours, or of the file system in words of `run_main`."""
    tracemalloc.start()
    try:
        with in_time(), pytest.raises((EridiffError, OSError, ValueError)) as caught:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 160 * MIB
    finally:
        tracemalloc.stop()
    error = caught.value
    if isinstance(error, OSError):
        assert error.errno in DISK_ERRORS and error.filename == str(path)
        return f"{error.filename}: {error.strerror}"
    return str(error)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", READERS)
def test_whatever_stands_in_the_place_of_a_file(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (name, kind) == ("a.bin", "latin"):
        return
    path = make_checkout(tmp_path / "checkout", monkeypatch) / name
    fill(path, kind)
    said = refusal(READERS[name], path)
    assert name in said or (isinstance(said, str) and "utf-8" in said)


@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "folder"])
@pytest.mark.parametrize("name", WHOLE)
def test_what_is_no_file_is_never_read_to_its_end(name: str, kind: str, tmp_path: Path) -> None:
    fill(tmp_path / name, kind)
    assert name in refusal(WHOLE[name], tmp_path / name)


@pytest.mark.parametrize("kind", [*KINDS, "lists"])
def test_a_licence_that_is_none(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkout(tmp_path / "checkout", monkeypatch)
    fill(licence_path("odd"), kind)
    if kind == "loop":
        return  # a link that leads nowhere: no licence is noted
    with in_time(), pytest.raises(ConfigError, match=r"license\.json is no valid JSON"):
        read_licences("odd")


@pytest.mark.parametrize("name", [".dvc/tmp/rwlock", ".dvc/tmp/exps/rwlock", "dvc.lock"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "terabyte"])
def test_what_a_command_mends_first_is_not_waited_for(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    fill(tmp_path / name, kind)
    with in_time():
        try:
            assert mend(tmp_path) == []  # left as it is: who reads it says so
        except OSError as error:
            assert error.errno in DISK_ERRORS and error.filename == str(tmp_path / name)


def test_a_lock_of_lists_without_end_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    fill(tmp_path / "dvc.lock", "lists")
    with in_time():
        (line,) = mend(tmp_path)
    assert line.startswith("dvc.lock was cut short") and not (tmp_path / "dvc.lock").exists()


def test_a_sealed_file_has_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "a.sealed.json"
    path.write_bytes(b"x" * 100)
    with pytest.raises(DataError, match=r"a\.sealed\.json cannot be read: it has more than 99 bytes\. Remove it\."):
        read_sealed(path, "Remove it.", 99)
    with pytest.raises(DataError, match="is damaged"):
        read_sealed(path, "Remove it.", 100)


def test_text_is_read_as_python_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("ü\r\nb\rc\n".encode())
    assert read_text(path) == path.read_text("utf-8") == "ü\nb\nc\n"
    path.write_bytes(b"ab\xff")
    with pytest.raises(OSError, match=r"byte 2 \(0xFF\) is no UTF-8") as caught:
        read_text(path)
    assert caught.value.errno == errno.EILSEQ


# Modules that open files themselves, and why.
OWN = {
    "core/files": "the rule itself",
    "dataset/caption/files": "the same rule, and links that leave the folder",
    "dataset/image/decode": "pictures: what is no file was refused before (first_bytes.py)",
    "dataset/image/header": "the same",
    "dataset/image/first_bytes": "looks at what it opens",
    "core/stopping": "writes; /proc",
    "flow/supervise": "/proc",
    "caching/processes": "/proc",
    "flow/access": "looks at what it opens",
    "machine/page_cache": "maps what the bases have found",
    "words": "files of the checkout",
    "bases/tokenizers": "files of the checkout",
    "bases/licences": "files of the checkout: published.json",
    "family": "files of the checkout: published.json",
}


OPENS = re.compile(r"\.read_text\(\"|\.read_text\(\)|\.read_bytes\(|(?<![\w.])open\((?!.*\"[wxa]b?\")|\w\.open\(\"r")


def test_no_other_module_opens_a_file_for_reading() -> None:
    assert OPENS.search('with open(path, "rb") as file') and not OPENS.search('with open(path, "wb") as file')
    assert OPENS.search('path.read_text("utf-8")') and not OPENS.search("read_text(path)")
    package = ROOT / "eridiff"
    files = {path.relative_to(package).with_suffix("").as_posix(): path for path in package.rglob("*.py")}
    assert {name for name, path in files.items() if OPENS.search(path.read_text("utf-8"))} == set(OWN)


def test_a_json_of_lists_without_end(tmp_path: Path) -> None:
    fill(tmp_path / "choices.json", "lists")
    with pytest.raises(ConfigError, match=r"choices\.json does not say"):
        read_inherited(tmp_path / "choices.json", EXPORT_EMA)
    with pytest.raises(BaseError, match="is neither a weight file nor a pointer"):
        inspect_path(tmp_path / "choices.json")
