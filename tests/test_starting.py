"""What `eridiff new` finds and fills in; the project itself: tests/e2e/test_new.py."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eridiff import starting
from eridiff.bases import add_base
from eridiff.cli import app
from eridiff.config import read_yaml
from eridiff.errors import ConfigError
from eridiff.gpus import Gpu, find_gpus
from eridiff.presets import describe_gpus, find_preset, read_preset
from eridiff.starting import filled, find_published, settle_base, start_project
from tests.checkouts import SMALL, make_checkout
from tests.conftest import ROOT
from tests.originals import header, write_header

# What nvidia-smi answers to --query-gpu=index,name,memory.total --format=csv,noheader,nounits.
RTX_4090, RTX_3060 = "NVIDIA GeForce RTX 4090, 24564", "NVIDIA GeForce RTX 3060, 12288"


def new(images: Path, *more: str) -> str:
    """What `eridiff new cats` prints."""
    command = ["new", "cats", "--images", str(images), *more]
    return CliRunner().invoke(app, command, catch_exceptions=False).output


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts an nvidia-smi on PATH that names these GPUs."""

    def put(*gpus: str, code: int = 0) -> None:
        tool = tmp_path / "bin" / "nvidia-smi"
        tool.parent.mkdir(exist_ok=True)
        lines = [f"{i}, {gpu}" for i, gpu in enumerate(gpus)]
        wanted = "--query-gpu=index,name,memory.total --format=csv,noheader,nounits"
        tool.write_text(
            f"#!/bin/sh\n[ \"$*\" = '{wanted}' ] || exit 9\ncat <<'END'\n"
            + "\n".join([*lines, "END"])
            + f"\nexit {code}\n"
        )
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")

    return put


@pytest.fixture
def with_presets(checkout: Path) -> Path:
    """A checkout with the presets, and the base sdxl."""
    shutil.copytree(ROOT / "presets", checkout / "presets")
    add_base("sdxl", [SMALL / "bases" / "tiny-sdxl"])
    return checkout


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_checkout(tmp_path / "checkout", monkeypatch)


