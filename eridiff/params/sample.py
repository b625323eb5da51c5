"""The section `sample` of params.yaml: what is drawn and how; previews are drawn by the same keys."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from eridiff.core.config import MAX_STEPS, Section, Seed
from eridiff.core.errors import ConfigError, did_you_mean
from eridiff.family import Family
from eridiff.params.model import Stored
from eridiff.params.trigger import PLACE, without_trigger


class Prompt(Section):
    """A prompt to draw."""

    prompt: str
    """What to draw. `[trigger]` stands for captions.trigger."""
    negative: str | None = None
    """Negative prompt, if the family has classifier-free guidance."""
    group: Annotated[str, Field(min_length=1)] = "all"
    """With measures: prompts of one group share their figures, such as `trained` and `held-out` subjects."""


class DrawParams(Section):
    """How a picture is drawn."""

    scheduler: str = "euler"
    """Sampler by name, from the family's list (`check` names them)."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 30
    """Sampling steps."""
    guidance_scale: Annotated[float, Field(ge=0, le=1000)] = 5.0
    """Classifier-free guidance, or the embedded guidance of families that have one."""
    size: tuple[Annotated[int, Field(ge=16, le=8192)], Annotated[int, Field(ge=16, le=8192)]] = (1024, 1024)
    """(width, height) in pixels."""
    max_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Tokens of the T5 encoder, as in text.max_tokens; null: the family's default."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Number format of the whole pipeline. An overflow in fp16 is an error, not a black picture."""
    quantise: Stored | None = None
    """As train.quantise, of which drawing knows the storage alone. Text encoders are never quantised: they are on the
    device alone, before the denoiser."""


def check_draw(params: DrawParams, family: Family, prompts: tuple[Prompt, ...], where: str) -> None:
    """Refuse what the family cannot draw.

    Raises: ConfigError that names the key.
    """
    if params.scheduler not in family.SCHEDULERS:
        raise ConfigError(
            f"{where}.scheduler is '{params.scheduler}'.{did_you_mean(params.scheduler, family.SCHEDULERS)}"
        )
    wrong = [side for side in params.size if side % family.SIDE_MULTIPLE]
    if wrong:
        raise ConfigError(f"{where}.size is {list(params.size)}: sides must be multiples of {family.SIDE_MULTIPLE}.")
    if params.max_tokens is not None and params.max_tokens not in family.MAX_TOKENS:
        choices = ", ".join(map(str, sorted(family.MAX_TOKENS)))
        raise ConfigError(
            f"{where}.max_tokens is {params.max_tokens}, which this family does not take. Known: {choices}."
        )
    negative = next((p.negative for p in prompts if p.negative is not None), None)
    if negative is not None and not family.NEGATIVE:
        raise ConfigError(
            f"{where}.prompts has the negative prompt {negative!r}, but this family has an embedded guidance and "
            "takes none: remove it."
        )


def fill_trigger(prompts: tuple[Prompt, ...], trigger: str | None, where: str) -> tuple[Prompt, ...]:
    """Put the trigger word in for `[trigger]`.

    Raises: ConfigError where there is none.
    """
    if trigger is None and any("[trigger]" in prompt.prompt for prompt in prompts):
        raise ConfigError(f"{where} has '[trigger]' in a prompt, but captions.trigger is null.")
    return tuple(
        prompt.model_copy(update={"prompt": prompt.prompt.replace("[trigger]", trigger or "")}) for prompt in prompts
    )


MAX_PICTURES = 100_000


class SampleParams(DrawParams):
    """Which sample pictures are drawn."""

    prompts: Annotated[tuple[Prompt, ...], Field(min_length=1, max_length=1000)]
    """Prompts to draw."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=1000)] = (0,)
    """Seeds of the first noise; every prompt is drawn with each."""
    checkpoints: Annotated[
        tuple[Literal["last"] | Annotated[int, Field(ge=0, le=MAX_STEPS)], ...], Field(min_length=1, max_length=1000)
    ] = ("last",)
    """Checkpoints by step, or `last`."""
    strengths: Annotated[
        tuple[Annotated[float, Field(ge=-1000, le=1000)], ...], Field(min_length=1, max_length=100)
    ] = (1.0,)
    """Strengths of the LoRA; the base without it is always drawn."""
    ema: bool = False
    """Draw with the moving average of the adapters (train.ema_decay)."""
    measures: bool = False
    """Measure what was learned (docs/sampling.md): prompts with `[trigger]` are also drawn without it, and compared
    with the pictures whose caption holds the trigger. About twice the time."""

    @model_validator(mode="after")
    def _countable(self) -> Self:
        count = len(self.prompts) * len(self.seeds) * (1 + len(self.checkpoints) * len(self.strengths))
        if count > MAX_PICTURES:
            raise ValueError(
                f"{len(self.prompts)} prompts, {len(self.seeds)} seeds, {len(self.checkpoints)} checkpoints and "
                f"{len(self.strengths)} strengths make {count} pictures, more than {MAX_PICTURES}"
            )
        return self


def check_measures(params: SampleParams) -> None:
    """Refuse prompts of which nothing can be measured.

    Raises: ConfigError that names what is missing.
    """
    if not params.measures:
        return
    subjects = [without_trigger(prompt.prompt) for prompt in params.prompts if PLACE in prompt.prompt]
    where = "params.yaml: sample.measures is true, but"
    if "" in subjects:
        raise ConfigError(
            f"{where} a prompt of sample.prompts is '{PLACE}' alone: name a subject, as in '{PLACE}, a cat'."
        )
    if len(set(subjects)) < 2:
        raise ConfigError(
            f"{where} sample.prompts has {len(set(subjects))} different prompts with '{PLACE}': what the LoRA does to "
            "subjects shows in at least 2. Add prompts, or set it to false."
        )
