"""Samplers by name: a family's table names a diffusers class and what it changes in the base's config."""

from collections.abc import Mapping
from typing import Any

from eridiff.errors import ConfigError, did_you_mean

Spec = tuple[str, Mapping[str, Any]]  # class name, changes of the base's scheduler config


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
