"""Tables of weights against the models themselves at full size, and against diffusers' converters."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.loaders import single_file_utils as theirs

from eridiff.core.errors import BaseError
from eridiff.family import load_keys, published
from eridiff.formats.safetensors import RawTensor, raw_tensor, raw_tensors, write_tensors
from eridiff.weights.lora_keys import Row, swap_halves
from eridiff.weights.tensor_keys import (
    conv_or_linear,
    leaves,
    table_version,
    to_model,
    to_original,
    transposed,
    write_original,
)
from tests.support.bases import source
from tests.support.checkouts import SMALL
from tests.support.originals import CHECKPOINT, COMPONENTS, canonical_shapes, header, rows_of
from tests.support.tensors import load_tensors

LAYOUTS = ("original", "diffusers")
# Tensors in the makers' own files.
COUNTS = {
    ("sdxl", "unet"): 1680,
    ("vae", 4): 248,
    ("vae", 16): 244,
    ("flux-dev", "transformer"): 780,
    ("flux-schnell", "transformer"): 776,
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("family", "variant", "component"), COMPONENTS)
def test_a_table_has_every_tensor_of_the_real_model_once(
    family: str, variant: str, component: str, layout: str
) -> None:
    shapes, rows = canonical_shapes(family, variant, component), rows_of(family, variant, component, layout)
    parts = [part for row in rows for part in row.slices]
    assert len(parts) == len(set(parts))
    assert set(parts) == set(shapes)
    assert len({row.target for row in rows}) == len(rows)
    for row in rows:
        assert not row.heights or [shapes[part][0] for part in row.slices] == list(row.heights)
    if layout == "diffusers":
        assert all(row.slices == (row.target,) for row in rows)


@pytest.mark.slow
def test_as_many_tensors_as_in_the_makers_files() -> None:
    assert len(header("sdxl", "sdxl", "unet")) == COUNTS["sdxl", "unet"]
    assert len(header("sdxl", "sdxl", "vae")) == COUNTS["vae", 4]
    assert len(header("sd35", "sd35-large", "vae")) == len(header("flux", "flux-dev", "vae")) == COUNTS["vae", 16]
    for variant in ("flux-dev", "flux-schnell"):
        assert len(header("flux", variant, "transformer")) == COUNTS[variant, "transformer"]


def small(family: str, component: str) -> dict[str, torch.Tensor]:
    """The weights of a small base's component by canonical name."""
    keys = load_keys(family)
    (path,) = (SMALL / "bases" / f"tiny-{family}" / component).glob("*.safetensors")
    return {keys.canonical(component, name): tensor for name, tensor in load_tensors(path).items()}


def small_rows(family: str, component: str, layout: str = "original") -> tuple[Row, ...]:
    rows: tuple[Row, ...] = load_keys(family).COMPONENTS[component].rows(layout, source(family).config(component))
    return rows


def in_original(family: str, component: str, prefix: str = "") -> dict[str, torch.Tensor]:
    rows = small_rows(family, component)
    return {k: v.torch() for k, v in write_original(rows, raw_tensors(small(family, component)), prefix).items()}


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


SMALL_COMPONENTS = [(f, c) for f in ("sdxl", "sd35", "flux") for c in load_keys(f).COMPONENTS]


@pytest.mark.parametrize(("family", "component"), SMALL_COMPONENTS)
def test_there_and_back(family: str, component: str) -> None:
    weights, rows = small(family, component), small_rows(family, component)
    original = write_original(rows, raw_tensors(weights))
    assert set(original) == {row.target for row in rows}
    back = {name: tensor.torch() for row in rows for name, tensor in to_model(row, original[row.target]).items()}
    same(back, weights)


def test_unet_as_diffusers_converts_it() -> None:
    checkpoint = in_original("sdxl", "unet", CHECKPOINT["unet"])
    converted = theirs.convert_ldm_unet_checkpoint(checkpoint, config=dict(source("sdxl").config("unet")))
    same(converted, small("sdxl", "unet"))


@pytest.mark.parametrize("family", ["sdxl", "sd35", "flux"])
def test_vae_as_diffusers_converts_it(family: str) -> None:
    checkpoint = in_original(family, "vae", "first_stage_model.")
    assert checkpoint["first_stage_model.encoder.mid.attn_1.q.weight"].ndim == 4
    converted = theirs.convert_ldm_vae_checkpoint(checkpoint, config=source(family).config("vae"))
    same(converted, small(family, "vae"))


def test_mmdit_as_diffusers_converts_it() -> None:
    checkpoint = in_original("sd35", "transformer", "model.diffusion_model.")
    same(theirs.convert_sd3_transformer_checkpoint_to_diffusers(checkpoint), small("sd35", "transformer"))


