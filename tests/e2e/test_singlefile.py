"""A LoRA trained from single files, as ComfyUI keeps them, is the one that the model folder gives, byte for byte.

Of one family, the one with every kind of part (both CLIPs, T5, a VAE, a denoiser): that each tensor of each family is
read alike is tests/test_singlefiles.py's.
"""

import shutil
from pathlib import Path

import pytest

from tests.e2e.harness import QUICK, Clone, make_clone
from tests.originals import write_arrangement

pytestmark = pytest.mark.e2e

STAGES = ["check", "captions", "buckets", "latents", "text", "train"]


def prepare(folder: Path, family: str, name: str) -> Clone:
    clone = make_clone(folder, name, quick=False)
    shutil.copyfile(clone.root / f"presets/tiny-{family}.yaml", clone.root / "params.yaml")
    clone.params({f"{section}.{key}": value for section, keys in QUICK.items() for key, value in keys.items()})
    return clone


@pytest.mark.parametrize("family", ["sd35"])
def test_the_same_bytes(family: str, tmp_path: Path) -> None:
    whole, files = prepare(tmp_path, family, "folder"), prepare(tmp_path, family, "files")
    place = files.root / "data" / "bases" / f"tiny-{family}"
    configs = tmp_path / "configs"
    shutil.copytree(place, configs, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.rmtree(place)
    models = write_arrangement(family, tmp_path / "ComfyUI" / "models")
    added = files.run("eridiff", "base", "add", f"tiny-{family}", *map(str, models), "--config", str(configs))
    assert added.stdout.count("written: ") == 4
    assert {path.name for path in place.iterdir()} == {"vae.json", "text.json", "denoiser.json", "license.json"}

    assert whole.repro("train").stages == files.repro("train").stages == STAGES
    assert whole.lock() == files.lock()
    sampled = files.repro()
    assert sampled.stages == ["sample", "export"]
    assert (files.root / "data/samples/grid.png").stat().st_size > 10_000
    # Elsewhere the files are found in ComfyUI's folders, and nothing has to run.
    (files.root / "local.yaml").unlink()
    assert files.why(ERIDIFF_COMFYUI=str(tmp_path / "ComfyUI"))["stages"]["latents"]["state"] != "runs"
