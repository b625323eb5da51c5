"""Two keys of the store, pinned: stores of users hold entries under them, so they never change by accident.

A param that is added later enters the parts only where it is not its default (docs/decisions.md).
"""

from pathlib import Path

import pytest

from eridiff.caching.latents.plan import common_key_fields, plan_samples
from eridiff.caching.text import plan_captions
from eridiff.family import load_family
from eridiff.params.latents import LatentParams
from eridiff.params.text import TextParams
from eridiff.store.entries import entry_key
from eridiff.store.pixels import PixelDigests
from eridiff.versions import code_versions
from tests.support.bases import FAMILIES

IDENTITY = {"content": "c" * 64, "config": "f" * 64}
ROW = {"path": "a.png", "file_digest": "d" * 64, "repeats": 1, "bucket_w": 128, "bucket_h": 96, "resize_w": 130}
ROW |= {"resize_h": 96, "crop_left": 1, "crop_top": 0, "original_w": 260, "original_h": 192}


def test_the_key_of_a_latent(tmp_path: Path) -> None:
    pixels = PixelDigests(tmp_path)
    pixels.learn({"d" * 64: "e" * 64})
    params = LatentParams(flip=True)
    samples = plan_samples([ROW], params, common_key_fields(params, IDENTITY, 1), 16, tmp_path, pixels)
    assert [sample.key for sample in samples] == LATENT_KEYS
    assert [entry_key(sample.key_fields) for sample in samples] == LATENT_KEYS  # as whoever reads an entry makes it


def test_the_key_of_a_text() -> None:
    family = load_family(FAMILIES[0])
    captions = plan_captions([{"variants": ["a fox"]}], TextParams(), family, {"text_encoder": IDENTITY})
    assert [caption.text for caption in captions] == ["", "a fox"]
    assert [caption.key for caption in captions] == TEXT_KEYS


LATENT_KEYS = [
    "5d277dea2a8106ff3c14a318a610caaad26cb29a7009819fee786e45aeb407c2",
    "c0531a833ca243bf88d49f849c121819c2f90d34e1c97bb5498312fa2a736ff5",
]
TEXT_KEYS = [
    "4d5a4b1556789d8927628025b3881c8362f0db8581b2ad825b4c682f77fb79d9",
    "44ee3fbb76ef572e9f0cfa287dbbf72d2b514270dc5677f7d77ebd2b02e67e14",
]


def test_pixels_are_in_the_key_only_when_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores of before stay; raised, every latent has another key, while a stage's own number is in none."""
    pixels = PixelDigests(tmp_path)
    pixels.learn({"d" * 64: "e" * 64})
    now = code_versions()
    stages = now.stages.model_copy(update={"latents": 9, "text": 9})
    monkeypatch.setattr("eridiff.versions.code_versions", lambda: now.model_copy(update={"stages": stages}))
    params = LatentParams(flip=True)
    samples = plan_samples([ROW], params, common_key_fields(params, IDENTITY, 1), 16, tmp_path, pixels)
    assert [sample.key for sample in samples] == LATENT_KEYS
    store = now.store.model_copy(update={"pixels": 2})
    monkeypatch.setattr("eridiff.versions.code_versions", lambda: now.model_copy(update={"store": store}))
    samples = plan_samples([ROW], params, common_key_fields(params, IDENTITY, 1), 16, tmp_path, pixels)
    assert not {sample.key for sample in samples} & set(LATENT_KEYS)
    assert [sample.key_fields["pixels_version"] for sample in samples] == [2, 2]
    assert [entry_key(sample.key_fields) for sample in samples] == [sample.key for sample in samples]
