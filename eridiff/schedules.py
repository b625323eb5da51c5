"""Noise schedules that are trained and drawn with, by a scheduler's config; what is none of them is refused by name."""

from collections.abc import Mapping
from typing import Any

from eridiff.errors import BaseError

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
