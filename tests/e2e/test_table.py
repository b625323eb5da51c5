"""The table of what reruns when something changes, each row on the running pipeline, each predicted by `why`.

Rows run in order on one clone, each on the state that the row before left.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.e2e.harness import Clone, make_clone

pytestmark = pytest.mark.e2e

ALL = ["check", "captions", "buckets", "latents", "text", "train", "sample", "export"]
AFTER_TEXT = ["text", "train", "sample", "export"]
NUM_PICTURES = 20
NUM_TEXTS = 20  # two pictures have no caption and share one; the empty caption is always there


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    made = make_clone(tmp_path_factory.mktemp("table"), "clone")
    made.params({"captions.variants": 1, "captions.shuffle_tags": False, "train.optimizer.schedule": "constant"})
    return made


def change(clone: Clone, edit: Callable[[], None], runs: list[str], **encoded: int) -> None:
    """Edit, predict, run: the prediction, the run and the table must say the same."""
    edit()
    predicted = clone.why()
    ran = clone.repro()
    would_run = [name for name, plan in predicted["stages"].items() if plan["state"] == "runs"]
    assert set(ran.stages) == set(runs), ran.output
    assert set(would_run) == set(runs)
    counts = {name: predicted["stages"][name] for name in ran.encoded}
    assert {name: (plan["encoded"], plan["reused"]) for name, plan in counts.items()} == ran.encoded
    for name, (count, _) in ran.encoded.items():
        assert count == encoded.get(name, 0), ran.output
        assert len([s for s in predicted["samples"] if s["stage"] == name]) == count
    assert set(encoded) <= set(ran.encoded)
    restored = [name for name, plan in predicted["stages"].items() if plan["state"] == "restored"]
    assert set(restored) == set(ran.restored)


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


def test_nothing_changed(clone: Clone) -> None:
    change(clone, lambda: None, [])


def test_image_bytes(clone: Clone) -> None:
    raw = clone.root / "data/raw"
    runs = ["captions", "buckets", "latents", "train", "sample", "export"]
    change(clone, lambda: flat_picture(raw / "fox.png"), runs, latents=1)


def test_one_caption(clone: Clone) -> None:
    def edit() -> None:
        (clone.root / "data/raw/fox.txt").write_text("eridraw, a flat red field")

    change(clone, edit, ["captions", *AFTER_TEXT], text=1)


def test_image_added(clone: Clone) -> None:
    raw = clone.root / "data/raw"

    def add() -> None:
        Image.new("RGB", (160, 160), (10, 90, 200)).save(raw / "blue.png")
        (raw / "blue.txt").write_text("a plain blue field")

    change(clone, add, [name for name in ALL if name != "check"], latents=1, text=1)


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
    change(clone, lambda: None, runs, latents=predicted["encoded"])


def test_resolution(clone: Clone) -> None:
    runs = ["check", "buckets", "latents", "train", "sample", "export"]
    edit = {"buckets.resolution": 96}
    clone.params(edit)
    change(clone, lambda: None, runs, latents=clone.why()["stages"]["latents"]["encoded"])


def test_vae_dtype(clone: Clone) -> None:
    runs = ["check", "latents", "train", "sample", "export"]
    change(clone, lambda: clone.params({"latents.dtype": "bf16"}), runs, latents=NUM_PICTURES)


def test_going_back_to_the_first_vae_dtype(clone: Clone) -> None:
    """The run-cache gives every stage back: none runs."""
    change(clone, lambda: clone.params({"latents.dtype": "fp32"}), [])


def shift_weights(clone: Clone, component: str) -> None:
    """Other weights of one component, and new pointers: another base under the same name."""
    from eridiff.tensorfile import TensorFile, raw_tensor, write_tensors

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
    change(clone, lambda: shift_weights(clone, "vae"), runs, latents=NUM_PICTURES)


def test_text_encoder(clone: Clone) -> None:
    change(clone, lambda: shift_weights(clone, "text_encoder"), ["check", *AFTER_TEXT], text=NUM_TEXTS + 1)


def test_denoiser(clone: Clone) -> None:
    change(clone, lambda: shift_weights(clone, "unet"), ["check", "train", "sample", "export"])


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
    assert {n for n, plan in predicted["stages"].items() if plan["state"] == "runs"} == set(ran.stages)
    assert "train: resuming after step 4 of 6" in ran.output


def test_sample_prompts(clone: Clone) -> None:
    edit = {"sample.prompts": [{"prompt": "[trigger], a boat"}]}
    change(clone, lambda: clone.params(edit), ["check", "sample"])


def test_export_title(clone: Clone) -> None:
    change(clone, lambda: clone.params({"export.title": "another"}), ["check", "export"])


@pytest.mark.parametrize("name", ["keys.py", "workflow.py"])
def test_key_table_or_workflow_of_this_family(clone: Clone, name: str) -> None:
    def edit() -> None:
        path = clone.root / "eridiff/families/sdxl" / name
        path.write_text(path.read_text() + "\n# a remark\n")

    change(clone, edit, ["export"])


def test_another_familys_code(clone: Clone) -> None:
    for name in ("family.py", "keys.py", "workflow.py"):
        path = clone.root / "eridiff/families/flux" / name
        path.write_text(path.read_text() + "\n# a remark\n")
    change(clone, lambda: None, [])


def test_settings_of_the_machine(clone: Clone) -> None:
    """Device, previews, memory levers and where models lie: no stage is started."""
    elsewhere = clone.root.parent / "elsewhere"
    elsewhere.mkdir()
    folder = clone.root / "data/bases/tiny-sdxl"
    for component in ("vae", "unet"):
        (folder / component).rename(elsewhere / component)
    for component in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"):
        clone.run("cp", "-r", str(folder / component), str(elsewhere))
    text = f"device: cpu\npreview_every: 2\ngradient_checkpointing: true\nbases:\n  tiny-sdxl: {elsewhere}\n"
    (clone.root / "local.yaml").write_text(text)
    predicted = clone.why()
    assert {plan["state"] for plan in predicted["stages"].values()} == {"-"}
    assert clone.repro().stages == []


def test_json_is_json(clone: Clone) -> None:
    assert json.dumps(clone.why())
