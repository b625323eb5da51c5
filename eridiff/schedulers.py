"""Samplers by name: a family's table names a diffusers class and what it changes in the base's config."""

from collections.abc import Mapping
from typing import Any

from eridiff.errors import BaseError, ConfigError, did_you_mean

Spec = tuple[str, Mapping[str, Any]]  # class name, changes of the base's scheduler config

PREDICTIONS = ("epsilon", "v_prediction")
BETA_SCHEDULES = ("linear", "scaled_linear")
# Of continuous noise levels: neither trained on nor drawn with. Values that change nothing.
CONTINUOUS: Mapping[str, tuple[Any, ...]] = {
    "sigma_data": (None,),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "timestep_type": (None, "discrete"),
    "use_flow_sigmas": (None, False),
}


def refuse_schedule(config: Mapping[str, Any], objective: str, where: str) -> None:
    """Refuse a scheduler's config, or a class of schedulers, that names an objective which is not trained.

    objective: the family's, `ddpm` or `flow`. where: whose config it is, in words.
    Raises: BaseError that names key and value.
    """
    kind = str(config.get("_class_name", ""))
    flows = kind.startswith("FlowMatch") or config.get("use_flow_sigmas") is True
    if kind and (flows != (objective == "flow") or kind.startswith("EDM")):
        what = "a rectified flow" if objective == "flow" else "diffusion over discrete noise levels"
        raise BaseError(f"{where}: its scheduler is a {kind}, and models of this family are trained as {what}.")
    if objective == "flow":
        return
    prediction, betas = config.get("prediction_type", "epsilon"), config.get("beta_schedule", "linear")
    if prediction not in PREDICTIONS:
        raise BaseError(f"{where}: the scheduler predicts '{prediction}'. Known: {', '.join(PREDICTIONS)}.")
    if betas not in BETA_SCHEDULES and config.get("trained_betas") is None:
        raise BaseError(f"{where}: the scheduler has beta_schedule '{betas}'. Known: {', '.join(BETA_SCHEDULES)}.")
    for key, plain in CONTINUOUS.items():
        if config.get(key) not in plain:
            raise BaseError(
                f"{where}: the scheduler has {key} {config[key]!r}: noise levels that are not the betas', which "
                "eridiff has no objective for. Take another model."
            )
    if config.get("rescale_betas_zero_snr") and prediction != "v_prediction":
        raise BaseError(
            f"{where}: zero terminal SNR (ztsnr, rescale_betas_zero_snr) together with prediction_type '{prediction}': "
            "at the last noise level the input is the noise, so that there is nothing to learn and nothing to draw "
            "from. A model of this kind predicts v: take the file whose marks say so, or name a folder with the right "
            "scheduler_config.json: --config FOLDER."
        )


def make_scheduler(specs: Mapping[str, Spec], name: str, config: Mapping[str, Any]) -> Any:
    """A scheduler of the given name over the base's own noise schedule.

    Raises: ConfigError for a name that the family does not have.
    """
    import diffusers

    if name not in specs:
        raise ConfigError(f"params.yaml: sample.scheduler is '{name}'.{did_you_mean(name, specs)}")
    kind, changes = specs[name]
    if kind == "FlowHeun":
        return flow_heun({**config, **changes})
    return getattr(diffusers, kind).from_config({**config, **changes})


def flow_heun(config: Mapping[str, Any]) -> Any:
    """Heun's method on the noise levels that the base's Euler scheduler would use.

    diffusers' own Heun scheduler takes no sigmas and no resolution shift (mu), which some pipelines pass; here
    Euler's schedule is computed by diffusers and every inner level is visited twice. Order 2, 2 N - 1 calls.
    """
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

    class FlowHeun(FlowMatchHeunDiscreteScheduler):  # type: ignore[misc]
        """FlowMatchHeunDiscreteScheduler over the sigmas of FlowMatchEulerDiscreteScheduler."""

        def set_timesteps(
            self,
            num_inference_steps: int | None = None,
            device: Any = None,
            sigmas: Any = None,
            mu: float | None = None,
        ) -> None:
            """Sigmas s0 s1 s1 s2 s2 ... 0, timesteps to match (see diffusers)."""
            euler.set_timesteps(num_inference_steps, device=device, sigmas=sigmas, mu=mu)
            levels = euler.sigmas  # [N + 1], the last is 0
            self.num_inference_steps = len(levels) - 1
            self.sigmas = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
            times = euler.timesteps
            self.timesteps = torch.cat([times[:1], times[1:].repeat_interleave(2)])
            self.prev_derivative = self.dt = None
            self._step_index = self._begin_index = None

    euler = FlowMatchEulerDiscreteScheduler.from_config(dict(config))
    heun = FlowHeun(shift=1.0)
    heun.register_to_config(**{k: v for k, v in euler.config.items() if not k.startswith("_")})
    return heun
