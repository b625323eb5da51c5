"""Bases: pointers name weights by content, wherever they lie; other weights are refused."""

import json
import os
import shutil
from pathlib import Path

import pytest

from eridiff.bases.add import add_base, detect_family
from eridiff.bases.find import find_source
from eridiff.bases.listing import verify_deep
from eridiff.bases.pointer_files import pointers_of, read_pointer, write_pointer
from eridiff.core.errors import BaseError, ConfigError
from eridiff.family import load_family, pipeline_name
from eridiff.formats.seals import MARK
from eridiff.machine.filedigests import FileDigests
from eridiff.machine.local import bases_dir
from eridiff.weights.pointers import PARTS, ModelSource
from tests.support.bases import FAMILIES
from tests.support.checkouts import SMALL, make_checkout

FAMILY = FAMILIES[0]
BASE = f"tiny-{FAMILY}"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one base, weights and pointers, as in git."""
    folder = make_checkout(tmp_path / "checkout", monkeypatch)
    shutil.copytree(SMALL / "bases" / BASE, folder / "data" / "bases" / BASE)
    return folder


def find(*parts: str) -> ModelSource:
    pointers = pointers_of(BASE, parts or PARTS, FAMILY)
    return find_source(pointers.values())


def move_weights(checkout: Path, to: Path) -> Path:
    """Leave the pointers and move the model folder away."""
    shutil.move(checkout / "data" / "bases" / BASE, to)
    target = checkout / "data" / "bases" / BASE
    target.mkdir()
    for part in PARTS:
        shutil.copy(to / f"{part}.json", target)
    return to


def test_weights_beside_the_pointers(checkout: Path) -> None:
    source = find()
    place = checkout / "data" / "bases" / BASE
    names = {name for part in load_family(FAMILY).PARTS.values() for name in part}
    assert source.folders == {name: place / name for name in names - {"scheduler"}}  # which is its config alone
    assert set(find("vae").folders) == {"vae"}
    assert source.config("vae")["latent_channels"] == 16
    assert "_class_name" not in source.config("vae")


def test_weights_named_in_local_yaml(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = move_weights(checkout, tmp_path / "disk" / "other-name")
    (checkout / "local.yaml").write_text(f"bases: {{{BASE}: {place}}}\n")
    assert find().folders["vae"] == place / "vae"
    project = checkout / "projects" / "p"
    project.mkdir(parents=True)
    monkeypatch.chdir(project)  # found upward
    assert find().folders["vae"] == place / "vae"


def test_weights_in_a_folder_of_models(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = move_weights(checkout, tmp_path / "models" / BASE)
    monkeypatch.setenv("ERIDIFF_MODELS", f"/nowhere:{tmp_path}/models")
    assert find().folders["vae"] == place / "vae"
    monkeypatch.delenv("ERIDIFF_MODELS")
    (checkout / "local.yaml").write_text(f"model_folders: [{tmp_path}/models]\n")
    assert find().folders["vae"] == place / "vae"


def test_missing_weights_are_named_with_the_places(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move_weights(checkout, tmp_path / "gone")
    monkeypatch.setenv("ERIDIFF_MODELS", str(tmp_path / "models"))
    size = (tmp_path / "gone" / "vae" / "diffusion_pytorch_model.safetensors").stat().st_size
    with pytest.raises(BaseError) as caught:
        find("vae")
    message = str(caught.value)
    assert (
        f"component vae, are not on this machine. Wanted: diffusion_pytorch_model.safetensors ({size} bytes)" in message
    )
    assert f"Searched: {tmp_path}/models/{BASE}, {checkout}/data/bases/{BASE}, {tmp_path}/models, ComfyUI (" in message
    assert f"local.yaml (bases: {{{BASE}: PATH}})" in message


def test_a_changed_byte_of_the_same_size_is_refused(checkout: Path) -> None:
    path = checkout / "data" / "bases" / BASE / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(BaseError, match=rf"{BASE}/vae is not what the pointer .* names: its content has digest"):
        find("vae")
    assert "text_encoder" in find("text").folders  # the other parts are well


def test_another_config_is_refused(checkout: Path) -> None:
    """Weights of the right bytes with another config are another model."""
    path = checkout / "data" / "bases" / BASE / "vae" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "_diffusers_version": "9", "torch_dtype": "float16"}))
    find("vae")  # says who wrote it, not what it is
    path.write_text(json.dumps({**config, "shift_factor": 0.2, "extra": 1}))
    with pytest.raises(
        BaseError, match=r"vae is not what .* its config differs from the pointer's in extra, shift_factor"
    ):
        find("vae")
    path.write_text(json.dumps({**config, "nothing": None}))
    with pytest.raises(BaseError, match=r"differs from the pointer's in nothing\."):
        find("vae")
    path.write_text("{")
    with pytest.raises(BaseError, match=r"vae/config\.json is no valid JSON"):
        find("vae")


def test_pointers_that_cannot_be_read(checkout: Path) -> None:
    with pytest.raises(
        BaseError, match=rf"base 'tiny-x' has no pointer vae\.json\. .*Known: {BASE}\. `eridiff base add"
    ):
        read_pointer("tiny-x", "vae")
    with pytest.raises(BaseError, match=f"Did you mean '{BASE}'"):
        read_pointer(BASE[:-1], "vae")
    path = bases_dir() / BASE / "vae.json"
    for text in ("{", "[]", "{}", '{"components": {"vae": {}}, "family": "f", "part": "vae"}'):
        path.write_text(text)
        with pytest.raises(BaseError, match=rf"{path} is no pointer .*make it again with `eridiff base add`"):
            read_pointer(BASE, "vae")


@pytest.mark.slow
def test_every_flipped_bit_of_a_pointer_is_found(checkout: Path) -> None:
    """Of one with a checksum; that of before, which git keeps, is read without a word."""
    path, before = bases_dir() / BASE / "denoiser.json", read_pointer(BASE, "denoiser")
    written = path.read_bytes()
    write_pointer(path, before)
    assert path.read_bytes() == written  # it says the same: nothing that depends on it starts
    path.unlink()
    write_pointer(path, before)
    data = path.read_bytes()
    assert MARK in data and MARK not in written
    assert read_pointer(BASE, "denoiser") == before
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 7]) + data[place + 1 :])
        with pytest.raises(BaseError, match=rf"{path} is no pointer .*make it again with `eridiff base add`"):
            read_pointer(BASE, "denoiser")


def test_weights_damaged_where_size_time_and_inode_stay_are_found_by_a_deep_look(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (weights,) = (bases_dir() / BASE / load_family(FAMILY).DENOISER).glob("*.safetensors")
    os.utime(weights, (weights.stat().st_mtime - 100,) * 2)  # older than the clock's grain: digests are remembered
    assert list(verify_deep(BASE))[-1] == f"{BASE}: every byte is the one that the pointers were made of"
    facts, data = weights.stat(), weights.read_bytes()
    with FileDigests() as digests:
        known = digests.remember(weights, "tensors", lambda: pytest.fail("it is remembered"))
    with open(weights, "r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(bytes([data[-5] ^ 1]))
    os.utime(weights, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert find("denoiser").folders  # what is remembered counts
    with monkeypatch.context() as change:  # ... but where the file comes from the disk and cores are idle
        change.setattr("eridiff.bases.find.worth_reading", lambda path: path == weights)
        with pytest.raises(BaseError, match=rf"{weights.parent} is not what the pointer of base '{BASE}' names"):
            find("denoiser")
    with FileDigests() as digests:
        digests.note(weights, "tensors", known)
    assert find("denoiser").folders
    (checkout / "local.yaml").write_text("check_days: 0\n")
    with pytest.raises(BaseError, match=rf"{weights.parent} is not what the pointer of base '{BASE}' names"):
        find("denoiser")
    (checkout / "local.yaml").unlink()
    with pytest.raises(BaseError, match=rf"{weights.parent} is not what the pointer of base '{BASE}' names"):
        list(verify_deep(BASE))


def test_a_base_of_another_family_is_refused(checkout: Path) -> None:
    with pytest.raises(
        BaseError, match=rf"model\.base '{BASE}' is a base of family '{FAMILY}', but model\.family is 'other'"
    ):
        pointers_of(BASE, ["vae"], "other")


def test_add_base_writes_the_same_pointers_wherever_the_folder_lies(checkout: Path, tmp_path: Path) -> None:
    in_git = {part: (bases_dir() / BASE / f"{part}.json").read_bytes() for part in PARTS}
    local = checkout / "local.yaml"
    local.write_text("# my machine\nstore: /big/store  # a disk\n")
    place = move_weights(checkout, tmp_path / "elsewhere")
    paths = add_base(BASE, [place])
    assert [path.name for path in paths] == ["vae.json", "text.json", "denoiser.json", "license.json"]
    assert {part: (bases_dir() / BASE / f"{part}.json").read_bytes() for part in PARTS} == in_git
    assert local.read_text() == f"# my machine\nstore: /big/store  # a disk\nbases:\n  {BASE}: {place}\n"
    assert find().folders["vae"] == place / "vae"
    add_base("second", [place])
    assert local.read_text().startswith("# my machine\nstore: /big/store  # a disk\n")
    assert local.read_text().endswith(f"  second: {place}\n")


def test_add_base_beside_the_pointers_leaves_local_yaml(checkout: Path) -> None:
    add_base(BASE, [checkout / "data" / "bases" / BASE])
    assert not (checkout / "local.yaml").exists()


@pytest.mark.parametrize("text", ["", "bases:\n", "# nothing\n"])
def test_add_base_with_an_empty_local_yaml(checkout: Path, tmp_path: Path, text: str) -> None:
    (checkout / "local.yaml").write_text(text)
    place = move_weights(checkout, tmp_path / "elsewhere")
    add_base(BASE, [place])
    assert find("vae").folders["vae"] == place / "vae"


def test_add_base_with_a_broken_local_yaml(checkout: Path, tmp_path: Path) -> None:
    (checkout / "local.yaml").write_text("store: [\n")
    with pytest.raises(ConfigError, match=r"local\.yaml is no valid YAML"):
        add_base(BASE, [move_weights(checkout, tmp_path / "elsewhere")])


def test_folders_that_are_no_base(checkout: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(BaseError, match=r"model is no model folder in diffusers' layout: it has no model_index\.json"):
        detect_family(folder)
    (folder / "model_index.json").write_text("{")
    with pytest.raises(BaseError, match=r"model_index\.json is no valid JSON"):
        detect_family(folder)
    (folder / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    with pytest.raises(BaseError, match=r"is a 'KandinskyPipeline', which no family trains\. Known: .*FluxPipeline"):
        detect_family(folder)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline_name(FAMILY)}))
    with pytest.raises(BaseError, match=r"model/vae is missing: a base in diffusers' layout has this folder"):
        add_base("new", [folder])
    assert not (bases_dir() / "new").exists()