@pytest.mark.parametrize("guided", [True, False])
def test_flux_as_diffusers_converts_it(guided: bool) -> None:
    """Its converter knows the real width only, so joined matrices have the real rows, and one column."""
    config = {**published("flux").models["flux-dev"]["transformer"], "num_layers": 2, "num_single_layers": 3}
    rows = load_keys("flux").COMPONENTS["transformer"].rows("original", {**config, "guidance_embeds": guided})
    draw = torch.Generator().manual_seed(0)
    checkpoint = {row.target: torch.randn(sum(row.heights) or 4, 1, generator=draw).bfloat16() for row in rows}
    mine = {part: t.torch() for row in rows for part, t in to_model(row, raw_tensor(checkpoint[row.target])).items()}
    assert any("guidance" in name for name in checkpoint) == guided
    same(theirs.convert_flux_transformer_checkpoint_to_diffusers(checkpoint), mine)


def test_open_clip_as_diffusers_converts_it() -> None:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    prefix = CHECKPOINT["text_encoder_2"]
    checkpoint = in_original("sdxl", "text_encoder_2", prefix)
    weights = small("sdxl", "text_encoder_2")
    model = CLIPTextModelWithProjection(CLIPTextConfig(**source("sdxl").config("text_encoder_2")))
    converted = theirs.convert_open_clip_checkpoint(model, checkpoint, prefix)
    same(converted, weights)
    assert torch.equal(checkpoint[prefix + "text_projection"].T, weights["text_projection.weight"])


def test_t5_as_diffusers_converts_it() -> None:
    checkpoint = in_original("sd35", "text_encoder_3", "text_encoders.t5xxl.transformer.")
    same(theirs.convert_sd3_t5_checkpoint_to_diffusers(checkpoint), small("sd35", "text_encoder_3"))


def test_clip_l_has_its_own_names_in_checkpoints() -> None:
    prefix, weights = CHECKPOINT["text_encoder"], small("sdxl", "text_encoder")
    original = write_original(small_rows("sdxl", "text_encoder", "diffusers"), raw_tensors(weights), prefix)
    checkpoint = {name: tensor.torch() for name, tensor in original.items()}
    same(theirs.convert_ldm_clip_checkpoint(checkpoint), weights)


FROM_SINGLE_FILE = {
    ("sdxl", "unet"): ("UNet2DConditionModel", "model.diffusion_model."),
    ("sdxl", "vae"): ("AutoencoderKL", "first_stage_model."),
    ("sd35", "transformer"): ("SD3Transformer2DModel", "model.diffusion_model."),
    ("sd35", "vae"): ("AutoencoderKL", "first_stage_model."),
    ("flux", "vae"): ("AutoencoderKL", "first_stage_model."),
}


@pytest.mark.parametrize(("family", "component"), FROM_SINGLE_FILE)
def test_as_from_single_file_loads_it(family: str, component: str, tmp_path: Path) -> None:
    import diffusers

    kind, prefix = FROM_SINGLE_FILE[family, component]
    original = write_original(small_rows(family, component), raw_tensors(small(family, component)), prefix)
    write_tensors(tmp_path / "model.safetensors", original, {})
    config = str(SMALL / "bases" / f"tiny-{family}" / component)
    model = getattr(diffusers, kind).from_single_file(
        str(tmp_path / "model.safetensors"), config=config, torch_dtype=torch.float16, local_files_only=True
    )
    same(model.state_dict(), small(family, component))


@pytest.mark.parametrize("transform", [swap_halves, transposed, conv_or_linear])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64])
def test_odd_transforms_are_their_own_inverse(transform: Any, dtype: torch.dtype) -> None:
    tensor = raw_tensor(torch.arange(24).reshape(4, 6).to(dtype))
    row = Row("a", ("b",), (), transform)
    turned = to_model(row, tensor)["b"]
    assert turned.dtype == tensor.dtype
    assert bytes(turned.data) != bytes(tensor.data) or turned.shape != tensor.shape
    back = to_original(row, {"b": turned})
    assert (back.shape, bytes(back.data)) == (tensor.shape, bytes(tensor.data))


def test_rows_that_do_not_add_up_are_refused() -> None:
    row = Row("qkv.weight", ("q.weight", "k.weight"), (2, 2))
    with pytest.raises(BaseError, match=r"qkv\.weight has 5 rows; by the model's config they must be 4"):
        to_model(row, RawTensor("F32", (5, 1), bytes(20)))
    parts = to_model(row, raw_tensor(torch.arange(4.0)))
    assert np.frombuffer(parts["k.weight"].data, "f4").tolist() == [2.0, 3.0]


def test_a_version_says_what_a_table_says() -> None:
    rows = list(leaves([Row("a", ("b", "c"), (1, 1))]))
    others = [
        rows[:1],
        list(leaves([Row("a", ("c", "b"), (1, 1))])),
        list(leaves([Row("a", ("b", "c"), (1, 2))])),
        list(leaves([Row("a", ("b", "c"), (1, 1), swap_halves)])),
    ]
    assert len({table_version(r) for r in (rows, *others)}) == 5
    assert table_version(rows) == table_version(list(rows))
