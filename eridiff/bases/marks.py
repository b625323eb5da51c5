"""Marks: what a base's files say of its objective, and the scheduler's config that follows from it.

Programs mark a fine-tune in three places: tensors that are no weights (`v_pred`, `ztsnr`), keys of the metadata, and a
scheduler's config beside the file. Of marks that differ the one counts that programs go by: a tensor, then the
scheduler's config, then the metadata. What eridiff cannot train and draw with is refused by name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from eridiff.core.errors import BaseError
from eridiff.weights.files import Found, Weights
from eridiff.weights.schedules import refuse_schedule

Objective = Literal["ddpm", "flow"]
Config = Mapping[str, Any]

PREDICTION = "prediction_type"
V = {PREDICTION: "v_prediction"}
EPSILON = {PREDICTION: "epsilon"}
# Betas so that the last noise level is noise alone; then sampling must start at that level, which only trailing does.
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
TENSORS: Mapping[str, Config] = {"v_pred": V, "ztsnr": ZERO_SNR}
EDM = ("edm_vpred.sigma_max", "edm_vpred.sigma_min", "edm_mean", "edm_std")
EDM_REFUSAL = "it is trained on continuous noise levels (EDM), which eridiff has no objective for. Take another model"
# Keys of the metadata: ModelSpec's, ComfyUI's, and those of sd-scripts.
PREDICTION_KEYS = ("modelspec.prediction_type", "modelspec.predict_key", "prediction_type")
SWITCHES: Mapping[str, Config] = {"ss_v_parameterization": V, "ss_zero_terminal_snr": ZERO_SNR}
PREDICTIONS: Mapping[str, Config] = {
    **dict.fromkeys(("v", "v_prediction", "v-prediction", "vpred", "v_pred", "velocity"), V),
    **dict.fromkeys(("epsilon", "eps", "noise"), EPSILON),
}
SCHEDULER_FILES = ("scheduler_config.json", "scheduler/scheduler_config.json")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One thing that files say of the objective."""

    where: str  # in words: `tensor v_pred`
    changes: Config = field(default_factory=dict)  # of the scheduler's config
    refusal: str = ""  # why this is no base, where it is none


def find_marks(weights: Weights, objective: Objective, prefix: str = "") -> list[Mark]:
    """What a denoiser's files say, the marks that count first.

    prefix: of the denoiser's tensors, below which marks may stand too.
    """
    names = {name.removeprefix(prefix) for name in weights.where}
    edm = [name for name in EDM if name in names]
    found = [Mark(where=f"tensor {name}", refusal=EDM_REFUSAL) for name in edm]
    tensors = [Mark(where=f"tensor {name}", changes=changes) for name, changes in TENSORS.items() if name in names]
    if objective == "flow":
        what = "it belongs to a diffusion model, and this is a rectified flow. Take the file that its makers published"
        return found + [Mark(where=mark.where, refusal=what) for mark in tensors]
    metadata = {key: value for file in weights.files for key, value in file.metadata.items()}
    return [*found, *tensors, *_metadata_marks(metadata)]


def _metadata_marks(metadata: Mapping[str, str]) -> Iterator[Mark]:
    """What the metadata of a diffusion model's file say."""
    for key in PREDICTION_KEYS:
        if value := metadata.get(key, ""):
            changes = PREDICTIONS.get(value.strip().lower())
            refusal = "" if changes else "it predicts what eridiff has no objective for. Known: epsilon, v"
            yield Mark(where=f"metadata {key}: {value[:40]}", changes=changes or {}, refusal=refusal)
    for key, changes in SWITCHES.items():
        if metadata.get(key, "").strip().lower() in ("true", "1"):
            yield Mark(where=f"metadata {key}", changes=changes)


def denoiser_marks(found: Found, objective: Objective) -> list[Mark]:
    """The marks of one component that was found in files."""
    return find_marks(found.weights, objective, found.prefix)


def scheduler_beside(path: Path) -> Path | None:
    """A scheduler's config beside a weight file, or in the model folder of which the file is a part."""
    folder, model = path.parent, path.parent.parent
    places = [folder / name for name in SCHEDULER_FILES]
    places += [model / SCHEDULER_FILES[-1]] if (model / "model_index.json").is_file() else []
    return next((place for place in places if place.is_file()), None)


def settle_scheduler(
    config: Config, marks: list[Mark], objective: Objective, where: str, stated: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """The scheduler's config that a base is trained and drawn with, and lines that say which marks made it so.

    stated: the scheduler's config that was given, in words: then the metadata do not count; none: it is the published.
    Raises: BaseError for a mark, or a config, that is not trained, by its name.
    """
    for mark in marks:
        if mark.refusal:
            raise BaseError(f"{where} has the {mark.where}: {mark.refusal}.")
    settled, by, unheeded = dict(config), dict.fromkeys(config, stated), []
    for mark in reversed(marks):  # the first has the last word
        if stated and mark.where.startswith("metadata"):
            unheeded += [mark] if any(config.get(k) != v for k, v in mark.changes.items()) else []
            continue
        settled |= mark.changes
        by |= dict.fromkeys(mark.changes, mark.where)
    unheeded += [mark for mark in marks if mark not in unheeded and _is_overruled(mark, settled)]
    refuse_schedule(settled, objective, f"{where}{_by(by)}")
    lines = [f"objective: {describe_schedule(settled)}{_by(by)}"] if objective == "ddpm" else []
    lines += [f"objective: not heeded: {mark.where}" for mark in unheeded]
    return settled, lines


def _is_overruled(mark: Mark, settled: Config) -> bool:
    return any(settled.get(key) != value for key, value in mark.changes.items())


def _by(by: Mapping[str, str]) -> str:
    """Who says what stands in a config."""
    keys = (PREDICTION, *ZERO_SNR)
    names = dict.fromkeys(by[key] for key in keys if by.get(key))
    return f", by {' and '.join(names)}" if names else ""


def refuse_normalised(vae: Config, where: str) -> None:
    """Refuse a VAE whose latents are normalised channel by channel, since training scales all alike.

    Raises: BaseError that names the key.
    """
    for key in ("latents_mean", "latents_std"):
        if vae.get(key) is not None:
            raise BaseError(
                f"{where}: the VAE's config has {key} {str(vae[key])[:40]}: latents that are normalised channel by "
                "channel, which eridiff does not train on. Take another model."
            )


def describe_schedule(config: Config) -> str:
    """What a diffusion model's scheduler says, in words."""
    words = ["predicts v" if config.get(PREDICTION) == "v_prediction" else "predicts the noise (epsilon)"]
    if config.get("rescale_betas_zero_snr"):
        words.append("zero terminal SNR")
        words.append(f"{config.get('timestep_spacing', 'leading')} timesteps")
    return ", ".join(words)


def unheeded(found: Found, config: Config, objective: Objective) -> list[str]:
    """Tensors of a file that mark an objective which a pointer's scheduler does not have: it is older than the mark.

    Metadata are not looked at: a scheduler's config beside the file may have overruled them.
    """
    marks = [mark for mark in denoiser_marks(found, objective) if mark.where.startswith("tensor")]
    return [mark.where for mark in marks if mark.refusal or _is_overruled(mark, config)]
