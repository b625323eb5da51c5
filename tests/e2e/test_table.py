"""The table of what reruns when something changes, each row on the running pipeline, each predicted by `why`.

Rows run in order on one clone, each on the state that the row before left.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from tests.e2e.harness import Clone, make_clone

pytestmark = pytest.mark.e2e

ALL = ["check", "captions", "buckets", "latents", "text", "train", "sample", "export"]
AFTER_TEXT = ["text", "train", "sample", "export"]
NUM_PICTURES = 20
NEW_TEXT = "eridraw, a flat red field"
NUM_TEXTS = 20  # two pictures have no caption and share one; the empty caption is always there


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    made = make_clone(tmp_path_factory.mktemp("table"), "clone")
    made.params({"captions.variants": 1, "captions.shuffle_tags": False, "train.optimizer.schedule": "constant"})
    return made


def change(clone: Clone, edit: Callable[[], object], runs: list[str], **encoded: int) -> list[dict[str, Any]]:
    """Edit, predict, run: the prediction, the run and the table must say the same. Returns the samples predicted.

    What follows train only may run, because train may give equal bytes; in these rows it does not.
    """
    edit()
    predicted = clone.why()
    ran = clone.repro()
    would_run = {name for name, plan in predicted["stages"].items() if plan["state"] == "runs"}
    may_run = {name for name, plan in predicted["stages"].items() if plan["state"] == "may run"}
    assert set(ran.stages) == set(runs), ran.output
    assert would_run | may_run == set(runs)
    assert may_run <= {"sample", "export"}
    counts = {name: predicted["stages"][name] for name in ran.encoded}
    assert {name: (plan["encoded"], plan["reused"]) for name, plan in counts.items()} == ran.encoded
    for name, (count, _) in ran.encoded.items():
        assert count == encoded.get(name, 0), ran.output
        assert len([s for s in predicted["samples"] if s["stage"] == name]) == count
    assert set(encoded) <= set(ran.encoded)
    restored = [name for name, plan in predicted["stages"].items() if plan["state"] == "restored"]
    assert set(restored) == set(ran.restored)
    assert predicted["notes"] == predicted["hidden"] == predicted["encoders"] == []
    samples: list[dict[str, Any]] = predicted["samples"]
    return samples


def parts(samples: list[dict[str, Any]]) -> set[str]:
    """Which parts of keys differ, over all samples."""
    return {part for sample in samples for part in sample["changes"]}


def save_as_before(path: Path, image: Image.Image) -> None:
    """Write a picture over another, padded to the same number of bytes."""
    size = path.stat().st_size
    image.save(path, format="PNG", compress_level=9, optimize=True)
    data = path.read_bytes()
    assert len(data) <= size
    path.write_bytes(data + b"\0" * (size - len(data)))


def flat_picture(path: Path) -> None:
    """Other pixels under the same name, byte count and pixel size."""
    with Image.open(path) as image:
        size = image.size
    save_as_before(path, Image.new("RGB", size, (200, 30, 30)))


def test_first_run(clone: Clone) -> None:
    change(clone, lambda: None, ALL, latents=NUM_PICTURES, text=NUM_TEXTS)


def test_runs_name_what_was_computed_with(clone: Clone) -> None:
    for stage, dtype in (("latents", "fp32"), ("text", "fp32"), ("train", "fp32"), ("sample", "fp32")):
        run = json.loads((clone.root / "runs" / f"{stage}.json").read_text("utf-8"))
        assert (run["device"], run["card"], run["dtype"]) == ("cpu", None, dtype)
        assert run["attention"] == ["flash", "math"]
        assert run["versions"]["torch"]


def test_nothing_changed(clone: Clone) -> None:
    change(clone, lambda: None, [])


def test_image_bytes(clone: Clone) -> None:
    raw = clone.root / "data/raw"
    runs = ["captions", "buckets", "latents", "train", "sample", "export"]
    samples = change(clone, lambda: flat_picture(raw / "fox.png"), runs, latents=1)
    assert [(sample["name"], list(sample["changes"])) for sample in samples] == [("fox.png", ["pixels"])]


def test_metadata_of_a_picture(clone: Clone) -> None:
    """Another file, the same pixels: nothing is encoded; the index names the file, so training runs again."""
    path = clone.root / "data/raw/fox.png"

    def edit() -> None:
        note = PngImagePlugin.PngInfo()
        note.add_text("Comment", "a remark")
        with Image.open(path) as image:
            image.save(path, pnginfo=note)

    change(clone, edit, ["captions", "buckets", "latents", "train", "sample", "export"], latents=0)


def test_one_caption(clone: Clone) -> None:
    path = clone.root / "data/raw/fox.txt"

    def edit() -> None:
        path.write_text(NEW_TEXT)

    before = path.read_text().strip()
    samples = change(clone, edit, ["captions", *AFTER_TEXT], text=1)
    assert [(sample["name"], sample["changes"]) for sample in samples] == [(NEW_TEXT, {"text": [before, NEW_TEXT]})]


def test_the_first_caption_again(clone: Clone) -> None:
    """Back to an earlier state: nothing runs, nor does it when the edit is made once more."""
    path = clone.root / "data/raw/fox.txt"
    clone.run("git", "checkout", "-q", "data/raw/fox.txt")
    change(clone, lambda: None, [])
    change(clone, lambda: path.write_text(NEW_TEXT), [])


def test_image_added(clone: Clone) -> None:
    raw = clone.root / "data/raw"

    def add() -> None:
        Image.new("RGB", (160, 160), (10, 90, 200)).save(raw / "blue.png")
        (raw / "blue.txt").write_text("a plain blue field")

    samples = change(clone, add, [name for name in ALL if name != "check"], latents=1, text=1)
    reasons = {sample["name"]: sample["reason"] for sample in samples}
    assert reasons == {"blue.png": "new picture", "eridraw, a plain blue field": "new text"}


def test_the_same_picture_twice(clone: Clone) -> None:
    """A copy under another name has its own place in the data set and shares the entry; then it goes again."""
    raw = clone.root / "data/raw"

    def copy() -> None:
        (raw / "blue too.png").write_bytes((raw / "blue.png").read_bytes())
        (raw / "blue too.txt").write_bytes((raw / "blue.txt").read_bytes())

    change(clone, copy, [name for name in ALL if name != "check"], latents=0, text=0)
    for name in ("blue too.png", "blue too.txt"):
        (raw / name).unlink()
    change(clone, lambda: None, [])


def test_same_picture_under_another_name(clone: Clone) -> None:
    raw = clone.root / "data/raw"

    def rename() -> None:
        (raw / "blue.png").rename(raw / "sea.png")
        (raw / "blue.txt").rename(raw / "sea.txt")

    change(clone, rename, [name for name in ALL if name != "check"], latents=0, text=0)


def test_image_removed(clone: Clone) -> None:
    """lemon.png goes, sea.png stays: NUM_PICTURES again, one caption more than at first."""

    def remove() -> None:
        (clone.root / "data/raw/lemon.png").unlink()

    change(clone, remove, [name for name in ALL if name != "check"], latents=0, text=0)


def test_crop_rule(clone: Clone) -> None:
    """Only pictures that lose rows at the bottom get another crop: the latents of the others stay."""
    before = clone.repro()
    assert before.stages == []
    clone.params({"buckets.crop": "top"})
    predicted = clone.why()["stages"]["latents"]
    assert 0 < predicted["encoded"] < NUM_PICTURES
    runs = ["check", "buckets", "latents", "train", "sample", "export"]
    samples = change(clone, lambda: None, runs, latents=predicted["encoded"])
    assert parts(samples) == {"crop"}
    for before, now in (sample["changes"]["crop"] for sample in samples):
        assert before["bucket"] == now["bucket"] and before["resize"] == now["resize"]
        assert before["at"][1] > now["at"][1] == 0


def test_resolution(clone: Clone) -> None:
    runs = ["check", "buckets", "latents", "train", "sample", "export"]
    edit = {"buckets.resolution": 96}
    clone.params(edit)
    samples = change(clone, lambda: None, runs, latents=clone.why()["stages"]["latents"]["encoded"])
    assert parts(samples) == {"crop"}
    assert len(samples) == NUM_PICTURES


def test_vae_dtype(clone: Clone) -> None:
    runs = ["check", "latents", "train", "sample", "export"]
    samples = change(clone, lambda: clone.params({"latents.dtype": "bf16"}), runs, latents=NUM_PICTURES)
    assert all(sample["changes"] == {"params.dtype": ["fp32", "bf16"]} for sample in samples)
    assert {sample["reason"] for sample in samples} == {"latents.dtype 'fp32' -> 'bf16'"}


def test_going_back_to_the_first_vae_dtype(clone: Clone) -> None:
    """The run-cache gives every stage back: none runs."""
    change(clone, lambda: clone.params({"latents.dtype": "fp32"}), [])


def shift_weights(clone: Clone, component: str) -> None:
    """Other weights of one component, and new pointers: another base under the same name."""
    from eridiff.formats.safetensors import TensorFile, raw_tensor, write_tensors

    folder = clone.root / "data/bases/tiny-sdxl"
    path = next((folder / component).glob("*.safetensors"))
    file = TensorFile(path)
    tensors = {name: file.raw(name) for name in file.names}
    name = max(tensors, key=lambda name: len(tensors[name].data))
    tensors[name] = raw_tensor(tensors[name].torch() * 1.01)
    write_tensors(path, tensors, file.metadata)
    clone.run("python", "-m", "eridiff", "base", "add", "tiny-sdxl", "data/bases/tiny-sdxl")


def test_vae(clone: Clone) -> None:
    runs = ["check", "latents", "train", "sample", "export"]
    samples = change(clone, lambda: shift_weights(clone, "vae"), runs, latents=NUM_PICTURES)
    assert parts(samples) == {"vae.content"}


def test_text_encoder(clone: Clone) -> None:
    samples = change(clone, lambda: shift_weights(clone, "text_encoder"), ["check", *AFTER_TEXT], text=NUM_TEXTS + 1)
    assert parts(samples) == {"encoders.text_encoder.content"}


def test_tokenizer(clone: Clone) -> None:
    """Another file of a tokenizer, new pointers: every caption."""
    folder = clone.root / "data/bases/tiny-sdxl"

    def edit() -> None:
        path = folder / "tokenizer" / "tokenizer_config.json"
        path.write_text(path.read_text() + "\n")
        clone.run("python", "-m", "eridiff", "base", "add", "tiny-sdxl", str(folder))

    samples = change(clone, edit, ["check", *AFTER_TEXT], text=NUM_TEXTS + 1)
    assert parts(samples) == {"encoders.tokenizer.content"}


def test_denoiser(clone: Clone) -> None:
    change(clone, lambda: shift_weights(clone, "unet"), ["check", "train", "sample", "export"])


def test_licence_of_the_base(clone: Clone) -> None:
    """It binds what is exported and changes no number: neither training nor samples start."""
    path = clone.root / "data/bases/tiny-sdxl/license.json"
    text = '{"licenses": [{"name": "MIT", "notices": ["By me."]}]}'
    change(clone, lambda: path.write_text(text), ["check", "export"])
    assert "> By me.\n" in (clone.root / "data/export/README.md").read_text()


def test_caption_rule(clone: Clone) -> None:
    """Without the rule that drops file names only the captions that hold one change."""
    rules = ["html_entities", "html_tags", "unicode", "other_scripts", "whitespace", "underscores", "duplicate_tags"]
    clone.params({"captions.rules": [*rules, "punctuation"]})
    predicted = clone.why()["stages"]["text"]
    assert 0 < predicted["encoded"] < 8
    change(clone, lambda: None, ["check", "captions", *AFTER_TEXT], text=predicted["encoded"])


def test_caption_rule_that_changes_no_caption(clone: Clone) -> None:
    """keep_tokens without shuffling: captions runs, and nothing after it."""
    change(clone, lambda: clone.params({"captions.keep_tokens": 2}), ["check", "captions"])


def test_learning_rate(clone: Clone) -> None:
    edit = {"train.optimizer.lr": 5e-4}
    change(clone, lambda: clone.params(edit), ["check", "train", "sample", "export"])


def test_more_steps_go_on_from_the_kept_state(clone: Clone) -> None:
    clone.params({"train.steps": 6})
    predicted = clone.why()
    ran = clone.repro()
    assert set(ran.stages) == {"check", "train", "sample", "export"}
    assert {n for n, plan in predicted["stages"].items() if plan["state"] in ("runs", "may run")} == set(ran.stages)
    assert "train: resuming after step 4 of 6" in ran.output


def test_sample_prompts(clone: Clone) -> None:
    edit = {"sample.prompts": [{"prompt": "[trigger], a boat"}]}
    change(clone, lambda: clone.params(edit), ["check", "sample"])
    change(clone, lambda: clone.params({"sample.scheduler": "ddim"}), ["check", "sample"])
    clone.params({"train.ema_decay": 0.9})
    clone.repro()
    change(clone, lambda: clone.params({"sample.ema": True}), ["check", "sample", "export"])


def test_export_title(clone: Clone) -> None:
    change(clone, lambda: clone.params({"export.title": "another"}), ["check", "export"])
    change(clone, lambda: clone.params({"export.dtype": "fp32"}), ["check", "export"])
    change(clone, lambda: clone.params({"export.checkpoint": 4}), ["check", "export"])


def test_edited_code(clone: Clone) -> None:
    """Code of this family, another's, the core's: DVC does not look at it, and `why` says that git does."""
    files = ["eridiff/families/flux/family.py", "eridiff/families/sdxl/keys.py", "eridiff/training/train.py"]
    for name in files:
        (clone.root / name).write_text((clone.root / name).read_text() + "\n# a remark\n")
    predicted = clone.why()
    assert {plan["state"] for plan in predicted["stages"].values()} == {"-"}
    (note,) = predicted["notes"]
    assert note.startswith(f"{files[0]} and 2 more differ from git's HEAD, and DVC does not look at code")
    assert clone.repro().stages == []
    clone.run("git", "checkout", "-q", *files)
    change(clone, lambda: None, [])


def test_a_raised_version(clone: Clone) -> None:
    """Of this family's export: its stage alone. Of another family: nothing."""

    def raise_export(family: str) -> None:
        path = clone.root / "eridiff/families" / family / "versions.yaml"
        said = "changes: [{version: family.export, number: 2, sentence: The title stands twice in every file.}]"
        path.write_text(path.read_text().replace("export: 1", "export: 2").replace("changes: []", said))
        clone.commit()

    change(clone, lambda: raise_export("flux"), [])
    change(clone, lambda: raise_export("sdxl"), ["export"])


def test_settings_of_the_machine(clone: Clone) -> None:
    """Device, previews, memory levers and where models lie: no stage is started."""
    elsewhere = clone.root.parent / "elsewhere"
    elsewhere.mkdir()
    folder = clone.root / "data/bases/tiny-sdxl"
    for component in ("vae", "unet"):
        (folder / component).rename(elsewhere / component)
    for component in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"):
        clone.run("cp", "-r", str(folder / component), str(elsewhere))
    text = f"device: cpu\npreview_every: 2\nactivation_checkpointing: full\nbases:\n  tiny-sdxl: {elsewhere}\n"
    (clone.root / "local.yaml").write_text(text)
    predicted = clone.why()
    assert {plan["state"] for plan in predicted["stages"].values()} == {"-"}
    assert clone.repro().stages == []


def test_json_is_json(clone: Clone) -> None:
    assert json.dumps(clone.why())
