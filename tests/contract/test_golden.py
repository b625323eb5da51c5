"""What the encoders give, against numbers in tests/golden/encoders.json.

When one of these fails and the change is meant, raise the family's VAE_ENCODE or TEXT_ENCODE (every cached entry is
then encoded again) and renew the file: `python -m tests.contract.test_golden`.
"""

import json
from typing import Any

import pytest
import torch

from eridiff.families import load_family
from eridiff.load import load_text_encoders, load_vae
from eridiff.params_latents import LatentParams
from eridiff.vae import encode, prepare_vae
from tests.bases import FAMILIES, source
from tests.conftest import ROOT

GOLDEN = ROOT / "tests/golden/encoders.json"


def summary(tensor: torch.Tensor) -> dict[str, Any]:
    """A few numbers that move when the tensor does."""
    flat = tensor.double().flatten()
    places = torch.linspace(0, flat.numel() - 1, 8).long()
    return {
        "shape": list(tensor.shape),
        "mean": flat.mean().item(),
        "std": flat.std().item(),
        "values": flat[places].tolist(),
    }


def encoded(family: str) -> dict[str, Any]:
    """Summaries of the latents of a fixed picture and the embeddings of fixed captions, with the versions."""
    module, params = load_family(family), LatentParams(batch_size=1)
    vae = prepare_vae(load_vae(module, source(family), torch.float32), params, torch.device("cpu"))
    ramp = torch.linspace(-1, 1, 64)
    pixels = torch.stack([ramp.repeat(64, 1), ramp.repeat(64, 1).T, (ramp.repeat(64, 1) * 7).sin()])[None]
    encoders = load_text_encoders(module, source(family), torch.float32)
    with torch.inference_mode():
        texts = module.encode_text(encoders, ["eridraw, a red fox", ""], module.MAX_TOKENS[-1])
    tensors = {**encode(vae, pixels, params), **texts}
    return {
        "versions": [module.VAE_ENCODE, module.TEXT_ENCODE],
        **{name: summary(tensor) for name, tensor in tensors.items()},
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_encoders_give_what_they_gave(family: str) -> None:
    golden, now = json.loads(GOLDEN.read_text())[family], encoded(family)
    assert now.keys() == golden.keys()
    assert now["versions"] == golden["versions"]
    for name in golden.keys() - {"versions"}:
        assert now[name]["shape"] == golden[name]["shape"]
        for part in ("mean", "std", "values"):
            assert now[name][part] == pytest.approx(golden[name][part], rel=1e-3, abs=1e-4), (name, part)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({family: encoded(family) for family in FAMILIES}, indent=1) + "\n")
