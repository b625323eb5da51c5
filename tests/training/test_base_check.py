"""The check of a base before training: what knows the pictures passes, what does not is refused by name."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from eridiff.core.errors import BaseError
from eridiff.family import load_family
from eridiff.params.model import ModelParams
from eridiff.training import base_check as basecheck
from eridiff.training.base_check import check_denoiser, check_vae, find_vae, measure_denoiser, measure_vae
from eridiff.training.data import TrainingSet
from eridiff.training.objectives import Ddpm
from tests.support.bases import FAMILIES, source
from tests.support.training import CPU, params_of, random_set, start


class Known(TrainingSet):
    """Samples whose latents are all the same, so that a predictor may know them by heart."""

    def batch(self, numbers: list[int], step: int, first_index: int) -> Any:
        batch = super().batch(numbers, step, first_index)
        mean = torch.linspace(-1, 1, batch.mean[0].numel()).reshape(batch.mean.shape)
        return type(batch)(**{**vars(batch), "mean": mean})


def prepared(family: str, folder: Path) -> tuple[Any, TrainingSet]:
    params = params_of()
    data = random_set(family, folder, params, sizes=((128, 128), (96, 160)))
    data.__class__ = Known
    return start(family, params), data


def oracle(run: Any, data: TrainingSet, error: float = 0.0) -> Any:
    """The run with a denoiser that knows the latents, and misses the answer by an error of this size."""

    def predict(denoiser: Any, noisy: Tensor, level: Tensor, text: Any, sizes: Any, guidance: float) -> Tensor:
        number = next(i for i, s in enumerate(data.samples) if s.bucket == sizes.target)
        latents = (data.batch([number], 0, 0).mean - run.shift_factor) * run.scaling_factor
        if isinstance(run.objective, Ddpm):
            abar = run.objective.alphas_cumprod[level]
            answer = (noisy - abar.sqrt() * latents) / (1 - abar).sqrt()
        else:
            answer = (noisy - (1 - level) * latents) / level - latents
        return answer + error

    run.family = SimpleNamespace(**{**vars(load_family(FAMILIES[0])), "predict": predict})
    return run


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_one_that_knows_the_pictures_passes(family: str, tmp_path: Path) -> None:
    run, data = prepared(family, tmp_path)
    line = check_denoiser(oracle(run, data), data)
    assert line.startswith("base check: loss of the plain base 0.000 (trivial ")
    assert line.count("trivial") == 3 and line.endswith(" at 75% noise")
    levels = measure_denoiser(oracle(run, data, error=0.25), data)
    assert [round(level.loss, 4) for level in levels] == [0.0625] * 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_random_weights_are_refused(family: str, tmp_path: Path) -> None:
    run, data = prepared(family, tmp_path)
    with pytest.raises(
        BaseError, match=r"knows no more than how to scale noise\. This base was not loaded right.*false"
    ):
        check_denoiser(run, data)
    again = [vars(level) for level in measure_denoiser(run, data)]
    assert again == [vars(level) for level in measure_denoiser(run, data)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_scaling_the_input_is_what_must_be_beaten(family: str, tmp_path: Path) -> None:
    """The best scale by least squares over all elements gives the trivial loss, and any other scale a larger one."""
    run, data = prepared(family, tmp_path)
    seen: list[tuple[Tensor, Tensor]] = []
    mix = run.objective.mix

    def note(*arguments: Any) -> Any:
        mixed = mix(*arguments)
        seen.append((mixed.noisy_latents.flatten().double(), mixed.target.flatten().double()))
        return mixed

    run.objective.mix = note
    levels = measure_denoiser(run, data)
    each = len(seen) // 3
    for place, level in enumerate(levels):
        x, t = (torch.cat(parts) for parts in zip(*seen[place * each : (place + 1) * each], strict=True))
        best = (x @ t) / (x @ x)
        assert level.trivial == pytest.approx(float(((t - best * x) ** 2).mean()), rel=1e-9)
        assert level.trivial < float(((t - (best + 0.1) * x) ** 2).mean())


def test_not_a_number_does_not_pass(tmp_path: Path) -> None:
    run, data = prepared(FAMILIES[0], tmp_path)
    with pytest.raises(BaseError, match=r"loss of the plain base nan"):
        check_denoiser(oracle(run, data, error=float("nan")), data)
    run.params = run.params.model_copy(update={"precision": "fp16"})
    with pytest.raises(BaseError, match=r"All weights are finite\. train\.precision is fp16, .*take bf16 or fp32"):
        check_denoiser(run, data)


class Vae:
    """Decodes to itself and encodes with a gain."""

    def __init__(self, gain: float) -> None:
        self.gain = gain

    def decode(self, latents: Tensor, return_dict: bool) -> tuple[Tensor]:
        return (latents,)

    def encode(self, pixels: Tensor) -> Any:
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=self.gain * pixels))


@pytest.mark.parametrize(("gain", "share"), [(1.0, 1.0), (0.9, 0.99), (0.0, 0.0), (-1.0, -3.0)])
def test_what_survives_the_vae(gain: float, share: float, tmp_path: Path) -> None:
    data = random_set(FAMILIES[0], tmp_path, params_of())
    assert measure_vae(Vae(gain), data, CPU) == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_vae_is_refused(family: str, tmp_path: Path) -> None:
    data = random_set(family, tmp_path, params_of())
    with pytest.raises(
        BaseError, match=r"% of latent variance survives the VAE round trip, and 25% must\. This base was not"
    ):
        check_vae(source(family), load_family(family), data, CPU)


def test_large_latents_are_checked_in_their_middle() -> None:
    latents = torch.arange(100.0).expand(1, 2, 80, 100)
    middle = basecheck._middle(latents)
    assert middle.shape == (1, 2, 64, 64)
    assert middle[0, 0, 0, 0] == 18
    assert basecheck._middle(latents[..., :20, :30]).shape == (1, 2, 20, 30)


def test_samples_are_spread_over_the_set() -> None:
    assert basecheck._spread(3, 10) == [0, 1, 2]
    assert basecheck._spread(100, 10) == list(range(0, 100, 10))


def test_a_vae_that_is_not_here_is_not_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = f"tiny-{FAMILIES[0]}"
    model = ModelParams(family=FAMILIES[0], base=base)
    assert find_vae(model) is not None
    (tmp_path / "eridiff" / "families").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    place = Path(__file__).parent.parent / "small" / "bases" / base
    copy = shutil.copytree(place, tmp_path / "data" / "bases" / base)
    (weights,) = (copy / "vae").glob("*.safetensors")
    weights.rename(tmp_path / "away.safetensors")
    assert find_vae(model) is None
    data = bytearray((tmp_path / "away.safetensors").read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BaseError, match="is not what the pointer"):
        find_vae(model)