@pytest.mark.parametrize("preset", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_filling_in_changes_these_lines_alone(preset: Path) -> None:
    text = preset.read_text()
    new = filled(text, {"captions": {"trigger": "zwxcat"}, "export": {"name": "cats"}})
    old_lines, new_lines = text.splitlines(), new.splitlines()
    assert len(old_lines) == len(new_lines)
    changed = [(old, new) for old, new in zip(old_lines, new_lines, strict=True) if old.split() != new.split()]
    assert [new.split(":")[0].strip() for _, new in changed] == ["trigger", "name"]
    assert changed[0][1].strip().startswith("trigger: zwxcat") and "# " in changed[0][1]


def test_the_makers_file_is_known_by_its_header(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with the usual name of one model may hold another."""
    monkeypatch.setenv("ERIDIFF_COMFYUI", str(tmp_path / "ComfyUI"))
    folder = tmp_path / "ComfyUI" / "models" / "diffusion_models"
    dev = write_header(folder / "flux1-dev.safetensors", header("flux", "flux-dev", "transformer"))
    assert find_published("flux", "flux-dev") == dev
    assert find_published("flux", "flux-schnell") is None
    write_header(folder / "flux1-schnell.safetensors", header("flux", "flux-dev", "transformer"))
    assert find_published("flux", "flux-schnell") is None
    schnell = write_header(folder / "flux1-schnell.safetensors", header("flux", "flux-schnell", "transformer"))
    assert find_published("flux", "flux-schnell") == schnell
    assert find_published("flux", "my-own") is None


def test_the_hubs_cache_is_looked_at_too(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--black-forest-labs--FLUX.1-dev" / "snapshots" / "abc"
    shutil.copytree(SMALL / "bases" / "tiny-flux", place)
    assert find_published("flux", "flux-dev") == place
    (tmp_path / "params.yaml").write_text("model: {family: flux, base: flux-dev}\n")
    assert settle_base(tmp_path / "params.yaml") == "base: flux-dev"
    assert (checkout / "data/bases/flux-dev/denoiser.json").exists()


def test_a_base_that_is_nowhere_is_asked_for(checkout: Path, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("model: {family: flux, base: flux-dev}\n")
    for _ in range(2):  # wanted pointers are none yet
        line = settle_base(path)
        assert "`eridiff base add flux-dev SOURCE`" in line and "black-forest-labs/FLUX.1-dev" in line
    add_base("flux-dev", [SMALL / "bases" / "tiny-flux"])
    assert settle_base(path) == "base: flux-dev"


def test_a_base_that_cannot_be_added_stops_nothing(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERIDIFF_COMFYUI", str(tmp_path / "ComfyUI"))
    path = tmp_path / "ComfyUI" / "models" / "unet" / "flux1-dev.safetensors"
    write_header(path, header("flux", "flux-dev", "transformer"))
    (tmp_path / "params.yaml").write_text("model: {family: flux, base: flux-dev}\n")
    line = settle_base(tmp_path / "params.yaml")
    assert f"could not be added from {path}: no file holds vae" in line


def test_what_a_preset_says_of_its_own_pictures_is_left_out(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_project(name: str, images: Path, params: Path, *, push: bool, fill: Callable[[Path], None]) -> Path:
        folder = checkout / "projects" / name
        shutil.copytree(images, folder / "data" / "raw")
        fill(folder)
        return folder

    monkeypatch.setattr(starting, "make_project", make_project)
    (tmp_path / "raw" / "plain").mkdir(parents=True)
    preset = ROOT / "presets" / "tiny-sdxl.yaml"
    record = read_yaml(start_project("with", tmp_path / "raw", "zwxcat", preset) / "params.yaml")
    assert (record["captions"]["regularisation"], record["captions"]["class_word"]) == (["plain"], None)
    assert (record["export"]["license"], record["captions"]["trigger"]) == (None, "zwxcat")
    assert not record["sample"]["measures"] and not any("group" in prompt for prompt in record["sample"]["prompts"])
    words = (checkout / "projects/with/params.yaml").read_text()
    assert not [word for word in ("fox", "penguin", "neon", "held-out", "glowing") if word in words]
    (tmp_path / "raw" / "plain").rmdir()
    record = read_yaml(start_project("without", tmp_path / "raw", "zwxcat", preset) / "params.yaml")
    assert record["captions"]["regularisation"] == []


def test_wrong_decisions(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    preset = ROOT / "presets" / "sdxl-24gb.yaml"
    with pytest.raises(ConfigError, match=r"--trigger: 'captions\.trigger' is 'my, cat'"):
        start_project("cats", tmp_path / "raw", "my, cat", preset)
    with pytest.raises(ConfigError, match="--trigger is missing: the word"):
        new(tmp_path, "--preset", "sdxl-24gb")
    with pytest.raises(ConfigError, match="--params copies a file as it is: leave --preset and --trigger out"):
        new(tmp_path, "--params", "params.yaml", "--trigger", "zwxcat")
    assert not (checkout / "projects").exists()
    assert read_yaml(preset)["captions"]["trigger"] == "mytrigger"


def test_gpus_are_those_of_the_driver(
    driver: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver(RTX_4090, "NVIDIA GB10, [N/A]")
    first = Gpu(index=0, name="NVIDIA GeForce RTX 4090", mib=24564)
    assert find_gpus() == [first, Gpu(index=1, name="NVIDIA GB10", mib=None)]
    assert [gpu.described() for gpu in find_gpus()] == [
        "GPU 0: NVIDIA GeForce RTX 4090, 24.0 GB",
        "GPU 1: NVIDIA GB10, memory not told",
    ]
    driver("No devices were found", code=9)
    assert find_gpus() == []
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert find_gpus() == []


@pytest.mark.parametrize(
    ("mib", "gigabytes", "wanted"),
    [(12288, 24, -1), (20470, 24, -1), (23028, 24, 0), (24576, 24, 0), (24564, 12, 1), (81559, 24, 1), (11264, 12, -1)],
)
def test_memory_is_compared_with_what_cards_are_sold_with(mib: int, gigabytes: int, wanted: int) -> None:
    assert Gpu(index=0, name="x", mib=mib).compare(gigabytes) == wanted


def test_the_preset_is_held_against_each_gpu(driver: Callable[..., None], with_presets: Path) -> None:
    driver(RTX_4090, RTX_3060, "NVIDIA H100 80GB HBM3, 81559")

    def said(preset: str) -> list[str]:
        return describe_gpus(read_preset(find_preset(preset)), find_gpus())

    assert said("sdxl-24gb") == [
        "GPU 0: NVIDIA GeForce RTX 4090, 24.0 GB: what sdxl-24gb is meant for",
        "GPU 1: NVIDIA GeForce RTX 3060, 12.0 GB: less than the 24 GB that sdxl-24gb is meant for; "
        "for this card: sdxl-12gb",
        "GPU 2: NVIDIA H100 80GB HBM3, 79.6 GB: more than the 24 GB that sdxl-24gb is meant for",
    ]
    better = "for this card: example-sdxl, sdxl-24gb"
    assert said("sdxl-12gb")[0].endswith(f"24.0 GB: more than the 12 GB that sdxl-12gb is meant for; {better}")
    assert said("sd35-large-24gb")[1].endswith("12.0 GB: less than the 24 GB that sd35-large-24gb is meant for")
    assert said("tiny-sdxl")[0] == "GPU 0: NVIDIA GeForce RTX 4090, 24.0 GB"
    driver(code=9)
    assert said("sdxl-24gb") == ["GPU: none found (nvidia-smi names none): sdxl-24gb needs one of 24 GB"]
    assert said("tiny-sdxl") == ["GPU: none found (nvidia-smi names none): tiny-sdxl runs without"]


@pytest.mark.slow
def test_without_a_preset_all_are_offered(
    driver: Callable[..., None], with_presets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERIDIFF_COMFYUI", str(tmp_path / "ComfyUI"))
    folder = tmp_path / "ComfyUI" / "models" / "diffusion_models"
    dev = write_header(folder / "flux1-dev.safetensors", header("flux", "flux-dev", "transformer"))

    def offered(*given: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            new(tmp_path, *given)
        first, *lines = str(caught.value).splitlines()
        assert first.startswith("--preset is missing: which model is trained, and for how much memory.")
        return [" ".join(line.split()) for line in lines]

    driver(RTX_4090)
    assert offered() == offered("--trigger", "zwxcat")
    assert offered() == [
        "GPU 0: NVIDIA GeForce RTX 4090, 24.0 GB",
        "example-sdxl 24 GB fits, base sdxl: here",
        "sdxl-24gb 24 GB fits, base sdxl: here",
        "sdxl-12gb 12 GB fits, base sdxl: here",
        f"flux-dev-24gb 24 GB fits, base flux-dev: found in {dev}",
        "flux-schnell-24gb 24 GB fits, base flux-schnell: not on this machine",
        "sd35-large-24gb 24 GB fits, base sd35-large: not on this machine",
        "sd35-medium-24gb 24 GB fits, base sd35-medium: not on this machine",
        f"flux-dev-12gb 12 GB fits, base flux-dev: found in {dev}",
        "tiny-flux runs on any machine, base tiny-flux: not on this machine",
        "tiny-sd35 runs on any machine, base tiny-sd35: not on this machine",
        "tiny-sdxl runs on any machine, base tiny-sdxl: not on this machine",
    ]
    driver(RTX_3060)
    assert offered()[:3] == [
        "GPU 0: NVIDIA GeForce RTX 3060, 12.0 GB",
        "sdxl-12gb 12 GB fits, base sdxl: here",
        f"flux-dev-12gb 12 GB fits, base flux-dev: found in {dev}",
    ]
    assert offered()[6] == "example-sdxl 24 GB needs more memory, base sdxl: here"
    driver(code=9)
    assert offered() == [
        "GPU: none found (nvidia-smi names none)",
        "tiny-flux runs on any machine, base tiny-flux: not on this machine",
        "tiny-sd35 runs on any machine, base tiny-sd35: not on this machine",
        "tiny-sdxl runs on any machine, base tiny-sdxl: not on this machine",
        "example-sdxl 24 GB needs a GPU, base sdxl: here",
        "sdxl-24gb 24 GB needs a GPU, base sdxl: here",
        "sdxl-12gb 12 GB needs a GPU, base sdxl: here",
        f"flux-dev-24gb 24 GB needs a GPU, base flux-dev: found in {dev}",
        "flux-schnell-24gb 24 GB needs a GPU, base flux-schnell: not on this machine",
        "sd35-large-24gb 24 GB needs a GPU, base sd35-large: not on this machine",
        "sd35-medium-24gb 24 GB needs a GPU, base sd35-medium: not on this machine",
        f"flux-dev-12gb 12 GB needs a GPU, base flux-dev: found in {dev}",
    ]


def test_a_base_whose_weights_are_gone_is_no_base_here(
    driver: Callable[..., None], with_presets: Path, tmp_path: Path
) -> None:
    driver(RTX_3060)
    (with_presets / "local.yaml").unlink()
    with pytest.raises(ConfigError, match=r"sdxl-12gb .* base sdxl: vae, text_encoder, .*unet not on this machine"):
        new(tmp_path, "--trigger", "zwxcat")
