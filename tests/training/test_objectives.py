"""Noise levels, noisy latents, targets and weights against diffusers' schedulers and closed forms."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3, compute_snr
from torch import Tensor

from eridiff.core.config import validate
from eridiff.core.errors import BaseError, ConfigError
from eridiff.params.train import DdpmParams, FlowParams
from eridiff.training.objectives import Ddpm, Flow, alphas_cumprod, elementwise_loss

SDXL = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TIMES = torch.tensor([0, 1, 250, 500, 998, 999])
ZERO = torch.zeros(())


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X0, NOISE = normal(1, 6, 4, 8, 8), normal(2, 6, 4, 8, 8)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        {"rescale_betas_zero_snr": True},
        {"trained_betas": np.linspace(1e-4, 0.03, 1000).tolist()},
    ],
    ids=["scaled_linear", "linear", "zero_snr", "trained"],
)
def test_ddpm_equals_diffusers(prediction: str, changes: dict[str, Any]) -> None:
    config = {**SDXL, "prediction_type": prediction, **changes}
    if prediction == "epsilon" and "rescale_betas_zero_snr" in changes:
        with pytest.raises(BaseError, match=r"zero terminal SNR .*'epsilon': .*predicts v"):
            Ddpm(config, DdpmParams())
        return
    theirs = DDPMScheduler.from_config(config)
    ours = Ddpm(config, DdpmParams()).mix(X0, NOISE, TIMES, ZERO, ZERO)
    assert (ours.noisy_latents - theirs.add_noise(X0, NOISE, TIMES)).abs().max() <= 1e-6
    target = NOISE if prediction == "epsilon" else theirs.get_velocity(X0, NOISE, TIMES)
    assert (ours.target - target).abs().max() <= 1e-6
    assert ours.loss_weight.tolist() == [1.0] * 6


def test_zero_terminal_snr_ends_in_pure_noise() -> None:
    config = {**SDXL, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    abar = alphas_cumprod(config)
    assert abar[999].item() == 0
    assert abar[0].item() == pytest.approx(alphas_cumprod(SDXL)[0].item(), rel=1e-6)
    mixed = Ddpm(config, DdpmParams()).mix(X0[:1], NOISE[:1], torch.tensor([999]), ZERO, ZERO)
    assert torch.equal(mixed.noisy_latents, NOISE[:1])
    assert torch.equal(mixed.target, -X0[:1])


def test_unknown_schedules_are_refused() -> None:
    with pytest.raises(BaseError, match=r"beta_schedule 'squaredcos_cap_v2'\. Known: linear, scaled_linear"):
        alphas_cumprod({"beta_schedule": "squaredcos_cap_v2"})
    with pytest.raises(BaseError, match=r"predicts 'sample'\. Known: epsilon, v_prediction"):
        Ddpm({**SDXL, "prediction_type": "sample"}, DdpmParams())


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr(prediction: str, gamma: float) -> None:
    config = {**SDXL, "prediction_type": prediction}
    params = DdpmParams(loss_weight="min_snr", min_snr_gamma=gamma)
    weight = Ddpm(config, params).mix(X0, NOISE, TIMES, ZERO, ZERO).loss_weight
    snr = compute_snr(DDPMScheduler.from_config(config), TIMES).double()
    expected = torch.minimum(snr, torch.tensor(gamma)) / (snr if prediction == "epsilon" else snr + 1)
    assert torch.allclose(weight.double(), expected, rtol=1e-4)
    assert weight[0] < weight[3]  # little noise, little weight


@pytest.mark.parametrize("weight", ["min_snr", "debiased"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_weights_are_finite_at_snr_zero(prediction: str, weight: Any) -> None:
    ends = {"trained_betas": [*np.linspace(1e-4, 0.03, 999).tolist(), 1.0]}  # betas of one's own, to pure noise
    v = prediction == "v_prediction"
    config = {**SDXL, **({"rescale_betas_zero_snr": True} if v else ends), "prediction_type": prediction}
    mixed = Ddpm(config, DdpmParams(loss_weight=weight)).mix(X0, NOISE, TIMES, ZERO, ZERO)
    assert mixed.loss_weight.isfinite().all()
    assert (mixed.loss_weight >= 0).all()


def test_debiased() -> None:
    abar = alphas_cumprod(SDXL)[TIMES].double()
    snr = abar / (1 - abar)
    for prediction, expected in (("epsilon", snr.clamp(max=1000) ** -0.5), ("v_prediction", 1 / (snr + 1))):
        ddpm = Ddpm({**SDXL, "prediction_type": prediction}, DdpmParams(loss_weight="debiased"))
        assert torch.allclose(ddpm.mix(X0, NOISE, TIMES, ZERO, ZERO).loss_weight.double(), expected, rtol=1e-4)


def test_noise_offset_and_input_perturbation() -> None:
    """The target knows of the offset, [B, C, 1, 1], and not of the perturbation."""
    offset, perturbation = normal(3, 6, 4, 1, 1), normal(4, 6, 4, 8, 8)
    params = DdpmParams(noise_offset=0.1, input_perturbation=0.2)
    mixed = Ddpm(SDXL, params).mix(X0, NOISE, TIMES, offset, perturbation)
    shifted = NOISE + 0.1 * offset
    assert torch.allclose(mixed.target, shifted, atol=1e-6)
    theirs = DDPMScheduler.from_config(SDXL).add_noise(X0, shifted + 0.2 * perturbation, TIMES)
    assert torch.allclose(mixed.noisy_latents, theirs, atol=1e-6)


def test_timesteps_are_uniform_within_their_bounds() -> None:
    uniform = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    drawn = Ddpm(SDXL, DdpmParams()).draw_level(uniform, 256)
    assert torch.bincount(drawn, minlength=1000).tolist() == [100] * 1000
    drawn = Ddpm(SDXL, DdpmParams(timestep_min=200, timestep_max=209)).draw_level(uniform, 256)
    assert torch.bincount(drawn).nonzero().flatten().tolist() == list(range(200, 210))
    assert torch.bincount(drawn)[200:].tolist() == [10_000] * 10


def test_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'train\.ddpm': timestep_min 900 is above timestep_max 100"):
        validate(DdpmParams, {"timestep_min": 900, "timestep_max": 100}, where="params.yaml", prefix="train.ddpm")
    with pytest.raises(ConfigError, match=r"'train\.flow': sigma_min 0.9 is above sigma_max 0.1"):
        validate(FlowParams, {"sigma_min": 0.9, "sigma_max": 0.1}, where="params.yaml", prefix="train.flow")


def test_flow_equals_diffusers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    timesteps = scheduler.timesteps[[0, 1, 250, 500, 998, 999]]
    sigma = timesteps / 1000
    mixed = Flow({}, FlowParams()).mix(X0, NOISE, sigma, ZERO, ZERO)
    theirs = torch.cat([scheduler.scale_noise(X0[i : i + 1], timesteps[i : i + 1], NOISE[i : i + 1]) for i in range(6)])
    assert (mixed.noisy_latents - theirs).abs().max() <= 1e-6
    assert torch.equal(mixed.target, NOISE - X0)
    back = mixed.noisy_latents - sigma.view(-1, 1, 1, 1) * mixed.target
    assert (back - X0).abs().max() <= 1e-6


U = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000  # the quantiles of a uniform draw


def normal_cdf(x: Tensor) -> Tensor:
    return torch.special.ndtr(x)


def integrated(density: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    grid = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    sums = torch.cumulative_trapezoid(density(grid), grid)
    table = torch.cat([torch.zeros(1, dtype=torch.float64), sums]).numpy()
    assert table[-1] == pytest.approx(1, abs=1e-4)
    return lambda x: torch.from_numpy(np.interp(x.numpy(), grid.numpy(), table))


def mode_cdf(scale: float) -> Callable[[Tensor], Tensor]:
    """Esser et al. 2024, section 3.1: t = f(u), f falls; so P(t <= x) = 1 - the inverse of f at x."""
    u = np.linspace(0, 1, 100_001)
    f = 1 - u - scale * (np.cos(np.pi / 2 * u) ** 2 - 1 + u)
    return lambda x: torch.from_numpy(1 - np.interp(x.numpy(), f[::-1], u[::-1]))


DENSITIES: dict[str, tuple[FlowParams, Callable[[Tensor], Tensor]]] = {
    "uniform": (FlowParams(density="uniform"), lambda x: x),
    "logit_normal": (FlowParams(), lambda x: normal_cdf(torch.logit(x))),
    "moved": (FlowParams(logit_mean=-0.7, logit_std=1.4), lambda x: normal_cdf((torch.logit(x) + 0.7) / 1.4)),
    "mode": (FlowParams(density="mode"), mode_cdf(1.29)),
    "mode 0.8": (FlowParams(density="mode", mode_scale=0.8), mode_cdf(0.8)),
    "cosmap": (
        FlowParams(density="cosmap"),
        integrated(lambda t: 2 / (math.pi - 2 * math.pi * t + 2 * math.pi * t**2)),
    ),
    "shift 3": (FlowParams(density="uniform", shift=3.0), lambda x: x / (3 - 2 * x)),
    "bounds": (FlowParams(density="uniform", sigma_min=0.2, sigma_max=0.6), lambda x: ((x - 0.2) / 0.4).clamp(0, 1)),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_density_of_sigmas(name: str) -> None:
    """Kolmogorov-Smirnov distance of the draws from the analytic distribution."""
    params, cdf = DENSITIES[name]
    sigma = Flow({}, params).draw_level(U, 256)
    assert sigma.dtype == torch.float32
    ordered = sigma.double().sort().values
    distance = (cdf(ordered) - U).abs().max().item()
    assert distance < 2e-4
    assert params.sigma_min <= ordered[0] < ordered[-1] <= params.sigma_max


def test_a_larger_logit_mean_is_more_noise() -> None:
    """The opposite of diffusers, whose density draws an index into descending timesteps."""
    means = [Flow({}, FlowParams(logit_mean=mean)).draw_level(U, 256).mean().item() for mean in (-1.0, 0.0, 1.0)]
    assert means[0] < 0.35
    assert means[1] == pytest.approx(0.5, abs=1e-4)
    assert means[2] > 0.65
    torch.manual_seed(0)
    index = (compute_density_for_timestep_sampling("logit_normal", 20_000, 1.0, 1.0) * 1000).long()
    theirs = FlowMatchEulerDiscreteScheduler(shift=1.0).timesteps[index] / 1000
    assert theirs.mean().item() == pytest.approx(means[0], abs=0.01)


def test_resolution_shift_equals_diffusers() -> None:
    config = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
    other = {"base_image_seq_len": 100, "max_image_seq_len": 1000, "base_shift": 0.1, "max_shift": 2.0}
    for given, known in ((config, config), ({}, config), (other, other)):
        for tokens in (256, 1024, 3000, 4096):
            mu = calculate_shift(
                tokens, known["base_image_seq_len"], known["max_image_seq_len"], known["base_shift"], known["max_shift"]
            )
            flow = Flow(given, FlowParams(density="uniform", shift="resolution"))
            theirs = FlowMatchEulerDiscreteScheduler().time_shift(mu, 1.0, U)
            assert (flow.draw_level(U, tokens) - theirs).abs().max() < 1e-6


def test_flow_weights_equal_diffusers() -> None:
    sigma = torch.linspace(0.01, 1, 6)
    for name in ("none", "sigma_sqrt", "cosmap"):
        ours = Flow({}, FlowParams(loss_weight=name)).mix(X0, NOISE, sigma, ZERO, ZERO).loss_weight  # type: ignore[arg-type]
        assert torch.allclose(ours, compute_loss_weighting_for_sd3(name, sigmas=sigma).float(), rtol=1e-6)
    weight = Flow({}, FlowParams(loss_weight="sigma_sqrt")).mix(X0, NOISE, sigma * 0, ZERO, ZERO).loss_weight
    assert weight.isfinite().all()


def test_losses_of_elements() -> None:
    """Huber forms as in diffusers' and kohya's scripts (Song and Dhariwal 2023), against squares and absolutes."""
    pred, target = torch.tensor([0.0, 1e-3, 0.5, -30.0]), torch.zeros(4)
    assert torch.equal(elementwise_loss("mse", 0.1, pred, target), pred**2)
    root = (pred**2 + 0.1**2).sqrt() - 0.1
    assert torch.allclose(elementwise_loss("huber", 0.1, pred, target), 2 * 0.1 * root, atol=1e-8)
    assert torch.allclose(elementwise_loss("smooth_l1", 0.1, pred, target), 2 * root, atol=1e-7)
    near = elementwise_loss("huber", 10.0, pred[:3], target[:3])
    assert torch.allclose(near, pred[:3] ** 2, rtol=2e-3, atol=0)  # a wide delta: squares
    far = elementwise_loss("smooth_l1", 1e-4, pred[2:], target[2:])
    assert torch.allclose(far, 2 * pred[2:].abs(), rtol=1e-3)  # a narrow one: absolutes
    assert elementwise_loss("mse", 0.1, pred.bfloat16(), target.bfloat16()).dtype == torch.float32
