"""The whole of params.yaml, checked at once: every section, and what the sections say of each other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eridiff.bases.licences import read_licences
from eridiff.bases.pointer_files import pointers_of
from eridiff.bases.wanted import how_to_add, is_awaited
from eridiff.core.config import Section, read_yaml, validate
from eridiff.core.errors import ConfigError, EridiffError, did_you_mean
from eridiff.core.progress import warn
from eridiff.family import Family, load_family
from eridiff.params.buckets import BucketParams
from eridiff.params.captions import CaptionParams
from eridiff.params.export import ExportParams
from eridiff.params.latents import LatentParams
from eridiff.params.model import ModelParams
from eridiff.params.sample import SampleParams, check_draw, check_measures, fill_trigger
from eridiff.params.text import TextParams, choose_max_tokens
from eridiff.params.train import TrainParams, kept_steps, refuse_other_objective
from eridiff.weights.pointers import PARTS

SECTIONS: dict[str, type[Section]] = {
    "model": ModelParams,
    "captions": CaptionParams,
    "buckets": BucketParams,
    "latents": LatentParams,
    "text": TextParams,
    "train": TrainParams,
    "sample": SampleParams,
    "export": ExportParams,
}


def check_params(path: Path) -> dict[str, Any]:
    """Check params.yaml as a whole: names and types, then the base's files, then what must fit together.

    Returns its sections by name.

    Raises: ConfigError or BaseError that lists every mistake of the first kind found.
    """
    sections = load_all(path)
    model = sections["model"]
    assert isinstance(model, ModelParams)
    family = load_family(model.family)
    _check_base(model)
    read_licences(model.base)  # it may be written by hand
    _collect([lambda rule=rule: rule(sections, family) for rule in RULES])
    return sections


def _check_base(model: ModelParams) -> None:
    """A base that is wanted stops nothing yet: stages that need its weights say so when they start."""
    if is_awaited(model.base):
        warn(f"{how_to_add(model.base, model.family)} latents, text, train and sample wait for it; the rest runs.")
    else:
        pointers_of(model.base, PARTS, model.family)


def load_all(path: Path) -> dict[str, Any]:
    """Every section of params.yaml by name, validated.

    Raises: ConfigError that lists every unknown, missing or wrong key.
    """
    params = read_yaml(path)
    if not isinstance(params, Mapping):
        raise ConfigError(f"{path} has no sections. Known: {', '.join(SECTIONS)}.")
    sections: dict[str, Any] = {}

    def load(name: str) -> None:
        if name not in params:
            raise ConfigError(f"{path}: section '{name}' is missing.")
        sections[name] = validate(SECTIONS[name], params[name], where=str(path), prefix=name)

    def refuse(name: str) -> None:
        raise ConfigError(f"{path}: unknown section '{name}'.{did_you_mean(name, SECTIONS)}")

    unknown = [lambda name=name: refuse(str(name)) for name in params if name not in SECTIONS]
    _collect([*unknown, *(lambda name=name: load(name) for name in SECTIONS)])
    return sections


def _collect(checks: list[Any]) -> None:
    """Run all checks, then raise their errors as one."""
    messages = []
    for check in checks:
        try:
            check()
        except EridiffError as error:
            messages.append(str(error))
    if messages:
        raise ConfigError("\n       ".join(messages))


def _check_objective(sections: Mapping[str, Any], family: Family) -> None:
    refuse_other_objective(family, sections["train"])


def _check_warmup(sections: Mapping[str, Any], family: Family) -> None:
    train = sections["train"]
    if train.optimizer.warmup_steps > train.steps:
        raise ConfigError(
            f"params.yaml: train.optimizer.warmup_steps is {train.optimizer.warmup_steps}, more than train.steps "
            f"({train.steps}): the learning rate would never be reached."
        )


def _check_targets(sections: Mapping[str, Any], family: Family) -> None:
    targets = sections["train"].lora.targets
    if targets not in family.TARGET_SETS:
        raise ConfigError(f"params.yaml: train.lora.targets is '{targets}'.{did_you_mean(targets, family.TARGET_SETS)}")


def _check_text(sections: Mapping[str, Any], family: Family) -> None:
    choose_max_tokens(sections["text"], family)


def _check_buckets(sections: Mapping[str, Any], family: Family) -> None:
    step = sections["buckets"].step
    if step % family.SIDE_MULTIPLE:
        raise ConfigError(f"params.yaml: buckets.step is {step}: it must be a multiple of {family.SIDE_MULTIPLE}.")


def _check_sample(sections: Mapping[str, Any], family: Family) -> None:
    sample = sections["sample"]
    check_draw(sample, family, sample.prompts, "params.yaml: sample")
    fill_trigger(sample.prompts, sections["captions"].trigger, "params.yaml: sample.prompts")
    check_measures(sample)
    if sample.ema and sections["train"].ema_decay is None:
        raise ConfigError("params.yaml: sample.ema is true, but train.ema_decay is null: no average is trained.")


def _check_checkpoints(sections: Mapping[str, Any], family: Family) -> None:
    train, export = sections["train"], sections["export"]
    kept = kept_steps(train)
    named = [(f"sample.checkpoints[{i}]", step) for i, step in enumerate(sections["sample"].checkpoints)]
    for key, step in [*named, ("export.checkpoint", export.checkpoint)]:
        if isinstance(step, int) and step not in kept:
            raise ConfigError(
                f"params.yaml: {key} is {step}, but with train.steps {train.steps}, save_every {train.save_every} and "
                f"keep {train.keep} the kept checkpoints are {_enumerated(kept)}."
            )
    if export.ema and train.ema_decay is None:
        raise ConfigError("params.yaml: export.ema is true, but train.ema_decay is null: no average is trained.")


def _enumerated(steps: list[int]) -> str:
    """All steps, or the first and the last of many."""
    few = [*steps[:10], "...", *steps[-10:]] if len(steps) > 30 else steps
    return ", ".join(map(str, few))


RULES = (
    _check_objective,
    _check_warmup,
    _check_targets,
    _check_text,
    _check_buckets,
    _check_sample,
    _check_checkpoints,
)
