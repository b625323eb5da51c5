"""The families beyond the first, through every stage of the pipeline, each from its preset."""

import shutil

import pytest

from eridiff.family import family_names
from tests.e2e.harness import QUICK, Clone, make_clone

pytestmark = pytest.mark.e2e
BITS = {"flux": {"train.quantise": "nf4", "sample.quantise": "fp8"}}  # of one family


@pytest.mark.parametrize("family", [name for name in family_names() if name != "sdxl"])
def test_every_stage(family: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    clone: Clone = make_clone(tmp_path_factory.mktemp(family), "clone", quick=False)
    shutil.copyfile(clone.root / f"presets/tiny-{family}.yaml", clone.root / "params.yaml")
    clone.params({f"{section}.{key}": value for section, keys in QUICK.items() for key, value in keys.items()})
    clone.params(BITS.get(family, {}))
    predicted = clone.why()
    assert all(plan["state"] == "runs" for plan in predicted["stages"].values())
    ran = clone.repro()
    assert ran.stages == ["check", "captions", "buckets", "latents", "text", "train", "sample", "export"]
    assert ran.encoded == {"latents": (20, 0), "text": (38, 0)}
    exported = sorted(path.name for path in (clone.root / "data/export").glob("*.safetensors"))
    assert exported == {"sd35": ["eridraw-kohya.safetensors", "eridraw.safetensors"]}.get(
        family, ["eridraw.safetensors"]
    )
    assert (clone.root / "data/samples/grid.png").stat().st_size > 10_000
    assert clone.repro().stages == []
