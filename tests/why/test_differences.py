"""Which part of a key differs, as it is said."""

from pathlib import Path
from typing import Any

import pytest

from eridiff.formats.safetensors import RawTensor
from eridiff.store.entries import entry_key
from eridiff.store.store import Store
from eridiff.why.differences import Entries, describe, differences

CROP = {"bucket": (192, 192), "resize": (192, 200), "at": (0, 4), "flip": False}
PARTS: dict[str, Any] = {
    "pixels": "a" * 64,
    "vae": {"content": "b" * 64, "config": "c" * 64},
    "params": {"dtype": "fp32", "tile": None},
    "version": 1,
    "crop": CROP,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"crop": {**CROP, "bucket": (256, 256), "at": (0, 0)}}, "crop (192, 192)@(0, 4) -> (256, 256)@(0, 0)"),
        (
            {"crop": {**CROP, "resize": (193, 200)}},
            "crop (192, 192)@(0, 4) of (192, 200) -> (192, 192)@(0, 4) of (193, 200)",
        ),
        ({"crop": {**CROP, "flip": True}}, "crop (192, 192)@(0, 4) -> (192, 192)@(0, 4) mirrored"),
        ({"pixels": "d" * 64}, "pixels aaaaaaaa -> dddddddd"),
        ({"vae": {"content": "e" * 64, "config": "c" * 64}}, "vae.content bbbbbbbb -> eeeeeeee"),
        ({"params": {"dtype": "bf16", "tile": None}}, "latents.dtype 'fp32' -> 'bf16'"),
        ({"params": {"dtype": "bf16", "tile": 512}}, "latents.dtype 'fp32' -> 'bf16', latents.tile (absent) -> 512"),
        ({"version": 2}, "version 1 -> 2"),
        ({"probe": "0123456789abcdef"}, "encoder drift none -> 0123456789abcdef"),
    ],
)
def test_each_part_is_named(change: dict[str, Any], words: str) -> None:
    found = differences(PARTS, {**PARTS, **change})
    assert describe(found, "latents") == words


def test_a_tuple_read_back_as_a_list_is_the_same() -> None:
    assert (
        differences(PARTS, {**PARTS, "crop": {**CROP, "at": [0, 4], "bucket": [192, 192], "resize": [192, 200]}}) == {}
    )


def test_a_caption_is_named_by_what_it_was() -> None:
    assert describe(differences({"text": "a fox"}, {"text": "an owl"}), "text") == "was 'a fox'"
    assert describe(differences({"text": "x" * 99}, {"text": "an owl"}), "text") == f"was '{'x' * 80}...'"


def test_the_most_alike_entry_of_the_same_picture(tmp_path: Path) -> None:
    store = Store(tmp_path, "latents")
    far = {**PARTS, "version": 3, "params": {"dtype": "fp16", "tile": 64}}
    near = {**PARTS, "version": 2}
    other = {**PARTS, "pixels": "f" * 64}
    for parts in (far, near, other):
        store.put(entry_key(parts), parts, {"mean": RawTensor("U8", (1,), b"1")})
    store.publish([entry_key(parts) for parts in (far, near)], tmp_path / "out")
    entries = Entries(Store(tmp_path, "latents").catalogue, "pixels")
    alike = entries.alike(PARTS)
    assert alike is not None and differences(alike, PARTS) == {"version": (2, 1)}
    assert entries.alike({**PARTS, "pixels": "9" * 64}) is None
    assert differences(entries.key_fields(entry_key(far)) or {}, far) == {}
    assert entries.key_fields("0" * 64) is None and entries.key_fields(None) is None
