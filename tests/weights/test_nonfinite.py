"""Numbers that are not finite: named at `base add` by file and tensor, blamed on what is set and on nothing else."""

import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eridiff.bases.add import add_base
from eridiff.caching.latents.vae_drift import vae_drift_values
from eridiff.caching.text_drift import text_drift_values
from eridiff.core.errors import BaseError, DataError, TrainError
from eridiff.family import load_family
from eridiff.formats.safetensors import RawTensor, TensorFile, raw_tensor, write_tensors
from eridiff.models.load import load_text_encoders, load_vae
from eridiff.params.latents import LatentParams
from eridiff.params.sample import Prompt, SampleParams
from eridiff.params.text import TextParams
from eridiff.sampling.draw import draw, embed_prompts
from eridiff.sampling.sample import load_drawing
from eridiff.training.train import _refuse_nonfinite
from eridiff.weights.nonfinite import BITS, CHUNK, blame, find_broken, first_layer, first_weight
from tests.support import training
from tests.support.bases import FAMILIES, source
from tests.support.checkouts import SMALL, make_checkout
from tests.support.originals import CHECKPOINT, write_checkpoint

CPU = torch.device("cpu")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_checkout(tmp_path / "checkout", monkeypatch)


@pytest.mark.parametrize("dtype", BITS)
def test_every_number_of_a_format_as_torch_says(dtype: str) -> None:
    """All bit patterns of one and two bytes; of larger formats the ends of their ranges."""
    kind = DTYPES[dtype]
    size = torch.empty(0, dtype=kind).element_size()
    if size <= 2:
        whole = torch.arange(256**size, dtype=torch.int32).to({1: torch.uint8, 2: torch.uint16}[size]).view(kind)
    else:
        limits = torch.finfo(kind)
        ends = [limits.max, limits.tiny, 0.0, float("inf"), float("nan")]
        whole = torch.tensor([sign * end for end in ends for sign in (1, -1)], dtype=kind)
    expected = whole.to(torch.float64)
    bad = ~expected.isfinite()
    found = find_broken("w", raw_tensor(whole))
    assert found is not None and (found.count, found.total) == (int(bad.sum()), len(whole))
    assert found.kinds == ("NaN and inf" if expected.isinf().any() else "NaN")
    assert find_broken("w", raw_tensor(whole[~bad])) is None
    assert find_broken("w", raw_tensor(whole[:0])) is None


def test_whole_numbers_are_finite_and_chunks_are_all_seen() -> None:
    assert find_broken("w", RawTensor("I64", (1,), b"\xff" * 8)) is None
    numbers = np.zeros(3 * CHUNK + 5, np.float16)
    numbers[[CHUNK - 1, CHUNK, -1]] = np.nan, np.inf, -np.inf
    found = find_broken("w", RawTensor("F16", numbers.shape, numbers.tobytes()))
    assert found is not None and found.described() == f"w (3 of {len(numbers)} numbers: NaN and inf)"


def spoil(path: Path, name: str, value: float) -> None:
    """Put a number into a tensor of a file, in place."""
    file = TensorFile(path)
    tensors = {name: file.raw(name) for name in file.names}
    old = tensors[name].torch()
    old.view(-1)[1] = value
    write_tensors(path, {**tensors, name: raw_tensor(old)}, {})


@pytest.mark.parametrize(
    ("component", "name", "value", "kinds"),
    [
        ("unet", "mid_block.resnets.0.conv1.weight", float("nan"), "NaN"),
        ("vae", "decoder.conv_out.weight", float("inf"), "inf"),
        ("text_encoder_2", "text_projection.weight", float("nan"), "NaN"),
    ],
)
def test_base_add_names_file_and_tensor_of_a_folder(
    component: str, name: str, value: float, kinds: str, checkout: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(SMALL / "bases" / "tiny-sdxl", tmp_path / "m"))
    (path,) = (folder / component).glob("*.safetensors")
    spoil(path, name, value)
    for _ in range(2):  # the second time it is remembered
        with pytest.raises(BaseError) as error:
            add_base("b", [folder])
        assert f"{path}: weights of {component} are not finite: {name} (1 of " in str(error.value)
        assert f" numbers: {kinds})." in str(error.value)
    assert not (checkout / "data" / "bases" / "b").exists()


def test_base_add_names_file_and_tensor_of_a_checkpoint(checkout: Path, tmp_path: Path) -> None:
    """By the file's own names; a tensor that the base does not read may hold what it likes."""
    path = write_checkpoint(tmp_path / "m.safetensors", "sdxl", CHECKPOINT)
    file = TensorFile(path)
    tensors = {name: file.raw(name) for name in file.names}
    nan = RawTensor("F32", (), struct.pack("<f", float("nan")))
    write_tensors(path, {**tensors, "model_ema.decay": nan}, {})
    add_base("sound", [path], config=SMALL / "bases" / "tiny-sdxl")
    name = "model.diffusion_model.out.2.bias"
    spoil(path, name, float("nan"))
    with pytest.raises(BaseError, match=rf"m\.safetensors: weights of unet are not finite: {name} \(1 of 4 "):
        add_base("b", [path], config=SMALL / "bases" / "tiny-sdxl")


