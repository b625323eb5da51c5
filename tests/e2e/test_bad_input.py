"""Mistakes that users make, at the command that they use: one clear message, exit code 1, nothing else touched."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.e2e.harness import Clone, make_clone

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    clone = make_clone(tmp_path_factory.mktemp("bad"), "clone")
    clone.repro("latents", "text")
    clone.commit("ran")
    return clone


@pytest.fixture
def clone(sound: Clone) -> Iterator[Clone]:
    """The clone, put back after the test."""
    yield sound
    sound.run("git", "checkout", "-q", "--", ".")
    sound.run("git", "clean", "-fdq", "data/raw", "data/bases")
    assert sound.repro("latents", "text").code == 0


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(clone: Clone, *targets: str) -> str:
    """Run into the mistake: returns our message, which is the last thing above DVC's own line."""
    ran = clone.repro(*targets, check=False)
    assert ran.code == 255
    lines = [line for line in ran.output.splitlines() if line.strip()]
    dvc = next(i for i, line in enumerate(lines) if line.startswith("ERROR: failed to reproduce"))
    ours = max(i for i in range(dvc) if lines[i].startswith("error: "))
    assert all(line.startswith("       ") for line in lines[ours + 1 : dvc]), ran.output
    assert "exited with 1" in lines[dvc] or "exited with 1" in ran.output
    assert "Traceback" not in ran.output
    assert not list(clone.root.glob("data/**/*.tmp"))
    return "\n".join(lines[ours:dvc])


BAD_PARAMS = [
    ("captions:", "captoins:", r"unknown section 'captoins'.*Did you mean 'captions'"),
    ("resolution: 128", "resoluton: 128", r"unknown key 'buckets.resoluton' \(value 128\).*Did you mean 'resolution'"),
    ("lr: 1e-3", "lr: '1e-3'", r"'train.optimizer.lr' is '1e-3'"),
    ("steps: 4", "steps: many", r"'train.steps' is 'many'"),
    ("scheduler: euler", "scheduler: eulr", r"sample.scheduler is 'eulr'.*Did you mean 'euler'"),
    ("targets: attention", "targets: atention", r"train.lora.targets is 'atention'.*Did you mean 'attention'"),
    ("name: adamw", "name: adam", r"'train.optimizer.name' is 'adam'.*Did you mean 'adamw'.*adamw8bit"),
]


def test_bad_params(clone: Clone) -> None:
    path = clone.root / "params.yaml"
    text = path.read_text("utf-8")
    before = files(clone.root / "data/latents")
    for old, new, message in BAD_PARAMS:
        assert old in text
        path.write_text(text.replace(old, new, 1))
        assert re.search(message, refused(clone), re.S)
        assert files(clone.root / "data/latents") == before


def test_unknown_family(clone: Clone) -> None:
    """The family is part of paths in dvc.yaml; check says more than DVC would."""
    clone.params({"model.family": "sdlx"})
    assert re.search(r"model.family is 'sdlx'.*Did you mean 'sdxl'", refused(clone))


def test_family_and_base_that_do_not_fit(clone: Clone) -> None:
    clone.params({"model.base": "tiny-flux"})
    message = refused(clone)
    assert "base 'tiny-flux' is a base" in message or "'tiny-flux' is a base of family 'flux'" in message


def test_options_of_the_other_objective(clone: Clone) -> None:
    clone.params({"train.flow": {"density": "uniform"}})
    assert "train.flow is set, but this family is trained by ddpm" in refused(clone)


def test_missing_pointer(clone: Clone) -> None:
    clone.params({"model.base": "tiny-sdxxl"})
    assert "Did you mean 'tiny-sdxl'" in refused(clone)


def test_missing_data_folder(clone: Clone) -> None:
    kept = clone.root / "kept"
    (clone.root / "data/raw").rename(kept)
    try:
        ran = clone.repro(check=False)
        assert ran.code == 255 and "data/raw" in ran.output
    finally:
        kept.rename(clone.root / "data/raw")


