import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from eridiff.core.errors import ExportError
from eridiff.family import load_family, load_keys
from eridiff.formats.floats import Array, from_float32, to_float32
from eridiff.formats.safetensors import raw_tensor
from eridiff.weights.lora_keys import Dialect, Factors, Row, join, place, split, swap_halves
from tests.support.full_size import FULL_SIZE, linear_modules

COUNTS = {"sdxl": [722], "sd35-medium": [385, 263], "sd35-large": [529, 377], "flux-dev": [304]}
PARTS = {"sdxl": 722, "sd35-medium": 385, "sd35-large": 529, "flux-dev": 494}
KEYS = {  # written by hand, from files that the programs load
    "sdxl": [
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_input_blocks_8_1_transformer_blocks_9_ff_net_0_proj",
        "lora_unet_middle_block_1_transformer_blocks_9_attn2_to_out_0",
        "lora_unet_output_blocks_0_1_transformer_blocks_9_ff_net_2",
        "lora_unet_output_blocks_5_1_proj_in",
    ],
    "sd35-medium": [
        "transformer.transformer_blocks.12.attn2.to_out.0",
        "lora_unet_joint_blocks_12_x_block_attn2_qkv",
        "lora_unet_joint_blocks_23_context_block_adaLN_modulation_1",
    ],
    "sd35-large": ["lora_unet_joint_blocks_37_context_block_attn_qkv", "lora_unet_joint_blocks_0_x_block_mlp_fc1"],
    "flux-dev": [
        "lora_unet_double_blocks_18_txt_attn_qkv",
        "lora_unet_single_blocks_37_linear1",
        "lora_unet_single_blocks_0_modulation_lin",
    ],
}


def dialects(name: str) -> tuple[Dialect, ...]:
    return load_keys(FULL_SIZE[name][0]).DIALECTS


@pytest.mark.parametrize("name", FULL_SIZE)
def test_tables_are_bijections_over_the_full_size_modules(name: str) -> None:
    family, _, config = FULL_SIZE[name]
    linear = linear_modules(name)
    in_blocks = {module for module in linear if ".attentions." in module or "transformer_blocks." in module}
    assert len(in_blocks) == PARTS[name]
    known = set()
    for dialect, count in zip(dialects(name), COUNTS[name], strict=True):
        rows = dialect.table(config)
        parts = [part for row in rows for part in row.slices]
        keys = {dialect.key(row.target) for row in rows}
        assert (len(keys), len(rows)) == (count, count)
        assert len(parts) == len(set(parts)) and set(parts) == in_blocks
        assert all(linear[p][0] == h for row in rows for p, h in zip(row.slices, row.heights, strict=False))
        assert all(len({linear[part][1] for part in row.slices}) == 1 for row in rows)
        known |= keys
    assert set(KEYS[name]) <= known
    for pattern in load_family(family).TARGET_SETS.values():
        assert all(module in in_blocks for module in linear if re.fullmatch(pattern, module))


@pytest.mark.parametrize("name", FULL_SIZE)
def test_dead_modules_are_in_the_tables(name: str) -> None:
    family, _, config = FULL_SIZE[name]
    parts = {part for dialect in dialects(name) for row in dialect.table(config) for part in row.slices}
    assert set(load_family(family).unused_modules(config)) <= parts


def random_factors(rng: np.random.Generator, outputs: int, rank: int, inputs: int, alpha: float) -> Factors:
    down, up = rng.standard_normal((rank, inputs)), rng.standard_normal((outputs, rank))
    return Factors(down.astype(np.float32), up.astype(np.float32), alpha)


def change(factors: Factors) -> Array:
    return np.float32(factors.scale) * (factors.up @ factors.down)


JOINED = Row("linear1", ("q", "k", "v", "mlp"), (1, 1, 1, 4))


