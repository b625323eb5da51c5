"""A base that is not here: what needs no weights runs, what needs some says one sentence with the command."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from eridiff.bases.add import add_base
from eridiff.bases.listing import list_bases
from eridiff.bases.pointer_files import pointers_of, read_pointer
from eridiff.bases.wanted import has_pointers, how_to_add, is_awaited, want_base, wanted_family, write_wanted
from eridiff.check import check_params
from eridiff.cli import app
from eridiff.core.config import read_yaml
from eridiff.core.errors import BaseError
from eridiff.family import family_names, load_family, load_keys, published
from eridiff.machine.local import bases_dir
from eridiff.memory.plan import Card, Planner, plan_project
from eridiff.params.edit import filled
from eridiff.projects.new import settle_base
from eridiff.weights.components import NEUTRAL_CONFIG_KEYS
from eridiff.weights.pointers import PARTS
from stages import latents, sample, text, train
from tests.conftest import ROOT
from tests.support.checkouts import SMALL, make_checkout
from tests.support.originals import canonical_shapes

SENTENCE = (
    "base 'sdxl' is not here yet: add it with `eridiff base add sdxl SOURCE`, where SOURCE is a file of ComfyUI, a "
    "model folder, or stabilityai/stable-diffusion-xl-base-1.0, which is fetched from the hub (about 7 GB, licence: "
    "https://github.com/Stability-AI/generative-models/blob/main/model_licenses/LICENSE-SDXL1.0)."
)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_checkout(tmp_path / "checkout", monkeypatch)


@pytest.fixture
def project(checkout: Path) -> Path:
    """The checkout with the params of a real preset, whose base is not here."""
    shutil.copyfile(ROOT / "presets" / "sdxl-24gb.yaml", checkout / "params.yaml")
    assert settle_base(checkout / "params.yaml") == f"{SENTENCE} Captions, buckets and `eridiff plan` run without it"
    return checkout


def test_new_writes_wanted_pointers(project: Path) -> None:
    folder = project / "data" / "bases" / "sdxl"
    assert {path.name for path in folder.iterdir()} == {"vae.json", "text.json", "denoiser.json"}
    record = json.loads((folder / "denoiser.json").read_text())
    assert record == {
        "family": "sdxl",
        "format": 1,
        "part": "denoiser",
        "wanted": {
            "name": "sdxl",
            "hub": "stabilityai/stable-diffusion-xl-base-1.0",
            "gigabytes": 5.1,
            "license": "https://github.com/Stability-AI/generative-models/blob/main/model_licenses/LICENSE-SDXL1.0",
        },
    }
    assert is_awaited("sdxl") and not has_pointers("sdxl")
    assert list(list_bases())[-1] == f"sdxl: {SENTENCE}"


def test_check_warns(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_params(project / "params.yaml")
    out = capsys.readouterr()
    assert f"{SENTENCE} latents, text, train and sample wait for it; the rest runs." in out.out + out.err


@pytest.mark.parametrize("stage", [latents, text, train, sample])
def test_stages_that_need_weights_say_the_sentence(stage: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERIDIFF_DEVICE", "cpu")
    path = project / "params.yaml"
    path.write_text(filled(path.read_text(), {"model": {"family": "sdxl", "base": "sdxl", "allow_cpu": True}}))
    with pytest.raises(BaseError) as error:
        stage.main()
    assert str(error.value) == SENTENCE


def test_plan_has_the_shapes_that_the_makers_published(project: Path) -> None:
    source = Planner(project, Card(name="a card", memory=24 << 30, is_here=False)).source
    configs = published("sdxl").models["sdxl"]
    for component, config in configs.items():
        assert source.config(component) == {k: v for k, v in config.items() if k not in NEUTRAL_CONFIG_KEYS}


@pytest.mark.slow
def test_plan_runs_by_what_the_makers_published(project: Path) -> None:
    lines = list(plan_project(project, 24.0, write=False))
    assert [line.split()[0] for line in lines[2:]][:2] == ["latents", "text"]
    assert any(line.startswith("train ") and " fits" in line for line in lines)


@pytest.mark.parametrize("part", PARTS)
def test_adding_the_base_replaces_them(part: str, project: Path) -> None:
    with pytest.raises(BaseError):
        read_pointer("sdxl", part)
    add_base("sdxl", [SMALL / "bases" / "tiny-sdxl"])
    assert read_pointer("sdxl", part).components and has_pointers("sdxl") and not is_awaited("sdxl")
    assert write_wanted("sdxl", "sdxl") == []  # what is there stays
    assert settle_base(project / "params.yaml") == "base: sdxl"


def test_without_any_pointer_no_demo_base_is_suggested(checkout: Path) -> None:
    add_base("tiny-sdxl", [SMALL / "bases" / "tiny-sdxl"])
    with pytest.raises(BaseError) as error:
        pointers_of("sdxl", PARTS, "sdxl")
    assert str(error.value).startswith(f"{SENTENCE} `eridiff base want sdxl` lets all run meanwhile")
    assert "tiny" not in str(error.value)
    with pytest.raises(BaseError, match=r"base 'my-sdxl' has no pointer vae\.json\. Known: tiny-sdxl\."):
        pointers_of("my-sdxl", PARTS, "sdxl")
    with pytest.raises(BaseError, match=r"Did you mean 'tiny-sdxl'\?"):
        pointers_of("tiny-sdlx", PARTS, "sdxl")


def test_the_command(checkout: Path) -> None:
    done = CliRunner().invoke(app, ["base", "want", "flux-dev"], catch_exceptions=False)
    assert done.exit_code == 0 and done.output.count("written: ") == 3 and is_awaited("flux-dev")
    with pytest.raises(BaseError, match=r"'flux-de' is no published model\. Did you mean 'flux-dev'\?"):
        want_base("flux-de")


def told(name: str) -> list[str]:
    done = CliRunner().invoke(app, ["base", "want", name], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output.splitlines()


def test_wanting_what_is_here_says_what_stands(checkout: Path) -> None:
    add_base("mine", [SMALL / "bases" / "tiny-sdxl"])
    folder = bases_dir() / "mine"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    first, family, place, last = told("mine")
    assert first == "base 'mine' was added here already, so nothing is written. It stands as:"
    assert family == "mine: sdxl" and place.endswith(f": {SMALL / 'bases' / 'tiny-sdxl'}")
    assert last == "Other weights under that name: `eridiff base add mine SOURCE`"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_wanting_twice_says_so(checkout: Path) -> None:
    told("sdxl")
    lines = told("sdxl")
    assert lines == [
        *(f"stays as it is: {bases_dir() / 'sdxl' / f'{part}.json'}" for part in PARTS),
        "base 'sdxl' was wanted already, so nothing is written",
        SENTENCE,
    ]
    (bases_dir() / "sdxl" / "text.json").unlink()
    assert [line.partition(":")[0] for line in told("sdxl")] == ["written", "stays as it is", "stays as it is"]


def test_a_base_that_nobody_published(checkout: Path) -> None:
    write_wanted("mine", "sdxl")
    assert how_to_add("mine", "sdxl").endswith("a file of ComfyUI, a model folder, or OWNER/NAME of the hub.")
    with pytest.raises(BaseError, match="base 'mine' is not here yet"):
        read_pointer("mine", "vae")


@pytest.mark.slow
@pytest.mark.parametrize("family", family_names())
def test_sizes_are_those_of_the_published_models(family: str) -> None:
    keys, parts = load_keys(family), load_family(family).PARTS
    for variant in published(family).models:
        for part, components in parts.items():
            shapes = (canonical_shapes(family, variant, one).values() for one in components if one in keys.COMPONENTS)
            size = sum(2 * math.prod(shape) for group in shapes for shape in group) / 1e9
            assert published(family).gigabytes[variant][part] == round(size, 1), (variant, part)


@pytest.mark.parametrize("preset", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_presets_base_is_published_or_the_demos(preset: Path) -> None:
    model = read_yaml(preset)["model"]
    assert model["base"] in published(model["family"]).models or (ROOT / "data" / "bases" / model["base"]).is_dir()


@pytest.mark.parametrize("text", ["{", "[]", '{"wanted": 1}', '{"wanted": {}, "family": "other"}', "[" * 100_000])
def test_what_is_no_wanted_pointer(text: str, checkout: Path) -> None:
    path = checkout / "data" / "bases" / "sdxl" / "denoiser.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert wanted_family(path) is None and has_pointers("sdxl")