def test_empty_data_set(clone: Clone) -> None:
    for path in (clone.root / "data/raw").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (clone.root / "data/raw/notes.md").write_text("nothing here")
    assert "no pictures" in refused(clone)


def test_unreadable_pictures_are_all_named(clone: Clone) -> None:
    raw = clone.root / "data/raw"
    (raw / "broken.png").write_bytes(b"this is no picture")
    (raw / "empty.jpg").write_bytes(b"")
    message = refused(clone)
    assert "broken.png" in message and "empty.jpg" in message


def test_a_truncated_picture_costs_only_itself(clone: Clone) -> None:
    """Its header is sound, so it is found when it is decoded; nothing of the other pictures is lost."""
    raw = clone.root / "data/raw"
    Image.effect_noise((160, 160), 90).convert("RGB").save(raw / "cut.png")
    data = (raw / "cut.png").read_bytes()
    (raw / "cut.png").write_bytes(data[: len(data) // 2])
    assert "cut.png" in refused(clone)
    (raw / "cut.png").unlink()
    ran = clone.repro("latents", "text")
    assert all(encoded == 0 for encoded, _ in ran.encoded.values())


def test_why_names_what_dvc_cannot_track(clone: Clone) -> None:
    """DVC itself names one file at most."""
    (clone.root / "data/raw/gone.jpg").symlink_to("nowhere.jpg")
    (clone.root / "data/raw/lost.png").symlink_to("nowhere.png")
    ran = clone.run("eridiff", "why", check=False)
    assert ran.returncode == 1 and "Traceback" not in ran.stdout
    assert ran.stdout.endswith(
        "error: data/raw holds what DVC cannot track. Mend or remove these:\n"
        "       gone.jpg: a link to nothing\n       lost.png: a link to nothing\n"
    )


def test_missing_weights(clone: Clone) -> None:
    path = next((clone.root / "data/bases/tiny-sdxl/vae").glob("*.safetensors"))
    path.unlink()
    clone.params({"latents.dtype": "bf16"})
    message = refused(clone, "latents")
    assert "base 'tiny-sdxl'" in message and path.name in message and "local.yaml" in message


def test_other_weights_under_the_same_name_and_size(clone: Clone) -> None:
    path = next((clone.root / "data/bases/tiny-sdxl/vae").glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    clone.params({"latents.dtype": "bf16"})
    message = refused(clone, "latents")
    assert "vae" in message and "the pointer says" in message


def test_no_cuda_and_no_leave_for_a_cpu(clone: Clone) -> None:
    clone.params({"model.allow_cpu": False, "latents.dtype": "bf16"})
    message = refused(clone, "latents")
    assert "device cpu was asked for" in message and "model.allow_cpu" in message


def test_an_interpolated_key_that_is_absent_is_named(clone: Clone) -> None:
    """DVC stops first; `eridiff why` says the rest."""
    path = clone.root / "params.yaml"
    path.write_text(path.read_text("utf-8").replace("  base: tiny-sdxl", "  bas: tiny-sdxl"))
    ran = clone.repro(check=False)
    assert ran.code == 255 and "model.base" in ran.output
    error = clone.why()["error"]
    assert "unknown key 'model.bas'" in error and "Did you mean 'base'" in error


def test_a_base_that_knows_nothing_is_not_trained(clone: Clone) -> None:
    """The small base's weights are random, which its params say; without that word training does not start."""
    clone.params({"train.check_base": True})
    message = refused(clone, "train")
    assert "of latent variance survives the VAE round trip" in message and "was not loaded right" in message
    assert "train.check_base: false" in message
    assert not (clone.root / "data/lora").exists()
    verified = clone.run("eridiff", "base", "verify", check=False)
    assert verified.returncode == 1 and "survives the VAE" in verified.stdout
    clone.params({"train.check_base": False})
    assert "base check" not in clone.repro("train").output
