"""A base's licence: found where it is added, noted beside the pointers, said by what is exported."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from eridiff.bases.add import add_base
from eridiff.bases.licences import CHANGED, Licence, licence_path, licences_text, published_licence, read_licences
from eridiff.bases.pointer_files import read_pointer
from eridiff.check import check_params
from eridiff.core.errors import ConfigError
from eridiff.family import family_names, published
from eridiff.formats.safetensors import TensorFile, write_tensors
from eridiff.weights.pointers import PARTS
from tests.support.checkouts import SMALL, make_checkout
from tests.support.exports import exported
from tests.support.originals import header, write_checkpoint, write_header

FRONT = """---
tags: [a: b]
license: other
license_name: "fair-ai"
license_link: LICENSE.md
---
# model
license: mit
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_checkout(tmp_path / "checkout", monkeypatch)


@pytest.fixture
def folder(checkout: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(SMALL / "bases" / "tiny-sdxl", tmp_path / "models" / "mine"))


def added(*sources: Path, **more: Any) -> list[dict[str, Any]]:
    """What `base add` notes."""
    add_base("mine", sources, **more)
    return [licence.model_dump() for licence in read_licences("mine")]


def row(name: str, source: str, url: str | None = None, *notices: str) -> dict[str, Any]:
    return {"name": name, "url": url, "notices": notices, "source": source}


STATED = [
    ({}, []),
    ({"README.md": "# a model\n"}, []),
    ({"README.md": "---\nlicense: unknown\n---\n"}, []),
    ({"README.md": "---\nlicense: openrail++\n---\n"}, [row("openrail++", "README.md of the base")]),
    (
        {"README.md": FRONT.replace("LICENSE.md", "https://a.b/c"), "LICENSE": "MIT License"},
        [row("fair-ai", "README.md of the base", "https://a.b/c")],
    ),
    (
        {"LICENSE.md": "\n# **MIT License**\n\nPermission ...", "NOTICE": "By me.\n"},
        [row("MIT License", "LICENSE.md of the base", None, "By me.")],
    ),
    ({"NOTICE.txt": "By me.\nAnd you.\n"}, [row("see its notice", "NOTICE of the base", None, "By me.\nAnd you.")]),
    ({"LICENSE-CLIP": "MIT License"}, []),  # of a part
]


@pytest.mark.parametrize(("files", "wanted"), STATED, ids=[" ".join(files) or "none" for files, _ in STATED])
def test_files_beside_a_folder(files: dict[str, str], wanted: list[dict[str, Any]], folder: Path) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)
    assert added(folder) == wanted


def test_a_licence_changes_nothing_of_the_pointers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert added(folder) == []
    assert "licence: not known. State it in data/bases/mine/license.json" in capsys.readouterr().out
    pointers = [licence_path("mine").with_name(f"{part}.json").read_bytes() for part in PARTS]
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert len(added(folder)) == 1
    assert "licence: mit, according to README.md of the base\n" in capsys.readouterr().out
    assert [licence_path("mine").with_name(f"{part}.json").read_bytes() for part in PARTS] == pointers


def test_links_of_the_hub_are_made_whole(checkout: Path, tmp_path: Path) -> None:
    place = tmp_path / "models--me--my--model" / "snapshots" / "abc"
    shutil.copytree(SMALL / "bases" / "tiny-sdxl", place)
    (place / "README.md").write_text(FRONT)
    page = "https://huggingface.co/me/my--model"
    assert added(place) == [row("fair-ai", "README.md of the base", f"{page}/blob/main/LICENSE.md")]
    (place / "README.md").write_text("---\nlicense: mit\n---\n")
    assert added(place) == [row("mit", "README.md of the base", page)]


def test_single_files(checkout: Path, tmp_path: Path) -> None:
    """The file's own word counts first; files beside it, where no other model lies there."""
    small = SMALL / "bases" / "tiny-sd35"
    places = {"transformer": "model.diffusion_model.", "vae": "first_stage_model."}
    places |= {f"text_encoder{n}": f"text_encoders.{k}.transformer." for n, k in (("", "clip_l"), ("_2", "clip_g"))}
    places |= {"text_encoder_3": "text_encoders.t5xxl.transformer."}
    path = write_checkpoint(tmp_path / "checkpoints" / "a.safetensors", "sd35", places)
    assert added(path, config=small) == []
    path.with_name("LICENSE").write_text("MIT License\n")
    assert added(path, config=small) == [row("MIT License", "LICENSE of the base")]
    path.with_name("b.safetensors").write_bytes(b"")
    assert added(path, config=small) == []
    file = TensorFile(path)
    write_tensors(path, {name: file.raw(name) for name in file.names}, {"modelspec.license": "https://a.b"})
    assert added(path, config=small) == [row("https://a.b", "the metadata of a.safetensors", "https://a.b")]


def test_every_published_model_has_a_licence() -> None:
    for family in family_names():
        for variant in published(family).models:
            licence = published_licence(family, variant)
            assert licence is not None and licence.name and licence.url
            assert licence.source == f"the makers of {variant}, whose form the base has"
        assert published_licence(family, "another") is None