@pytest.mark.parametrize("present", [("q", "k", "v", "mlp"), ("q", "v"), ("mlp",)])
def test_join_and_split_are_inverse(present: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    (row,) = place([JOINED], width=6)
    heights = dict(zip(row.slices, row.heights, strict=True))
    trained = {part: random_factors(rng, heights[part], 2, 5, alpha=3.0) for part in present}
    joined = join(row, trained)
    assert joined is not None
    assert joined.down.shape == (8, 5) and joined.up.shape == (42, 8)
    assert joined.alpha == 12.0 and joined.scale == trained[present[0]].scale
    whole = np.concatenate(
        [change(trained[p]) if p in trained else np.zeros((heights[p], 5), np.float32) for p in row.slices]
    )
    np.testing.assert_allclose(change(joined), whole, rtol=1e-5, atol=1e-6)
    back = split(row, joined)
    assert back.keys() == trained.keys()
    for part, factors in back.items():
        assert np.array_equal(factors.down, trained[part].down) and np.array_equal(factors.up, trained[part].up)
        assert factors.alpha == trained[part].alpha


def test_split_takes_files_whose_parts_share_the_down_projection() -> None:
    rng = np.random.default_rng(1)
    (row,) = place([JOINED], width=6)
    joined = random_factors(rng, 42, 4, 5, alpha=2.0)
    back = split(row, joined)
    np.testing.assert_allclose(np.concatenate([change(back[part]) for part in row.slices]), change(joined), rtol=1e-6)


def test_join_of_nothing_is_nothing() -> None:
    assert join(JOINED, {}) is None


def test_join_refuses_a_part_of_another_shape() -> None:
    rng = np.random.default_rng(2)
    (row,) = place([JOINED], width=6)
    with pytest.raises(ExportError, match="the adapter of k has"):
        join(row, {"q": random_factors(rng, 6, 2, 5, 1.0), "k": random_factors(rng, 6, 3, 5, 1.0)})


def test_the_half_swap_is_its_own_inverse_and_stands_only_in_the_last_block() -> None:
    up = np.arange(8, dtype=np.float32).reshape(4, 2)
    assert np.array_equal(swap_halves(up), up[[2, 3, 0, 1]])
    assert np.array_equal(swap_halves(swap_halves(up)), up)
    row = Row("a", ("b",), (), swap_halves)
    factors = Factors(np.ones((2, 3), np.float32), up, 2.0)
    joined = join(row, {"b": factors})
    assert joined is not None and np.array_equal(joined.up, swap_halves(up))
    assert np.array_equal(split(row, joined)["b"].up, up)
    config = FULL_SIZE["sd35-large"][2]
    swapped = [r.target for r in dialects("sd35-large")[1].table(config) if r.reorder is swap_halves]
    assert swapped == ["joint_blocks.37.context_block.adaLN_modulation.1"]


@pytest.mark.parametrize(
    ("family", "component", "name", "canonical"),
    [
        ("sdxl", "text_encoder", "encoder.layers.0.mlp.fc1.weight", "text_model.encoder.layers.0.mlp.fc1.weight"),
        ("sdxl", "text_encoder", "text_model.final_layer_norm.bias", "text_model.final_layer_norm.bias"),
        ("sdxl", "text_encoder_2", "text_projection.weight", "text_projection.weight"),
        (
            "sdxl",
            "vae",
            "encoder.mid_block.attentions.0.proj_attn.bias",
            "encoder.mid_block.attentions.0.to_out.0.bias",
        ),
        ("sdxl", "unet", "mid_block.attentions.0.proj_in.weight", "mid_block.attentions.0.proj_in.weight"),
        ("sd35", "text_encoder_3", "encoder.embed_tokens.weight", "shared.weight"),
        (
            "flux",
            "text_encoder",
            "embeddings.token_embedding.weight",
            "text_model.embeddings.token_embedding.weight",
        ),
        ("flux", "text_encoder_2", "shared.weight", "shared.weight"),
        ("flux", "transformer", "x_embedder.weight", "x_embedder.weight"),
    ],
)
def test_canonical_names(family: str, component: str, name: str, canonical: str) -> None:
    keys = load_keys(family)
    assert keys.canonical(component, name) == canonical
    assert keys.canonical(component, canonical) == canonical


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_number_formats_equal_torch(dtype: str) -> None:
    rng = np.random.default_rng(3)
    values = (rng.standard_normal(4096) * 10.0 ** rng.integers(-9, 5, 4096)).astype(np.float32)
    ties = np.arange(0x3F800000, 0x3F900000, 0x1000, dtype=np.uint32).view(np.float32)
    array = np.concatenate([values, ties, np.float32([0.0, -0.0, 3e38, 65519.9, 65520.0, 6e-8, 2.9e-8])])
    ours = from_float32(array.reshape(-1, 1), dtype)
    kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    tensor = torch.from_numpy(array.copy()).to(kind).reshape(-1, 1)
    theirs = raw_tensor(tensor)
    assert (ours.dtype, ours.shape, bytes(ours.data)) == (theirs.dtype, theirs.shape, bytes(theirs.data))
    assert np.array_equal(to_float32(ours), tensor.float().numpy())


def test_architectures() -> None:
    names = {name: load_keys(family).architecture(config) for name, (family, _, config) in FULL_SIZE.items()}
    assert names == {
        "sdxl": "stable-diffusion-xl-v1-base",
        "sd35-medium": "stable-diffusion-3-5-medium",
        "sd35-large": "stable-diffusion-3-5-large",
        "flux-dev": "flux-1-dev",
    }
    schnell = {**FULL_SIZE["flux-dev"][2], "guidance_embeds": False}
    assert load_keys("flux").architecture(schnell) == "flux-1-schnell"
    assert replace(dialects("sdxl")[0], ending="-x").file_name("lora") == "lora-x.safetensors"
