"""Keys hold everything that a value depends on, and nothing else: properties of the planning that the stages run."""

import tempfile
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from eridiff.caching.latents.plan import common_key_fields, plan_samples
from eridiff.caching.text import plan_captions
from eridiff.core.config import Section
from eridiff.core.files import canonical_json
from eridiff.dataset.buckets import plan_buckets
from eridiff.dataset.captions import captions_rows, images_rows
from eridiff.dataset.pictures import scan_pictures
from eridiff.family import load_family
from eridiff.machine.filedigests import FileDigests
from eridiff.params.buckets import BucketParams
from eridiff.params.captions import CaptionParams
from eridiff.params.latents import IN_NO_KEY, LatentParams
from eridiff.params.text import TextParams
from eridiff.store.pixels import PixelDigests
from tests.support.bases import FAMILIES, raised

FAMILY = load_family(FAMILIES[0])
DIGESTS = st.sampled_from(["a" * 64, "b" * 64])
IDENTITY = st.fixed_dictionaries({"content": DIGESTS, "config": DIGESTS})
NUMBERS = st.sampled_from([1, 2])
DRIFT_IDS = st.sampled_from(["", "0123456789abcdef", "fedcba9876543210"])


def values(annotation: Any) -> list[Any]:
    """A few values that a param may have, by its type."""
    if get_origin(annotation) is Annotated:
        return values(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if isinstance(annotation, UnionType) or get_origin(annotation) is Union:
        return [value for one in get_args(annotation) for value in values(one)]
    return {bool: [False, True], int: [64, 128], float: [1.0, 2.0], type(None): [None]}[annotation]


def params_of(model: type[Section], **fixed: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Any values of a section, drawn from its own types: a param that is added is drawn too."""
    fields = {name: st.sampled_from(values(field.annotation)) for name, field in model.model_fields.items()}
    return st.fixed_dictionaries({**fields, **{name: st.just(value) for name, value in fixed.items()}})


LATENT_INPUTS = st.fixed_dictionaries(
    {
        "pixels": DIGESTS,
        "row": st.fixed_dictionaries(
            {
                "bucket_w": st.sampled_from([64, 128]),
                "bucket_h": st.sampled_from([64, 128]),
                "resize_w": st.sampled_from([130, 131]),
                "resize_h": st.sampled_from([130, 131]),
                "crop_left": st.sampled_from([0, 1]),
                "crop_top": st.sampled_from([0, 1]),
            }
        ),
        "params": params_of(LatentParams, crops=1, crop_zoom=1.0, seed=0, flip=False),
        "vae": IDENTITY,
        "version": NUMBERS,
        "drift_id": DRIFT_IDS,
    }
)


def latent_key(inputs: dict[str, Any], path: str = "a.png", file_digest: str = "d" * 64) -> str:
    """The key of one crop, by the stage's own planning."""
    with tempfile.TemporaryDirectory() as folder:
        pixels = PixelDigests(Path(folder))
        pixels.known[file_digest] = inputs["pixels"]
        row = {"path": path, "file_digest": file_digest, "repeats": 1, "original_w": 260, "original_h": 260}
        samples = plan_samples(
            [row | inputs["row"]],
            LatentParams(**inputs["params"]),
            common_key_fields(LatentParams(**inputs["params"]), inputs["vae"], inputs["version"], inputs["drift_id"]),
            16,
            Path(folder),
            pixels,
        )
    assert len(samples) == 1
    return samples[0].key


def changed(inputs: dict[str, Any], other: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """inputs with one leaf of other."""
    name, *rest = path
    value = changed(inputs[name], other[name], tuple(rest)) if rest else other[name]
    return {**inputs, name: value}


def leaf_paths(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(value, dict):
        return [path]
    return [leaf for name, item in value.items() for leaf in leaf_paths(item, (*path, name))]


def leaf(value: Any, path: tuple[str, ...]) -> Any:
    return leaf(value[path[0]], path[1:]) if path else value


@pytest.mark.slow
@settings(max_examples=20, deadline=None, database=None)
@given(LATENT_INPUTS, LATENT_INPUTS)
def test_a_latents_key_changes_with_each_of_its_parts_and_with_nothing_else(
    inputs: dict[str, Any], other: dict[str, Any]
) -> None:
    key = latent_key(inputs)
    assert latent_key(inputs, "elsewhere/b.webp", "e" * 64) == key  # another file with these pixels
    for path in leaf_paths(inputs):
        differs = canonical_json(leaf(inputs, path)) != canonical_json(leaf(other, path))
        assert (latent_key(changed(inputs, other, path)) != key) == differs, path


@settings(max_examples=15, deadline=None, database=None)
@given(LATENT_INPUTS, st.booleans(), st.sampled_from([1, 3]), st.sampled_from([0, 1]))
def test_variants_add_keys_and_change_none(inputs: dict[str, Any], flip: bool, crops: int, seed: int) -> None:
    """flip, crops and seed decide which samples there are, not what one holds."""
    assert set(IN_NO_KEY) == {"flip", "crops", "crop_zoom", "seed"}
    more = changed(inputs, {"params": {**inputs["params"], "flip": flip, "crops": crops, "seed": seed}}, ("params",))
    with tempfile.TemporaryDirectory() as folder:
        pixels = PixelDigests(Path(folder))
        pixels.known["d" * 64] = inputs["pixels"]
        row = {"path": "a.png", "file_digest": "d" * 64, "repeats": 1, "original_w": 260, "original_h": 260}
        samples = plan_samples(
            [row | inputs["row"]],
            LatentParams(**more["params"]),
            common_key_fields(LatentParams(**inputs["params"]), inputs["vae"], inputs["version"], inputs["drift_id"]),
            16,
            Path(folder),
            pixels,
        )
    keys = [sample.key for sample in samples]
    assert len(set(keys)) == len(keys)
    assert latent_key(inputs) in keys
    assert len(keys) % (2 if flip else 1) == 0


TEXT_INPUTS = st.fixed_dictionaries(
    {
        "text": st.text(min_size=1, max_size=8),
        "params": params_of(TextParams, max_tokens=None),
        "encoders": st.fixed_dictionaries({"text_encoder": IDENTITY, "tokenizer": IDENTITY}),
        "drift_id": DRIFT_IDS,
    }
)


def text_keys(inputs: dict[str, Any], extra: tuple[str, ...] = ()) -> dict[str, str]:
    rows = [{"path": f"{number}.png", "variants": [text]} for number, text in enumerate((*extra, inputs["text"]))]
    captions = plan_captions(rows, TextParams(**inputs["params"]), FAMILY, inputs["encoders"], inputs["drift_id"])
    return {caption.text: caption.key for caption in captions}


@settings(max_examples=30, deadline=None, database=None)
@given(TEXT_INPUTS, TEXT_INPUTS, st.lists(st.text(max_size=4), max_size=4))
def test_a_texts_key_changes_with_each_of_its_parts_and_with_nothing_else(
    inputs: dict[str, Any], other: dict[str, Any], extra: list[str]
) -> None:
    keys = text_keys(inputs)
    key = keys[inputs["text"]]
    assert set(keys) == {"", inputs["text"]}
    assert text_keys(inputs, tuple(extra))[inputs["text"]] == key  # other captions, another place
    for path in leaf_paths(inputs):
        one = changed(inputs, other, path)
        assert (text_keys(one)[one["text"]] != key) == (leaf(inputs, path) != leaf(other, path)), path


def test_the_encode_numbers_are_in_the_keys(tmp_path: Path) -> None:
    inputs = {"text": "a fox", "params": {}, "encoders": {"text_encoder": {"content": "a", "config": "b"}}}
    inputs |= {"drift_id": ""}
    before = text_keys(inputs)["a fox"]
    versions = FAMILY.VERSIONS
    try:
        for name, moves in (("text_encode", True), ("vae_encode", False), ("train", False)):
            FAMILY.VERSIONS = versions
            FAMILY.VERSIONS = raised(FAMILY, name).VERSIONS
            assert (text_keys(inputs)["a fox"] != before) == moves, name
    finally:
        FAMILY.VERSIONS = versions
    assert text_keys(inputs)["a fox"] == before


NAMES = st.lists(
    st.tuples(st.sampled_from(["", "x/", "deep/er/"]), st.text("abcde", min_size=1, max_size=6)).map("".join),
    min_size=3,
    max_size=3,
    unique=True,
)
SIZES = ((70, 64), (64, 90), (96, 96))


def draw(path: Path, number: int, touched: bool, note: str) -> None:
    """A picture with no symmetry; touched: one channel of one pixel is another. note: metadata in the file."""
    width, height = SIZES[number]
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([columns * 2 + number, rows * 3, (columns * rows) // 5], axis=-1) % 256
    pixels[5, 7, 1] ^= 255 * touched
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", note)
    exif = Image.Exif()
    exif[0x010E] = note  # ImageDescription: no orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path, pnginfo=text, exif=exif, compress_level=len(note) % 10)


def keys_of_folder(
    names: list[str], touched: int | None, note: str, order: list[int]
) -> tuple[dict[int, set[str]], set[str]]:
    """Latent keys of three pictures and keys of their captions, written in an order, by all light stages in turn."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        for number in order:
            draw(raw / f"{names[number]}.png", number, number == touched, note)
            (raw / f"{names[number]}.txt").write_text(f"drawing number {number}, red, round")
        with FileDigests(Path(folder) / "digests") as digests:
            pictures, _ = scan_pictures(raw, digests)
        rows, left_out = plan_buckets(images_rows(pictures), BucketParams(resolution=64, step=32))
        assert left_out == []
        pixels = PixelDigests(Path(folder) / "store")
        identity = {"content": "c" * 64, "config": "f" * 64}
        params = LatentParams(flip=True, crops=2)
        samples = plan_samples(rows, params, common_key_fields(params, identity, 1), 16, raw, pixels)
        captions = captions_rows(pictures, CaptionParams(variants=2, shuffle_tags=True))
        texts = plan_captions(captions, TextParams(), FAMILY, {"text_encoder": identity})
        latents = {
            number: {sample.key for sample in samples if sample.path == f"{name}.png"}
            for number, name in enumerate(names)
        }
        return latents, {text.key for text in texts}


@settings(max_examples=10, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(NAMES, NAMES, st.text("mno ", max_size=9), st.permutations([0, 1, 2]), st.sampled_from([None, 0, 1, 2]))
def test_names_metadata_and_order_are_in_no_key_and_pixels_are(
    before: list[str], after: list[str], note: str, order: list[int], touched: int | None
) -> None:
    latents, texts = keys_of_folder(before, None, "", [0, 1, 2])
    now, texts_now = keys_of_folder(after, touched, note, order)
    assert texts_now == texts
    for number in range(3):
        assert len(latents[number]) >= 2
        assert (now[number] == latents[number]) == (number != touched)
        assert number != touched or not now[number] & latents[number]