def test_the_makers_licence_is_noted_by_the_models_form(checkout: Path, folder: Path) -> None:
    """The denoiser's header at full size in place of the small one's: the form of the published model."""
    path = next((folder / "unet").glob("*.safetensors"))
    write_header(path, header("sdxl", "sdxl", "unet", layout="diffusers"))
    from eridiff.bases.add import licences_of_folder

    (makers,) = licences_of_folder(folder)
    assert makers.name == "CreativeML Open RAIL++-M License" and makers == published_licence("sdxl", "sdxl")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert [licence.name for licence in licences_of_folder(folder)] == ["mit", makers.name]


BAD = {
    "[": r"license\.json is no valid JSON",
    '{"licenses": [{"nam": "MIT"}]}': r"json: unknown key 'licenses\.0\.nam' \(value 'MIT'\)\. Did you mean 'name'",
    '{"licenses": [{"name": 3}]}': r"license\.json: 'licenses\.0\.name' is 3",
    '{"licenses": [{"name": ""}]}': r"license\.json: 'licenses\.0\.name' is ''",
    '{"licences": []}': r"unknown key 'licences' .*Did you mean 'licenses'",
}


@pytest.mark.parametrize("text", BAD)
def test_a_file_with_mistakes_is_refused_before_anything_runs(text: str, checkout: Path) -> None:
    shutil.copytree(SMALL / "bases" / "tiny-sdxl", checkout / "data" / "bases" / "tiny-sdxl")
    params = SMALL / "params" / "tiny-sdxl.yaml"
    check_params(params)
    licence_path("tiny-sdxl").write_text(text)
    with pytest.raises(ConfigError, match=BAD[text]):
        check_params(params)


def note(base: str, *licences: Licence) -> None:
    licence_path(base).parent.mkdir(parents=True, exist_ok=True)
    licence_path(base).write_text(licences_text(licences))


def said(tmp_path: Path, **params: Any) -> tuple[dict[str, str], str]:
    """The metadata of an export on the base tiny-sd35, and its model card."""
    out = exported(tmp_path, "sd35", **params)
    first, second = (TensorFile(path).metadata for path in sorted(out.glob("*.safetensors")))
    for key in ("modelspec.license", "base_notice"):
        assert first.get(key) == second.get(key)
    return first, (out / "README.md").read_text()


def test_an_export_says_the_bases_licence(checkout: Path, tmp_path: Path) -> None:
    makers = published_licence("sd35", "sd35-medium")
    assert makers is not None
    note("tiny-sd35", Licence(name="my-own", source="README.md of the base"), makers)
    metadata, card = said(tmp_path, license="mit")
    assert metadata["modelspec.license"] == "mit; base tiny-sd35: my-own"
    notice = "This Stability AI Model is licensed under the Stability AI Community License, "
    notice += "Copyright © Stability AI Ltd. All Rights Reserved"
    assert metadata["base_notice"].splitlines() == [notice, "Powered by Stability AI", CHANGED]
    url = "https://huggingface.co/stabilityai/stable-diffusion-3.5-medium/blob/main/LICENSE.md"
    wanted = f"""## Licence

Of this LoRA: mit.

## Licence of the base

The licence of the base, `tiny-sd35`, binds this LoRA as well.

- my-own, according to README.md of the base
- [Stability AI Community License]({url}), according to the makers of sd35-medium, whose form the base has

> {notice}

> Powered by Stability AI

> {CHANGED}
"""
    assert card.endswith(wanted)
    note("tiny-sd35", makers)
    metadata, _ = said(tmp_path / "again")
    assert metadata["modelspec.license"] == f"base tiny-sd35: Stability AI Community License ({url})"


def test_notices_of_several_lines_are_quoted_whole(checkout: Path, tmp_path: Path) -> None:
    makers = published_licence("flux", "flux-dev")
    assert makers is not None
    note("tiny-sd35", makers)
    metadata, card = said(tmp_path)
    (notice,) = makers.notices
    first, second = notice.splitlines()
    assert first.startswith("The FLUX.1 [dev] Model is licensed by Black Forest Labs Inc. under the FLUX.1 [dev] ")
    assert f"> {first}\n> {second}\n\n> {CHANGED}\n" in card
    assert metadata["base_notice"] == f"{notice}\n{CHANGED}"


def test_an_unknown_licence_is_said_plainly(checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata, card = said(tmp_path)
    assert "modelspec.license" not in metadata and "base_notice" not in metadata
    assert "Of this LoRA: not stated." in card
    assert "It is not known. State it in data/bases/tiny-sd35/license.json (docs/bases.md), then export again." in card
    assert "export: the licence of base 'tiny-sd35' is not known. State it in" in capsys.readouterr().out
    assert said(tmp_path / "stated", license="mit")[0]["modelspec.license"] == "mit"


def test_pointers_from_before_hold_on(checkout: Path) -> None:
    shutil.copytree(SMALL / "bases" / "tiny-sdxl", checkout / "data" / "bases" / "old")
    assert read_licences("old") == () and read_pointer("old", "vae").base == "old"
    assert json.loads(licences_text(())) == {"licenses": []}
