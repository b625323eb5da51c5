"""The VAE's own attention against diffusers'."""

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor2_0

from eridiff import vae as module
from eridiff.params_latents import LatentParams
from eridiff.vae import PictureAttention, encode


@pytest.mark.parametrize("most", [0, 10**6])
def test_attention_is_that_of_diffusers(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All scores in memory, and above a size the fused kernel: both give the posterior of AttnProcessor2_0."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[32, 64],
        norm_num_groups=8,
    ).eval()
    (attention,) = [part for name, part in vae.encoder.named_modules() if name.endswith("attentions.0")]
    attention.to_v.weight.data.mul_(20)  # so that the attention decides
    pixels, params = torch.rand(3, 3, 24, 40) * 2 - 1, LatentParams()
    vae.set_attn_processor(AttnProcessor2_0())
    expected = encode(vae, pixels, params)
    with torch.no_grad():
        attention.to_q.weight.mul_(-1)
    assert not torch.allclose(encode(vae, pixels, params)["mean"], expected["mean"], atol=1e-3)
    with torch.no_grad():
        attention.to_q.weight.mul_(-1)
    monkeypatch.setattr(module, "SCORES_TOKENS", most)
    vae.set_attn_processor(PictureAttention())
    found = encode(vae, pixels, params)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)
