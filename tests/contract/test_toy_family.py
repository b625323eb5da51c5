"""A fourth family is one new folder: tests/contract/families/toy goes through every stage, no line elsewhere."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import eridiff.families
from eridiff.bases.add import add_base
from eridiff.bases.find import find_source
from eridiff.bases.pointer_files import pointers_of
from eridiff.caching.fill import Resources
from eridiff.caching.latents.encode import cache_latents
from eridiff.caching.latents.plan import common_key_fields, plan_samples
from eridiff.caching.text import cache_texts, plan_captions
from eridiff.core.config import validate
from eridiff.core.files import digest_file
from eridiff.family import Family, Keys, Workflow, family_names, load_family, load_keys, load_workflow
from eridiff.models.load import find_class, load_text_encoders, load_vae, make_pipeline
from eridiff.models.lora import read_checkpoint
from eridiff.params.latents import LatentParams
from eridiff.params.sample import DrawParams, Prompt
from eridiff.params.text import TextParams
from eridiff.params.train import TrainParams
from eridiff.sampling.draw import draw, embed_prompts
from eridiff.store.pixels import PixelDigests
from eridiff.store.reader import Cache
from eridiff.training.checkpoint import make_lineage, put_out
from eridiff.training.data import TrainingSet, join_tables
from eridiff.training.run import Machine, prepare_run
from eridiff.training.train import train
from eridiff.weights.pointers import ModelSource
from tests.contract.test_protocol import assert_whole
from tests.support.checkouts import make_checkout

CPU = torch.device("cpu")
FOLDER = Path(__file__).parent / "families"
CONFIGS: dict[str, dict[str, Any]] = {
    "vae": {"scaling_factor": 0.5, "shift_factor": 0.1, "latent_channels": 4},
    "text_encoder": {"words": 64},
    "mixer": {"num_blocks": 2},
}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The toy family among the others: its folder's parent is one more place of the package eridiff.families."""
    monkeypatch.setattr(eridiff.families, "__path__", [*eridiff.families.__path__, str(FOLDER)])
    yield load_family("toy")
    for name in [name for name in sys.modules if name.startswith("eridiff.families.toy")]:
        del sys.modules[name]


def model_folder(toy: Any, folder: Path) -> Path:
    """A model folder in diffusers' layout."""
    torch.manual_seed(0)
    for name, config in CONFIGS.items():
        find_class(toy.MODELS[name]).from_config(config).save_pretrained(folder / name)
    for name, file in (("scheduler", "scheduler_config.json"), ("tokenizer", "words.txt")):
        (folder / name).mkdir()
        (folder / name / file).write_text("{}")
    (folder / "model_index.json").write_text('{"_class_name": "ToyPipeline"}')
    return folder


@pytest.fixture
def base(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSource:
    make_checkout(tmp_path / "checkout", monkeypatch)
    add_base("tiny-toy", [model_folder(toy, tmp_path / "models" / "toy")])
    pointers = pointers_of("tiny-toy", toy.PARTS, "toy")
    return find_source(pointers.values())


def test_it_is_found_by_its_folder(toy: Any) -> None:
    assert "toy" in family_names()
    assert set(family_names()) > {"toy"}


def test_it_is_whole(toy: Any) -> None:
    for protocol, module in ((Family, toy), (Keys, load_keys("toy")), (Workflow, load_workflow("toy"))):
        assert_whole(module, protocol)


def test_it_goes_through_every_stage(toy: Any, base: ModelSource, tmp_path: Path) -> None:
    buckets = [picture(tmp_path / "raw", number) for number in range(3)]
    captions = [{"path": row["path"], "clean": "a cat", "variants": [f"cat {n}"]} for n, row in enumerate(buckets)]

    latent_rows = cache_pictures(toy, base, buckets, tmp_path)
    text_rows = cache_captions(toy, base, captions, tmp_path)
    params = validate(
        TrainParams,
        {
            "steps": 2,
            "batch_size": 2,
            "precision": "fp32",
            "save_every": 1,
            "ema_decay": 0.5,
            "lora": {"rank": 2, "targets": "all-linear"},
        },
        where="test",
        prefix="train",
    )
    data = training_set(buckets, captions, latent_rows, text_rows, tmp_path)
    run = prepare_run(params, toy, base, base.config("vae"), Machine(device=CPU))
    assert set(run.adapters) == {
        f"blocks.{i}.{n}.lora_{half}.weight" for i in "01" for n in ("query", "key") for half in "AB"
    }
    table, _ = train(run, data, tmp_path / "state", 1)
    assert len(table["loss"]) == 2
    assert all(run.adapters[name].abs().max() > 0 for name in run.adapters)

    inputs = {"captions": tmp_path / "raw" / "0.png"}
    tables = {"captions": (captions, {"trigger": "x"}), "buckets": (buckets, {})}
    lineage = make_lineage("toy", base.pointers["denoiser"], params, inputs, tables)
    files = put_out(tmp_path / "state", params, toy, lineage, table, tmp_path / "lora")
    assert len(files) == 4
    tensors, lineage, _ = read_checkpoint(files[-1])
    assert {name.split(".")[0] for name in tensors} == {"mixer"}
    assert (lineage["family"], lineage["denoiser_config"]) == ("toy", {"num_blocks": 2})

    params_of_draw, prompt = DrawParams(steps=2, size=(32, 16), precision="fp32"), Prompt(prompt="a cat")
    embeds = embed_prompts(toy, base, params_of_draw, [prompt], CPU)
    pipeline = make_pipeline(toy, base, "euler", denoiser=run.denoiser)
    image = draw(pipeline, params_of_draw, prompt, embeds[prompt], seed=0)
    assert image.size == (32, 16)


def picture(folder: Path, number: int) -> dict[str, Any]:
    """A row of buckets.parquet, and its picture."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{number}.png"
    Image.effect_noise((64, 64), 50 + number).convert("RGB").save(path)
    sides = {f"{name}_{side}": 64 for name in ("bucket", "resize", "original") for side in "wh"}
    digest = digest_file(path)
    return {**sides, "path": path.name, "file_digest": digest, "crop_left": 0, "crop_top": 0, "repeats": 1}


def cache_pictures(toy: Any, base: ModelSource, rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    params, identity = LatentParams(batch_size=2), base.pointers["vae"].components["vae"].identity()
    pixels = PixelDigests(folder / "store")
    common = common_key_fields(params, identity, toy.VERSIONS.family.vae_encode)
    samples = plan_samples(rows, params, common, toy.SIDE_MULTIPLE, folder / "raw", pixels)
    resources = Resources(root=folder / "store", load=lambda: (load_vae(toy, base, torch.float32), CPU))
    index, counts = cache_latents(samples, params, folder / "raw", resources, folder / "latents")
    assert counts.encoded == 3
    return index


def cache_captions(toy: Any, base: ModelSource, rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    captions = plan_captions(rows, TextParams(), toy, base.pointers["text"].identity())
    resources = Resources(root=folder / "store", load=lambda: (load_text_encoders(toy, base, torch.float32), CPU))
    index, counts = cache_texts(captions, TextParams(), toy, resources, folder / "text")
    assert counts.encoded == 4  # the empty one too
    return index


def training_set(
    buckets: list[dict[str, Any]],
    captions: list[dict[str, Any]],
    latents: list[dict[str, Any]],
    texts: list[dict[str, Any]],
    folder: Path,
) -> TrainingSet:
    samples = join_tables(captions, buckets, latents)
    keys = {row["text"]: row["key"] for row in texts}
    return TrainingSet(samples, keys, Cache(folder / "latents"), Cache(folder / "text"), 0, 0.1)