class Pair(nn.Module):
    """Two layers, the second of which overflows fp16."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        with torch.no_grad():
            self.second.weight.fill_(1e38)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.second(self.first(x) + 1e38)
        return answer


def test_the_first_layer_is_named() -> None:
    pair = Pair()
    assert first_weight(pair) is None
    assert first_layer({"unet": pair}, lambda: pair(torch.ones(1, 2))) == "unet.second"
    assert first_layer({"unet": pair.first}, lambda: pair.first(torch.ones(1, 2))) is None
    assert not pair.second._forward_hooks
    said = blame({"unet": pair}, "precision", "fp16", lambda: pair(torch.ones(1, 2)))
    assert said == (
        "All weights are finite; the first layer that was not is unet.second. precision is fp16, whose range is small: "
        "take bf16 or fp32."
    )


def test_advice_follows_what_is_set() -> None:
    pair = Pair()
    assert "fp32 may do" in blame({"unet": pair}, "x.dtype", "bf16")
    plain = blame({"unet": pair}, "x.dtype", "fp32")
    assert "x.dtype is fp32 already" in plain and "fp16" not in plain
    with torch.no_grad():
        pair.first.bias[0] = float("nan")
    for dtype in ("fp16", "fp32"):
        said = blame({"vae": nn.Linear(1, 1), "unet": pair}, "x.dtype", dtype)
        assert said.startswith("The weights of unet are not finite themselves: first.bias is the first such tensor")
        assert "dtype" not in said


def test_an_encoder_with_nan_is_not_blamed_on_a_dtype() -> None:
    family = load_family("sdxl")
    encoders = load_text_encoders(family, source("sdxl"), torch.float32)
    with torch.no_grad():
        encoders.encoders["text_encoder_2"].text_model.final_layer_norm.weight[0] = float("nan")  # type: ignore[union-attr,index,union-attr]
    with pytest.raises(DataError) as error:
        text_drift_values(TextParams(dtype="fp32"), family, encoders, CPU)
    assert "The weights of text_encoder_2 are not finite themselves: text_model.final_layer_norm" in str(error.value)
    assert "fp16" not in str(error.value)


def test_a_vae_that_overflows_names_its_layer() -> None:
    vae = load_vae(load_family("flux"), source("flux"), torch.float32)
    with torch.no_grad():
        vae.encoder.conv_in.weight.mul_(3e38)  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"the first layer that was not is vae\.encoder\.conv_in.* fp32 already"):
        vae_drift_values(LatentParams(), vae, CPU)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_an_infinite_decoder_draws_nothing(family: str) -> None:
    """The pipeline cuts its pixels to 0..1, where inf is white: the decoder's own answer is looked at."""
    module = load_family(family)
    chosen = SampleParams(
        prompts=(Prompt(prompt="a fox"),), steps=1, size=(32, 32), precision="fp32", max_tokens=module.MAX_TOKENS[-1]
    )
    prompt = chosen.prompts[0]
    embeds = embed_prompts(module, source(family), chosen, [prompt], CPU)
    pipeline = load_drawing(chosen, module, source(family), CPU)
    draw(pipeline, chosen, prompt, embeds[prompt], 0)
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.bias[0] = float("inf")
    with pytest.raises(DataError, match=r"for 'a fox'\. The weights of vae are not finite .*decoder\.conv_out\.bias"):
        draw(pipeline, chosen, prompt, embeds[prompt], 0)
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.bias[0] = 3.4e38
        pipeline.vae.decoder.conv_out.weight.mul_(0).add_(3e38)
    with pytest.raises(DataError, match=r"the first layer that was not is vae\.decoder\.conv_out\. precision is fp32"):
        draw(pipeline, chosen, prompt, embeds[prompt], 0)
    broken = {name: torch.full_like(tensor, float("nan")) for name, tensor in embeds[prompt].items()}
    with pytest.raises(DataError, match=r"The text encoders gave such numbers for the prompt already"):
        draw(pipeline, chosen, prompt, broken, 0)


@pytest.mark.slow
def test_a_base_with_nan_is_not_blamed_on_the_learning_rate() -> None:
    run = training.start("sdxl", training.params_of({}))
    bad: dict[str, Any] = {"loss": float("nan"), "grad_norm": float("nan")}
    with pytest.raises(TrainError) as error:
        _refuse_nonfinite(run, bad, 1)
    assert "optimizer.lr" not in str(error.value) and "does not bear these pictures" in str(error.value)
    with pytest.raises(
        TrainError, match=r"step 7: .*Nothing of this step is kept\. .*Try a lower train\.optimizer\.lr"
    ):
        _refuse_nonfinite(run, bad, 7)
    name, weight = next(item for item in run.denoiser.named_parameters() if ".lora_" not in item[0])
    with torch.no_grad():
        weight.view(-1)[0] = float("nan")
        for adapter in run.adapters.values():
            adapter.fill_(float("nan"))  # as the optimizer leaves them
    with pytest.raises(TrainError) as error:
        _refuse_nonfinite(run, bad, 7)
    assert f"The weights of unet are not finite themselves: {name} is the first such tensor" in str(error.value)
    assert "optimizer.lr" not in str(error.value)
