"""What a component's folder is: a digest over tensors under canonical names, whatever files hold them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from eridiff.bases.pointer_files import read_pointer
from eridiff.core.errors import BaseError
from eridiff.family import load_family, load_keys
from eridiff.formats.safetensors import raw_tensors, write_tensors
from eridiff.machine.filedigests import FileDigests
from eridiff.weights.components import describe_folder, weights_suffix
from eridiff.weights.pointers import Pointer, pointer_text
from tests.support.bases import FAMILIES
from tests.support.checkouts import SMALL
from tests.support.tensors import load_tensors

BASE = f"tiny-{FAMILIES[0]}"


def component(folder: Path, canonical: Any = lambda component, name: name, weights: str | None = None) -> Any:
    with FileDigests() as digests:
        return describe_folder(folder, canonical, digests, weights)


def weights_folder(folder: Path, files: dict[str, dict[str, torch.Tensor]], config: str = "{}") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config)
    for name, tensors in files.items():
        write_tensors(folder / name, raw_tensors(tensors), {"format": "pt"})
    return folder


TENSORS = {"a": torch.arange(4.0), "b": torch.arange(6).reshape(2, 3), "c": torch.ones(2).bfloat16()}


def test_the_digest_is_of_tensors_not_of_files(tmp_path: Path) -> None:
    whole = component(weights_folder(tmp_path / "1" / "m", {"model.safetensors": TENSORS}))
    shards = {"model-00001-of-00002.safetensors": {"b": TENSORS["b"]}}
    shards["model-00002-of-00002.safetensors"] = {"a": TENSORS["a"], "c": TENSORS["c"]}
    folder = weights_folder(tmp_path / "2" / "m", shards)
    (folder / "model.safetensors.index.json").write_text("{}")
    sharded = component(folder)
    assert sharded.digest == whole.digest
    assert sharded.identity() == whole.identity()
    assert set(sharded.files) == set(shards)
    others = [
        {**TENSORS, "a": TENSORS["a"] + 1},
        {**TENSORS, "a": TENSORS["a"].reshape(2, 2)},
        {**TENSORS, "a": TENSORS["a"].to(torch.int32)},
        {"a": TENSORS["a"], "b": TENSORS["b"], "d": TENSORS["c"]},
        {"a": TENSORS["a"], "b": TENSORS["b"]},
    ]
    digests = {
        component(weights_folder(tmp_path / f"o{n}" / "m", {"model.safetensors": o})).digest
        for n, o in enumerate(others)
    }
    assert len(digests | {whole.digest}) == 6


def test_variants_beside_the_weights_are_not_read(tmp_path: Path) -> None:
    """A folder of the hub often holds fp16 files beside those that are loaded."""
    half = {name: tensor.half() for name, tensor in TENSORS.items()}
    plain = component(weights_folder(tmp_path / "1" / "m", {"model.safetensors": TENSORS}))
    both = component(
        weights_folder(tmp_path / "2" / "m", {"model.safetensors": TENSORS, "model.fp16.safetensors": half})
    )
    assert both == plain
    chosen = component(tmp_path / "2" / "m", weights="fp16")
    only = component(weights_folder(tmp_path / "3" / "m", {"model.fp16.safetensors": half}))
    assert chosen == only != plain
    assert (only.variant, plain.variant, only.files.keys()) == ("fp16", None, {"model.fp16.safetensors"})
    weights_folder(tmp_path / "4" / "m", {"model.fp16.safetensors": half, "model.bf16.safetensors": half})
    with pytest.raises(
        BaseError, match=r"holds the weights bf16, fp16 and none without a suffix: choose with --weights"
    ):
        component(tmp_path / "4" / "m")


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("model.safetensors", None),
        ("model.fp16.safetensors", "fp16"),
        ("diffusion_pytorch_model.fp16.safetensors", "fp16"),
        ("model.fp16-00001-of-00002.safetensors", "fp16"),
        ("diffusion_pytorch_model-00002-of-00003.fp16.safetensors", "fp16"),
        ("diffusion_pytorch_model-00002-of-00003.safetensors", None),
        ("sd_xl_base_1.0.safetensors", None),
        ("sd3.5_large.safetensors", None),
    ],
)
def test_suffixes_by_name(name: str, suffix: str | None) -> None:
    assert weights_suffix(name) == suffix


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = weights_folder(tmp_path / "m", {})
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(BaseError, match=r"m holds pickled weights only; eridiff reads safetensors"):
        component(folder)


def test_files_of_a_tokenizer_count_and_hidden_ones_do_not(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.json").write_text("{}")
    plain = component(folder)
    (folder / ".DS_Store").write_text("x")
    assert component(folder) == plain
    (folder / "vocab.json").write_text('{"a": 1}')
    assert component(folder).digest != plain.digest
    assert plain.files == {"vocab.json": 2}


@pytest.mark.parametrize("family", FAMILIES)
def test_text_encoders_of_any_library_version_are_one(family: str, tmp_path: Path) -> None:
    """transformers 5 writes CLIP without the level `text_model.`, older versions with it; T5 under either tied name."""
    canonical = load_keys(family).canonical
    for name in load_family(family).PARTS["text"]:
        folder = SMALL / "bases" / f"tiny-{family}" / name
        if not (folder / "model.safetensors").exists():
            continue
        tensors = load_tensors(folder / "model.safetensors")
        if any("shared" in key or "embed_tokens" in key for key in tensors):
            renamed = {key.replace("shared.weight", "encoder.embed_tokens.weight"): t for key, t in tensors.items()}
            if renamed == tensors:
                renamed = {key.replace("encoder.embed_tokens.weight", "shared.weight"): t for key, t in tensors.items()}
        elif any(key.startswith("text_model.") for key in tensors):
            renamed = {key.removeprefix("text_model."): t for key, t in tensors.items()}
        else:
            renamed = {
                key if key.startswith("text_projection") else f"text_model.{key}": t for key, t in tensors.items()
            }
        assert set(renamed) != set(tensors)
        config = (folder / "config.json").read_text()
        other = weights_folder(tmp_path / family / name, {"model.safetensors": renamed}, config)
        assert component(other, canonical).digest == component(folder, canonical).digest


def test_pointer_text_is_sorted_and_whole() -> None:
    pointer = read_pointer(BASE, "text")
    text = pointer_text(pointer)
    assert json.loads(text)["family"] == FAMILIES[0]
    assert list(json.loads(text)["components"]) == sorted(pointer.components)
    reversed_ = Pointer(
        base=BASE, family=FAMILIES[0], part="text", components=dict(reversed(list(pointer.components.items())))
    )
    assert pointer_text(reversed_) == text == (SMALL / "bases" / BASE / "text.json").read_text()
