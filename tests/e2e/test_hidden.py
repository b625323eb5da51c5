"""What DVC cannot see: edits that forge name, size, time and inode; and pictures that are not there."""

import os
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.e2e.harness import Clone, make_clone
from tests.e2e.test_table import flat_picture

pytestmark = pytest.mark.e2e

NUM_PICTURES = 20


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    made = make_clone(tmp_path_factory.mktemp("hidden"), "clone")
    made.params({"captions.variants": 1, "captions.shuffle_tags": False})
    made.repro("latents", "text")
    made.commit("ran")
    return made


def forge(path: Path, data: bytes) -> None:
    """Other bytes in place: name, size, modification time and inode stay."""
    before = path.stat()
    assert len(data) == before.st_size
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


def test_forged_edits_are_found_by_reading_again(clone: Clone, tmp_path: Path) -> None:
    raw = clone.root / "data/raw"
    shutil.copy2(raw / "fox.png", tmp_path / "fox.png")
    flat_picture(tmp_path / "fox.png")
    clone.why("--rehash")  # all digests are remembered
    forge(raw / "fox.png", (tmp_path / "fox.png").read_bytes())
    caption = (raw / "owl.caption").read_bytes()
    forge(raw / "owl.caption", caption.replace(b"owl", b"elk", 1))
    assert caption != (raw / "owl.caption").read_bytes()
    assert clone.repro("latents", "text").stages == []  # DVC trusts inode, time and size
    assert clone.why()["stages"]["latents"]["state"] == "-"
    predicted = clone.why("--rehash")
    commands = {edit["path"]: edit["command"] for edit in predicted["hidden"]}
    assert commands == {name: f"touch {name}" for name in ("data/raw/fox.png", "data/raw/owl.caption")}
    counts = {name: (plan["encoded"], plan["reused"]) for name, plan in predicted["stages"].items() if name in COUNTED}
    assert counts["latents"] == (1, NUM_PICTURES - 1) and counts["text"][0] == 1
    assert {sample["stage"]: list(sample["changes"]) for sample in predicted["samples"]} == {
        "latents": ["pixels"],
        "text": ["text"],
    }
    for command in commands.values():
        clone.run(*shlex.split(command))
    ran = clone.repro("latents", "text")
    assert ran.encoded == counts
    assert clone.why("--rehash")["hidden"] == []


COUNTED = ("latents", "text")


def test_nothing_hidden_is_said_to_be(clone: Clone) -> None:
    """An ordinary edit is no hidden one."""
    raw = clone.root / "data/raw"
    Image.new("RGB", (160, 160), (1, 2, 3)).save(raw / "lemon.png")
    predicted = clone.why("--rehash")
    assert predicted["hidden"] == []
    assert predicted["stages"]["latents"]["encoded"] == 1
    clone.repro("latents", "text")


def test_a_forged_pointer_is_found_too(clone: Clone) -> None:
    """Every file that a stage reads and no stage writes is read again, not the pictures alone."""
    pointer = clone.root / "data/bases/tiny-sdxl/vae.json"
    data = pointer.read_bytes()
    forge(pointer, data[:-1] + b" ")
    found = {edit["path"] for edit in clone.why("--rehash")["hidden"]}
    forge(pointer, data)
    assert found == {"data/bases/tiny-sdxl/vae.json"}
    assert clone.why("--rehash")["hidden"] == []


@pytest.fixture
def without_pictures(clone: Clone, tmp_path: Path) -> Clone:
    """A copy of the clone as after `dvc pull` of pushed results: no pictures, an empty store."""
    root = tmp_path / "bare"
    shutil.copytree(clone.root, root, symlinks=True)
    shutil.rmtree(root / "data/raw")
    made = Clone(root, tmp_path / "store", clone.cache)
    return made


def test_without_pictures_what_does_not_need_them_is_predicted(without_pictures: Clone) -> None:
    clone = without_pictures
    predicted = clone.why()
    assert [predicted["stages"][name]["state"] for name in ("check", "captions", "buckets", "latents", "text")] == [
        "-"
    ] * 5
    assert any("data/raw is not here" in note and "--allow-missing" in note for note in predicted["notes"])
    assert clone.repro("--allow-missing", "latents", "text").stages == []
    clone.params({"latents.dtype": "bf16"})
    predicted = clone.why()
    assert predicted["stages"]["captions"]["state"] == "-"
    plan = predicted["stages"]["latents"]
    assert (plan["state"], plan["encoded"], plan["reused"]) == ("runs", NUM_PICTURES, 0)
    assert any("latents will stop: it has to encode pictures that are not here" in note for note in predicted["notes"])
    clone.params({"latents.dtype": "fp32", "captions.trigger": "another"})
    predicted = clone.why()
    assert predicted["stages"]["captions"]["state"] == "runs"
    assert predicted["stages"]["buckets"]["state"] == "may run"
    assert any("captions cannot run without data/raw" in note for note in predicted["notes"])
