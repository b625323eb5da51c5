"""`check`: every mistake in params.yaml is named before anything runs, also what two keys say of each other."""

import copy
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from eridiff.check import SECTIONS, check_params, load_all
from eridiff.core.config import read_yaml
from eridiff.core.errors import BaseError, ConfigError, EridiffError
from eridiff.family import load_family
from tests.support.bases import FAMILIES
from tests.support.checkouts import SMALL

PARAMS = read_yaml(SMALL / "params" / "tiny-sdxl.yaml")
DDPM = next(family for family in FAMILIES if load_family(family).OBJECTIVE == "ddpm")
EMBEDDED = next(family for family in FAMILIES if load_family(family).GUIDANCE)


def changed(tmp_path: Path, changes: dict[str, Any]) -> Path:
    """A copy of the params with key paths set, or removed where the value is `...`."""
    params = copy.deepcopy(PARAMS)
    for key, value in changes.items():
        section: Any = params
        *folders, last = key.split(".")
        for name in folders:
            section = section[name]
        if value is ...:
            del section[last]
        else:
            section[last] = value
    path = tmp_path / "params.yaml"
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(params, file)
    return path


def of_family(family: str) -> dict[str, Any]:
    """Changes that make the params those of another family."""
    objective = {} if load_family(family).OBJECTIVE == "ddpm" else {"train.ddpm": ...}
    return {"model.family": family, "model.base": f"tiny-{family}", **objective}


def error(tmp_path: Path, changes: dict[str, Any]) -> EridiffError:
    with pytest.raises(EridiffError) as caught:
        check_params(changed(tmp_path, changes))
    return caught.value


@pytest.mark.parametrize("family", FAMILIES)
def test_sound_params_pass(tmp_path: Path, family: str) -> None:
    check_params(changed(tmp_path, of_family(family)))


