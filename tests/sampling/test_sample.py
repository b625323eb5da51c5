"""Samples: columns planned, pictures with and without the LoRA compared, a labelled grid; previews change nothing."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eridiff.core.config import validate
from eridiff.core.errors import ConfigError, DataError
from eridiff.family import load_family
from eridiff.machine.local import LocalConfig
from eridiff.models.lora import add_adapter, save_checkpoint, target_modules
from eridiff.params.model import ModelParams
from eridiff.params.sample import DrawParams, Prompt, SampleParams, check_measures, fill_trigger
from eridiff.params.train import LoraParams
from eridiff.sampling.draw import draw, embed_prompts
from eridiff.sampling.previews import prepare_previews
from eridiff.sampling.sample import (
    Column,
    GridRow,
    SampleJob,
    draw_grid,
    draw_samples,
    load_drawing,
    measure,
    plan_columns,
    plan_rows,
    write_metrics,
    write_samples,
)
from eridiff.training.train import train
from tests.support import training
from tests.support.bases import FAMILIES, draw_whole, pipeline, source
from tests.support.checkouts import SMALL, make_checkout

FAMILY = FAMILIES[0]
TOKENS = load_family(FAMILY).MAX_TOKENS[-1]


def job_of(chosen: SampleParams) -> SampleJob:
    return SampleJob(params=chosen, family=load_family(FAMILY), source=source(FAMILY), device=training.CPU)


def params(**changes: Any) -> SampleParams:
    plain = {"prompts": [{"prompt": "[trigger], a fox"}, {"prompt": "a teapot"}], "steps": 1, "size": [64, 32]}
    given = {**plain, "precision": "fp32", "max_tokens": TOKENS, **changes}
    return validate(SampleParams, given, where="params.yaml", prefix="sample")


def checkpoint(folder: Path, step: int, shake: float, kind: str = "step") -> Path:
    """A checkpoint of the small base; shake 0: lora_B is zero, so the LoRA does nothing."""
    module = load_family(FAMILY)
    denoiser = training.copy.deepcopy(training.base_denoiser(FAMILY))
    chosen = LoraParams(rank=2, alpha=2.0)
    adapters = add_adapter(denoiser, chosen, target_modules(denoiser, module.TARGET_SETS, "attention", []), seed=0)
    generator = torch.Generator().manual_seed(0)
    for tensor in adapters.values() if shake else ():
        tensor.data += shake * torch.randn(tensor.shape, generator=generator)
    path = folder / f"{kind}-{step:06d}.safetensors"
    save_checkpoint(path, adapters, prefix=module.DENOISER, params=chosen, lineage={"trigger": "eridraw"})
    return path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    checkpoint(folder, 30, 0.0)
    checkpoint(folder, 60, 0.3)
    return folder


def test_columns(checkpoints: Path) -> None:
    last, early = checkpoints / "step-000060.safetensors", checkpoints / "step-000030.safetensors"
    assert plan_columns(checkpoints, params(checkpoints=["last", 30], strengths=[0.5, 1.0])) == [
        Column("base", None, 0.0, "base"),
        Column("step 60 x 0.5", last, 0.5, "last x 0.5"),
        Column("step 60 x 1", last, 1.0, "last x 1"),
        Column("step 30 x 0.5", early, 0.5, "step 30 x 0.5"),
        Column("step 30 x 1", early, 1.0, "step 30 x 1"),
    ]


def test_the_same_checkpoint_twice_is_one_column(checkpoints: Path) -> None:
    columns = plan_columns(checkpoints, params(checkpoints=["last", 60], strengths=[1.0, 1]))
    assert [(column.label, column.name) for column in columns] == [("base", "base"), ("step 60 x 1", "last x 1")]


def test_checkpoints_that_are_not_there(checkpoints: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sample\.checkpoints names step 45, which was not kept\. Kept: 30, 60\."):
        plan_columns(checkpoints, params(checkpoints=[45]))
    with pytest.raises(ConfigError, match=r"holds no moving average: set train\.ema_decay"):
        plan_columns(checkpoints, params(ema=True))
    with pytest.raises(ConfigError, match="holds no checkpoint: run `dvc repro`"):
        plan_columns(tmp_path, params())


def test_the_trigger() -> None:
    prompts = (Prompt(prompt="[trigger], x [trigger]", negative="n"), Prompt(prompt="y"))
    assert fill_trigger(prompts, "eri", "") == (Prompt(prompt="eri, x eri", negative="n"), Prompt(prompt="y"))
    with pytest.raises(ConfigError, match=r"params has '\[trigger\]' in a prompt, but captions\.trigger is null"):
        fill_trigger(prompts, None, "params")
    assert fill_trigger(prompts[1:], None, "") == prompts[1:]


COLUMNS = [
    Column("base", None, 0.0, "base"),
    Column("step 5 x 0.5", Path("5"), 0.5, "last x 0.5"),
    Column("step 5 x 1", Path("5"), 1.0, "last x 1"),
]
ROWS = [GridRow(Prompt(prompt="one"), 0), GridRow(Prompt(prompt="two"), 7)]


def plain_images() -> dict[tuple[int, int], Image.Image]:
    """(column, row) -> one grey: the first column 100 and 50, the second moved by 51 and 0, the third by 255 - ..."""
    greys = {(0, 0): 100, (0, 1): 50, (1, 0): 151, (1, 1): 50, (2, 0): 49, (2, 1): 152}
    return {place: Image.new("RGB", (40, 30), (grey,) * 3) for place, grey in greys.items()}


def test_moves_and_files(tmp_path: Path) -> None:
    values = measure(plain_images(), {}, COLUMNS, params(), ROWS, [])
    expected = {"last x 0.5": pytest.approx(51 / 255 / 2), "last x 1": pytest.approx((51 + 102) / 255 / 2)}
    assert values == {"moved_from_base": expected}
    write_metrics(values, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == values
    without = {(1, 1): Image.new("RGB", (40, 30), "red")}
    write_samples(plain_images(), COLUMNS, ROWS, tmp_path, without)
    names = [f"{row:02d}-{label}.png" for row in (0, 1) for label in ("base", "step-5-x0.5", "step-5-x1")]
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == sorted(
        [*names, "01-step-5-x0.5-without.png"]
    )
    with Image.open(tmp_path / "images" / "01-step-5-x1.png") as image:
        assert (image.size, image.getpixel((3, 3)), image.info) == ((40, 30), (152, 152, 152), {})
    with Image.open(tmp_path / "images" / "01-step-5-x0.5-without.png") as image:
        assert image.getpixel((3, 3)) == (255, 0, 0)
    first = {path.name: path.read_bytes() for path in tmp_path.rglob("*.png")}
    write_samples(plain_images(), COLUMNS, ROWS, tmp_path / "again", without)
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").rglob("*.png")} == first


def test_the_grid() -> None:
    """Every picture whole at its place; black letters in the label lines and nowhere in the gaps below."""
    images = plain_images()
    grid = np.asarray(draw_grid(images, COLUMNS, ROWS))
    line, gap = 16, 4
    assert grid.shape == (line + 2 * (30 + line + gap), 3 * (40 + gap), 3)
    for (column, row), image in images.items():
        top, left = line + row * (30 + line + gap) + line, column * (40 + gap)
        assert np.array_equal(grid[top : top + 30, left : left + 40], np.asarray(image))
    assert (grid[:line] < 128).any(), "no labels of columns"
    for row in range(2):
        top = line + row * (30 + line + gap)
        assert (grid[top : top + line] < 128).any(), "no prompt above a row"


@pytest.fixture(scope="module")
def drawn(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("samples")
    chosen = params(checkpoints=[30, 60], strengths=[0.5, 1.0], seeds=[0, 1])
    draw_samples(job_of(chosen), checkpoints, out)
    return out


@pytest.mark.slow
def test_a_lora_that_does_nothing_moves_nothing(drawn: Path) -> None:
    moved = json.loads((drawn / "metrics.json").read_text())["moved_from_base"]
    assert list(moved) == ["step 30 x 0.5", "step 30 x 1", "step 60 x 0.5", "step 60 x 1"]
    assert moved["step 30 x 0.5"] == moved["step 30 x 1"] == 0.0
    assert 0 < moved["step 60 x 0.5"] < moved["step 60 x 1"]


@pytest.mark.slow
def test_pictures_are_the_pipelines(drawn: Path) -> None:
    """Each row is drawn from its own seed and prompt, the trigger filled in; the base is the base."""
    assert len(list((drawn / "images").iterdir())) == 4 * 5
    pipe, given = pipeline(FAMILY), params()
    for row, (prompt, seed) in enumerate((p, s) for p in ("eridraw, a fox", "a teapot") for s in (0, 1)):
        expected = draw_whole(pipe, load_family(FAMILY), given, prompt, seed)
        with Image.open(drawn / "images" / f"{row:02d}-base.png") as image:
            assert image.size == (64, 32)
            assert np.array_equal(np.asarray(image), np.asarray(expected))


TWO = [{"prompt": "[trigger], a fox", "group": "one"}, {"prompt": "a teapot by [trigger]"}, {"prompt": "a cat"}]


def test_rows_that_are_measured() -> None:
    rows = plan_rows(params(prompts=TWO, seeds=[3, 4], measures=True), "eri")
    assert [(row.prompt.prompt, row.seed, row.plain and row.plain.prompt) for row in rows] == [
        ("eri, a fox", 3, "a fox"),
        ("eri, a fox", 4, "a fox"),
        ("a teapot by eri", 3, "a teapot by"),
        ("a teapot by eri", 4, "a teapot by"),
        ("a cat", 3, None),
        ("a cat", 4, None),
    ]
    assert [row.prompt.group for row in rows] == ["one", "one", "all", "all", "all", "all"]
    assert {row.plain for row in plan_rows(params(prompts=TWO), "eri")} == {None}


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (["[trigger], a fox", "a cat"], "has 1 different prompts with '[trigger]'"),
        (["a fox", "a cat"], "has 0 different prompts with '[trigger]'"),
        (["[trigger], a fox", "a fox, [trigger]"], "has 1 different prompts with '[trigger]'"),
        (["[trigger]", "[trigger], a fox", "[trigger], a cat"], "a prompt of sample.prompts is '[trigger]' alone"),
    ],
)
def test_what_cannot_be_measured(prompts: list[str], words: str) -> None:
    given = [{"prompt": prompt} for prompt in prompts]
    with pytest.raises(ConfigError) as caught:
        check_measures(params(prompts=given, measures=True))
    assert words in str(caught.value)
    check_measures(params(prompts=given))


@pytest.mark.slow
def test_measured_samples(checkpoints: Path, tmp_path: Path) -> None:
    """Both pictures of each measured row are the pipeline's; the column that does nothing has the base's figures."""
    chosen = params(prompts=TWO, checkpoints=[30, 60], measures=True)
    concept = [np.random.default_rng(0).random((128, 128, 3), dtype=np.float32)]
    draw_samples(job_of(chosen), checkpoints, tmp_path, concept)
    columns = ("base", "step-30-x1", "step-60-x1")
    expected = [f"0{row}-{column}.png" for row in (0, 1, 2) for column in columns]
    expected += [f"0{row}-{column}-without.png" for row in (0, 1) for column in columns]
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == sorted(expected)
    pictures = {path.name: np.asarray(Image.open(path)) for path in (tmp_path / "images").iterdir()}
    for name, prompt in (("00-base", "eridraw, a fox"), ("00-base-without", "a fox"), ("02-base", "a cat")):
        drawn = draw_whole(pipeline(FAMILY), load_family(FAMILY), chosen, prompt, 0)
        assert np.array_equal(pictures[f"{name}.png"], np.asarray(drawn))
    assert np.array_equal(pictures["01-base-without.png"], pictures["01-step-30-x1-without.png"])
    assert not np.array_equal(pictures["01-base-without.png"], pictures["01-step-60-x1-without.png"])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics) == {"moved_from_base", "concept_distance", "fall", "subject_kept", "leakage"}
    for group in ("one", "all"):
        found = metrics["concept_distance"][group]
        assert set(found) == {"base", "colour_filter", "step 30 x 1", "step 60 x 1"}
        assert found["base"] == found["step 30 x 1"] != found["step 60 x 1"]
        assert found["colour_filter"] <= found["base"]
        assert metrics["fall"][group]["step 30 x 1"] == 0
        assert metrics["fall"][group]["step 60 x 1"] == pytest.approx(
            1 - found["step 60 x 1"] / found["base"], abs=0.01
        )
        assert metrics["subject_kept"][group]["base"] == metrics["subject_kept"][group]["step 30 x 1"]
    without, told = (
        sum(
            np.abs(pictures[f"0{row}-base{end}.png"] / 255.0 - pictures[f"0{row}-step-60-x1{end}.png"] / 255.0).mean()
            for row in (0, 1)
        )
        for end in ("-without", "")
    )
    assert metrics["leakage"] == {"step 30 x 1": None, "step 60 x 1": pytest.approx(without / told, abs=1e-4)}
    assert len(str(metrics["leakage"]["step 60 x 1"])) <= 6, "four digits"


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("negative", [None, "blurry"])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_draw_equals_the_pipelines_own_picture(family: str, negative: str | None, scale: float) -> None:
    """Embeddings made before, with the text encoders gone: the same picture as by the whole pipeline."""
    module = load_family(family)
    if negative and not module.NEGATIVE:
        pytest.skip("takes no negative prompt")
    chosen = params(max_tokens=module.MAX_TOKENS[-1], guidance_scale=scale)
    prompt = Prompt(prompt="a fox", negative=negative)
    given = {"negative_prompt": negative} if negative else {}
    theirs = draw_whole(pipeline(family), module, chosen, "a fox", 3, **given)
    embeds = embed_prompts(module, source(family), chosen, [prompt], training.CPU)
    ours = draw(load_drawing(chosen, module, source(family), training.CPU), chosen, prompt, embeds[prompt], seed=3)
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_numbers_that_are_not_finite_are_refused() -> None:
    class Broken:
        def __init__(self) -> None:
            self.components: dict[str, Any] = {}

        def __call__(self, **_: Any) -> Any:
            return type("Answer", (), {"images": np.full((1, 32, 64, 3), np.nan, dtype=np.float32)})

    for precision, others in (("bf16", "fp32 may do"), ("fp16", "take bf16 or fp32"), ("fp32", "take another base")):
        with pytest.raises(DataError, match=rf"not finite for 'a fox'\. .*precision is {precision}.*{others}"):
            draw(Broken(), DrawParams(precision=precision), Prompt(prompt="a fox"), {}, 0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_half_precision_draws_nearly_the_same(family: str) -> None:
    """Each phase, by text encoders, denoiser and VAE in the format that is asked for."""
    module, prompt, drawn = load_family(family), Prompt(prompt="a fox"), {}
    for precision in ("fp32", "bf16", "fp16"):
        chosen = params(max_tokens=module.MAX_TOKENS[-1], precision=precision)
        embeds = embed_prompts(module, source(family), chosen, [prompt], training.CPU)
        image = draw(load_drawing(chosen, module, source(family), training.CPU), chosen, prompt, embeds[prompt], seed=3)
        drawn[precision] = np.asarray(image, dtype=np.float64)
    errors = {name: np.abs(drawn[name] - drawn["fp32"]).mean() for name in ("bf16", "fp16")}
    assert 0 < errors["fp16"] < min(errors["bf16"], 4)


def test_previews_are_drawn_and_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same training with and without previews: the same adapters, table and next random number."""
    folder = make_checkout(tmp_path / "checkout", monkeypatch)
    (folder / "data" / "bases" / f"tiny-{FAMILY}").symlink_to(SMALL / "bases" / f"tiny-{FAMILY}")
    model = ModelParams(family=FAMILY, base=f"tiny-{FAMILY}")
    local = LocalConfig(preview_every=2, preview_prompts=("a fox", "a teapot"), preview_steps=1)
    chosen = training.params_of({"steps": 3, "caption_dropout": 0.5})
    data = training.random_set(FAMILY, tmp_path, chosen)
    found = []
    for config in (LocalConfig(), local):
        torch.manual_seed(1)
        run = training.start(FAMILY, chosen)
        previews = prepare_previews(config, model, "fp32", (64, 32), training.CPU)
        assert (previews is None) == (config.preview_every == 0)
        preview = partial(previews.draw, run.denoiser) if previews else None
        table, _ = train(run, data, tmp_path / f"state-{config.preview_every}", 9, preview)
        found.append((table, run.adapters, torch.rand(())))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(tensor, found[1][1][name]) for name, tensor in found[0][1].items())
    assert found[0][2] == found[1][2]
    drawn = sorted((folder / "runs" / "previews").iterdir())
    assert [path.name for path in drawn] == ["step-000002-0.png", "step-000002-1.png"]
    with Image.open(drawn[0]) as one, Image.open(drawn[1]) as two:
        assert one.size == (64, 32)
        assert one.tobytes() != two.tobytes()
