"""Models are found where people have them: ComfyUI's folders, the hub's cache, named folders."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from eridiff.bases.add import add_base
from eridiff.bases.find import find_source
from eridiff.bases.hub import fetch_snapshot
from eridiff.bases.places import Places, extra_model_paths
from eridiff.bases.pointer_files import pointers_of, read_pointer
from eridiff.bases.recognise import components_in
from eridiff.bases.tokenizers import clip_tokenizer
from eridiff.cli import app
from eridiff.core.errors import BaseError, ConfigError
from eridiff.family import family_names, load_family, published
from eridiff.models.load import load_denoiser, load_text_encoders, load_vae
from eridiff.weights.files import open_weights
from tests.support.checkouts import SMALL, make_checkout
from tests.support.originals import header, write_header, write_split

FLUX = SMALL / "bases" / "tiny-flux"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_checkout(tmp_path / "checkout", monkeypatch)


@pytest.fixture
def comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ComfyUI with the small Flux in its folders."""
    folder = tmp_path / "ComfyUI"
    write_split(folder / "models")
    monkeypatch.setenv("ERIDIFF_COMFYUI", str(folder))
    return folder


def weightless(folder: Path) -> Path:
    return Path(shutil.copytree(FLUX, folder, ignore=shutil.ignore_patterns("*.safetensors")))


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_denoisers_name_is_enough(checkout: Path, comfyui: Path, tmp_path: Path) -> None:
    """Given the transformer's file name alone, the rest of the base is found by its usual names."""
    out = run("base", "add", "flux", "flux1-dev.safetensors", "--config", str(weightless(tmp_path / "configs")))
    assert f"vae: {comfyui}/models/vae/ae.safetensors" in out
    assert f"text_encoder_2: {comfyui}/models/text_encoders/t5xxl_fp16.safetensors" in out
    assert out.count("written: ") == 4
    add_base("folder", [FLUX])
    for part in ("vae", "text", "denoiser"):
        assert read_pointer("flux", part).identity() == read_pointer("folder", part).identity()


def test_found_in_comfyui_without_a_word_in_local_yaml(checkout: Path, comfyui: Path, tmp_path: Path) -> None:
    add_base("flux", ["flux1-dev.safetensors"], config=weightless(tmp_path / "configs"))
    (checkout / "local.yaml").write_text("{}\n")
    vae = pointers_of("flux", ["vae", "denoiser"], "flux")
    assert set(find_source(vae.values()).single_files) == {"vae", "transformer"}
    (comfyui / "models" / "vae" / "ae.safetensors").rename(tmp_path / "gone.safetensors")
    with pytest.raises(
        BaseError, match=r"component vae, are not on this machine\. Wanted: ae\.safetensors \(\d+ bytes\)"
    ):
        find_source(vae.values())