def test_the_family_is_as_the_cases_below_assume() -> None:
    assert PARAMS["model"]["family"] == DDPM
    assert set(PARAMS) == set(SECTIONS)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "section": (
        {"trian": {}},
        "unknown section 'trian'. Did you mean 'train'? Known: buckets, captions, export, latents,",
    ),
    "section missing": ({"buckets": ...}, "section 'buckets' is missing."),
    "key": ({"train.optimizer.rl": 1e-4}, "unknown key 'train.optimizer.rl' (value 0.0001). Did you mean 'lr'?"),
    "type": ({"train.steps": "60"}, "'train.steps' is '60': input should be a valid integer."),
    "choice": (
        {"latents.dtype": "fp23"},
        "'latents.dtype' is 'fp23', which is none of its choices. Did you mean 'fp32'?",
    ),
    "family": (
        {"model.family": "sdxxl"},
        "model.family is 'sdxxl', which is no family. Did you mean 'sdxl'? Known: flux, sd35, sdxl.",
    ),
    "targets": (
        {"train.lora.targets": "atention"},
        "train.lora.targets is 'atention'. Did you mean 'attention'? Known: all-linear, attention.",
    ),
    "flow": (
        {"train.flow": {"shift": 3.0}, "train.ddpm": ...},
        "train.flow is set, but this family is trained by ddpm: use train.ddpm, or remove it.",
    ),
    "guidance": ({"train.guidance": 3.5}, "train.guidance is set, but this family's denoiser takes none: remove it."),
    "timesteps": (
        {"train.ddpm.timestep_min": 900, "train.ddpm.timestep_max": 10},
        "'train.ddpm': timestep_min 900 is above timestep_max 10.",
    ),
    "bucket step": ({"buckets.step": 12}, "'buckets.step' is 12: input should be a multiple of 8."),
    "max_tokens": ({"text.max_tokens": 256}, "text.max_tokens is 256, which this family does not take. Known: 77."),
    "scheduler": ({"sample.scheduler": "uler"}, "sample.scheduler is 'uler'. Did you mean 'euler'?"),
    "size": ({"sample.size": [128, 100]}, "sample.size is [128, 100]: sides must be multiples of 8."),
    "sample max_tokens": (
        {"sample.max_tokens": 512},
        "sample.max_tokens is 512, which this family does not take. Known: 77.",
    ),
    "trigger": (
        {"captions.trigger": None},
        "sample.prompts has '[trigger]' in a prompt, but captions.trigger is null.",
    ),
    "measures": (
        {"sample.measures": True, "sample.prompts": [{"prompt": "[trigger], a fox"}, {"prompt": "a cat"}]},
        "sample.measures is true, but sample.prompts has 1 different prompts with '[trigger]'",
    ),
    "group": ({"sample.prompts": [{"prompt": "a cat", "group": ""}]}, "'sample.prompts.0.group' is ''"),
    "checkpoint of sample": (
        {"sample.checkpoints": ["last", 45]},
        "sample.checkpoints[1] is 45, but with train.steps 60, save_every 30 and keep 2 the kept checkpoints are 30, 60"
        ".",
    ),
    "checkpoint not kept": (
        {"sample.checkpoints": [30], "train.keep": 1},
        "sample.checkpoints[0] is 30, but with train.steps 60, save_every 30 and keep 1 the kept checkpoints are 60.",
    ),
    "checkpoint of export": ({"export.checkpoint": 7}, "export.checkpoint is 7, but with train.steps 60"),
    "average of sample": (
        {"sample.ema": True, "train.ema_decay": None},
        "sample.ema is true, but train.ema_decay is null: no average is trained.",
    ),
    "average of export": (
        {"export.ema": True, "train.ema_decay": None},
        "export.ema is true, but train.ema_decay is null: no average is trained.",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(tmp_path: Path, name: str) -> None:
    changes, expected = MISTAKES[name]
    found = error(tmp_path, changes)
    assert isinstance(found, ConfigError)
    assert expected in str(found)
    assert len(str(found).split("\n")) == 1, "one mistake, one line"


def test_the_checkpoints_that_are_kept_may_be_named(tmp_path: Path) -> None:
    check_params(changed(tmp_path, {"sample.checkpoints": [30, "last", 60], "export.checkpoint": 30}))
    check_params(changed(tmp_path, {"train.steps": 50, "sample.checkpoints": [50, 30], "export.checkpoint": "best"}))
    check_params(changed(tmp_path, {"sample.ema": True, "export.ema": True}))


def test_families_with_an_embedded_guidance(tmp_path: Path) -> None:
    base = of_family(EMBEDDED)
    check_params(changed(tmp_path, {**base, "train.guidance": 3.5, "train.flow": {"shift": "resolution"}}))
    prompts = [{"prompt": "a cat", "negative": "a dog"}]
    found = error(tmp_path, {**base, "sample.prompts": prompts})
    assert "sample.prompts has the negative prompt 'a dog', but this family has an embedded guidance" in str(found)
    check_params(changed(tmp_path, {"sample.prompts": prompts}))
    found = error(tmp_path, {**base, "train.ddpm": {}})
    assert "train.ddpm is set, but this family is trained by flow: use train.flow, or remove it." in str(found)
    found = error(tmp_path, {**base, "buckets.step": 8, "sample.size": [128, 120]})
    assert "buckets.step is 8: it must be a multiple of 16." in str(found)
    assert "sample.size is [128, 120]: sides must be multiples of 16." in str(found)


def test_a_base_without_pointer(tmp_path: Path) -> None:
    found = error(tmp_path, {"model.base": "tiny-sdlx"})
    assert isinstance(found, BaseError)
    assert "base 'tiny-sdlx' has no pointer vae.json. Did you mean 'tiny-sdxl'?" in str(found)
    assert "`eridiff base add tiny-sdlx SOURCE`" in str(found)


def test_a_base_of_another_family(tmp_path: Path) -> None:
    found = error(tmp_path, {"model.base": f"tiny-{EMBEDDED}"})
    assert f"model.base 'tiny-{EMBEDDED}' is a base of family '{EMBEDDED}', but model.family is '{DDPM}'" in str(found)


def test_all_mistakes_of_a_kind_are_named_at_once(tmp_path: Path) -> None:
    found = error(tmp_path, {"trian": {}, "buckets": ..., "train.steps": 0, "model.famly": "x"})
    lines = str(found).split("\n       ")
    assert [line.split("'")[1] for line in lines] == ["trian", "model.famly", "buckets", "train.steps"]
    found = error(tmp_path, {"train.lora.targets": "x", "sample.size": [20, 20], "text.max_tokens": 1})
    assert len(str(found).split("\n       ")) == 3


@pytest.mark.parametrize("text", ["", "- 1\n", "just words\n"])
def test_a_file_without_sections(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"has no sections\. Known: model, captions, buckets"):
        load_all(path)