def test_comfyui_is_named_or_where_it_usually_is(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Places().comfyui is None
    (tmp_path / "home" / "ComfyUI" / "models").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Places().comfyui == tmp_path / "home" / "ComfyUI"
    (tmp_path / "other").mkdir()
    (checkout / "local.yaml").write_text(f"comfyui: {tmp_path}/other\n")
    assert Places().comfyui == tmp_path / "other"
    (checkout / "local.yaml").write_text(f"comfyui: {tmp_path}/nowhere\n")
    with pytest.raises(ConfigError, match=r"comfyui .* names .*/nowhere, which is no folder"):
        _ = Places().comfyui


def test_extra_model_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISK", str(tmp_path / "disk"))
    (tmp_path / "extra_model_paths.yaml").write_text(
        "a1111:\n  base_path: $DISK/webui/\n  checkpoints: models/Stable-diffusion\n  loras: models/Lora\n"
        "mine:\n  base_path: shelf\n  vae: |\n    v1\n    v2\n  text_encoders: /abs/te\n"
        "other: words\n"
    )
    assert extra_model_paths(tmp_path / "extra_model_paths.yaml") == [
        tmp_path / "disk/webui/models/Stable-diffusion",
        tmp_path / "shelf/v1",
        tmp_path / "shelf/v2",
        Path("/abs/te"),
    ]
    assert extra_model_paths(tmp_path / "none.yaml") == []


def test_models_of_extra_model_paths_are_found(checkout: Path, comfyui: Path, tmp_path: Path) -> None:
    (tmp_path / "shelf").mkdir()
    (comfyui / "models" / "vae" / "ae.safetensors").rename(tmp_path / "shelf" / "ae.safetensors")
    (comfyui / "extra_model_paths.yaml").write_text(f"x:\n  base_path: {tmp_path}\n  vae: shelf\n")
    add_base("flux", ["flux1-dev.safetensors"], config=weightless(tmp_path / "configs"))
    (checkout / "local.yaml").write_text("{}\n")
    (found,) = find_source(pointers_of("flux", ["vae"], "flux").values()).single_files.values()
    assert found.found.weights.paths == (tmp_path / "shelf" / "ae.safetensors",)


def cache(repository: str, folder: Path, revision: str = "abc") -> Path:
    """A repository in the hub's cache."""
    place = folder / f"models--{repository.replace('/', '--')}" / "snapshots" / revision
    shutil.copytree(FLUX, place)
    return place


def test_the_hubs_cache(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    place = cache("maker/tiny-flux", tmp_path / "hub")
    add_base("flux", ["maker/tiny-flux"])
    (checkout / "local.yaml").write_text("{}\n")
    folders = find_source(pointers_of("flux", ["vae", "text", "denoiser"], "flux").values()).folders
    assert folders["tokenizer_2"] == place / "tokenizer_2"
    assert set(folders) == {name for part in load_family("flux").PARTS.values() for name in part} - {"scheduler"}
    assert "maker/tiny-flux: " in run("base", "find")


def raising(error: Exception) -> Any:
    def snapshot_download(*args: Any, **kwargs: Any) -> None:
        raise error

    return snapshot_download


def test_a_gated_model_says_what_to_do(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from httpx import Request, Response
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    answer = Response(403, request=Request("GET", "https://huggingface.co"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", raising(GatedRepoError("gated", response=answer)))
    with pytest.raises(BaseError) as caught:
        add_base("flux", ["black-forest-labs/FLUX.1-dev"])
    message = str(caught.value)
    for words in (
        "Read and accept it at https://huggingface.co/black-forest-labs/FLUX.1-dev",
        "hf auth login",
        "https://huggingface.co/settings/tokens",
        "transformer: flux1-dev.safetensors or flux1-schnell.safetensors into models/diffusion_models",
        "vae: ae.safetensors or",
        "text_encoder_2: t5xxl_fp16.safetensors or",
    ):
        assert words in message
    missing = RepositoryNotFoundError("404", response=answer)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", raising(missing))
    with pytest.raises(BaseError, match=r"the hub has no public model 'maker/x'"):
        fetch_snapshot("maker/x")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", raising(OSError("no route")))
    with pytest.raises(BaseError, match=r"maker/x is not in .* and cannot be fetched: no route"):
        fetch_snapshot("maker/x")


def test_sources_that_are_nowhere(checkout: Path) -> None:
    with pytest.raises(BaseError, match=r"nothing\.safetensors is no file or folder, and no file of that name lies in"):
        add_base("x", ["nothing.safetensors"])
    with pytest.raises(BaseError, match=r"a/b/c is no file or folder"):
        add_base("x", ["a/b/c"])


def test_list_and_find(checkout: Path, comfyui: Path, tmp_path: Path) -> None:
    assert "no bases in" in run("base", "list")
    add_base("flux", ["flux1-dev.safetensors"], config=weightless(tmp_path / "configs"))
    assert run("base", "list") == "flux: flux, found\n"
    lines = run("base", "find", "flux").splitlines()
    assert f"vae: {comfyui}/models/vae/ae.safetensors" in lines
    assert f"tokenizer: {tmp_path}/configs/tokenizer" in lines
    assert len(lines) == 6
    models = run("base", "find")
    assert (
        "flux1-dev.safetensors: " in models and f"  {comfyui}/models/diffusion_models/flux1-dev.safetensors" in models
    )
    shutil.rmtree(comfyui / "models" / "vae")
    assert run("base", "list") == "flux: flux, not on this machine: vae\n"
    with pytest.raises(BaseError, match=r"there is no base 'other'\. Known: flux"):
        CliRunner().invoke(app, ["base", "find", "other"], catch_exceptions=False)


# Tokenizers.


def test_clips_vocabulary_gives_openais_numbers(checkout: Path) -> None:
    """Numbers that the published tokenizers give; short captions end with each encoder's own padding."""
    from transformers import CLIPTokenizer

    clip = CLIPTokenizer.from_pretrained(clip_tokenizer("clip-l"), local_files_only=True)
    assert len(clip) == 49408
    ids = clip("a photo of a cat", padding="max_length", max_length=10).input_ids
    assert ids == [49406, 320, 1125, 539, 320, 2368, 49407, 49407, 49407, 49407]
    other = CLIPTokenizer.from_pretrained(clip_tokenizer("clip-g"), local_files_only=True)
    assert other("a photo of a cat", padding="max_length", max_length=9).input_ids == [*ids[:7], 0, 0]
    assert clip("Größe, naïve: 東京 🙂").input_ids == other("größe,  NAÏVE: 東京 🙂").input_ids
    assert clip.unk_token_id not in clip("Größe, naïve: 東京 🙂").input_ids[1:-1]


@pytest.mark.slow
def test_a_bare_comfyui_trains_with_published_configs(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real names and sizes, no --config: what is wanted beyond the files is T5's tokenizer, and ComfyUI has it."""
    comfyui = tmp_path / "ComfyUI"
    monkeypatch.setenv("ERIDIFF_COMFYUI", str(comfyui))
    names = {
        "transformer": "unet/flux1-dev",
        "vae": "vae/ae",
        "text_encoder": "clip/clip_l",
        "text_encoder_2": "clip/t5xxl_fp16",
    }
    for component, name in names.items():
        write_header(
            comfyui / f"models/{name}.safetensors",
            header("flux", "flux-dev", component, "original" if component in ("transformer", "vae") else "diffusers"),
        )
    from eridiff.bases.collect import collect

    with pytest.raises(BaseError) as caught:
        collect([comfyui / "models/unet/flux1-dev.safetensors"], None)
    for words in (
        "T5's tokenizer (tokenizer_2)",
        "tokenizer.json and tokenizer_config.json",
        str(checkout / "data/bases/t5_tokenizer"),
        f"{comfyui}/comfy/text_encoders/t5_tokenizer",
    ):
        assert words in str(caught.value)
    shutil.copytree(FLUX / "tokenizer_2", comfyui / "comfy/text_encoders/t5_tokenizer")
    found = collect([comfyui / "models/unet/flux1-dev.safetensors"], None)
    assert found.tokenizers["tokenizer_2"] == comfyui / "comfy/text_encoders/t5_tokenizer"
    assert found.tokenizers["tokenizer"] == clip_tokenizer("clip-l")
    assert found.configs["transformer"]["guidance_embeds"] is True
    assert found.configs["scheduler"]["shift"] == 3.0
    assert [path.name for path in found.files] == [
        "flux1-dev.safetensors",
        "ae.safetensors",
        "clip_l.safetensors",
        "t5xxl_fp16.safetensors",
    ]


def test_published_words_fit_the_families() -> None:
    for name in family_names():
        known, components = published(name), {c for part in load_family(name).PARTS.values() for c in part}
        for configs in known.models.values():
            assert set(configs) | set(known.tokenizers) == components
        assert set(known.files) == components - set(known.tokenizers) - {"scheduler"}
        assert set(known.hub) == set(known.models)


def test_a_variant_of_a_folder_is_loaded(checkout: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FLUX, tmp_path / "flux"))
    for path in folder.glob("*/*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    add_base("half", [folder])
    add_base("plain", [FLUX])
    assert read_pointer("half", "vae").components["vae"].variant == "fp16"
    assert read_pointer("half", "text").identity() == read_pointer("plain", "text").identity()
    sources = [
        find_source(pointers_of(name, ["vae", "text", "denoiser"], "flux").values()) for name in ("half", "plain")
    ]
    family = load_family("flux")
    for load in (load_vae, load_denoiser):
        one, other = (load(family, source, torch.float32).state_dict() for source in sources)
        assert all(torch.equal(one[name], tensor) for name, tensor in other.items())
    one, other = (load_text_encoders(family, source, torch.float32) for source in sources)
    assert set(one.encoders) == set(other.encoders)


def test_headers_are_told_by_the_real_sizes() -> None:
    """The small models are of no published size, so that a mistake in looks shows."""
    (path,) = (FLUX / "transformer").glob("*.safetensors")
    (part,), rest = components_in(open_weights(path))
    assert (part.family, part.look.model, rest) == ("flux", "", [])
