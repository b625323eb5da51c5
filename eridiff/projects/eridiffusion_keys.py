"""The keys of EriDiffusion's YAML files, of both of its schemas: what each is here, why it is not needed, or refused.

`job: extension` with `config.process`, and sections (`model`, `lora` or `network`, `training`, ...); the reader is
eridiff/projects/import_eridiffusion.py. An action takes the value and what is known of the file, and gives new params,
or words for why it is not needed; it raises Refused where its value asks for what is not here.
"""

import math
import re
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from eridiff.family import Family


class Refused(Exception):
    """A value that asks for what is not here, in words."""


@dataclass(frozen=True)
class Known:
    """What is known of a file before its keys are read."""

    family: Family
    trigger: str | None


def number(value: Any) -> float:
    """A number; their reader takes `1e-4` for a text, and so do files that were written by it.

    Raises: Refused for anything else.
    """
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            found = float(value)
            if math.isfinite(found):
                return found
    raise Refused("it is no number.")


def whole(value: Any) -> int:
    """A whole number.

    Raises: Refused for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refused("it is no whole number.")
    return value


def listed(value: Any) -> list[Any]:
    """A list.

    Raises: Refused for anything else.
    """
    if not isinstance(value, list):
        raise Refused("it is no list.")
    return value


Action = Callable[[Any, Known], dict[str, Any] | str]
# Params that are not of params.yaml, which eridiff/projects/import_eridiffusion.py settles.
EPOCHS, NEGATIVE, USE_EMA, TILING = "epochs", "negative", "use_ema", "tiling"


def carry(*keys: str, convert: Callable[[Any], Any] = lambda value: value) -> Action:
    """The same under other names."""
    return lambda value, _: dict.fromkeys(keys, convert(value))


def explain(why: str) -> Action:
    """Nothing to carry over."""
    return lambda *_: why


def only(*values: Any, why: str) -> Action:
    """Taken where it asks for what is done here anyway."""

    def action(value: Any, _: Known) -> str:
        if value not in values:
            raise Refused(why)
        return "as it always is here"

    return action


def one_of(choices: Mapping[Any, Any], *keys: str, why: str) -> Action:
    """Values by other names; others are refused."""

    def action(value: Any, _: Known) -> dict[str, Any]:
        name = value.lower() if isinstance(value, str) else value
        if not isinstance(name, Hashable) or name not in choices:
            raise Refused(f"{why} Known: {', '.join(map(str, choices))}.")
        return dict.fromkeys(keys, choices[name])

    return action


def _min_snr(value: Any, known: Known) -> dict[str, Any] | str:
    if known.family.OBJECTIVE != "ddpm":
        return "this family is trained by flow, which has no such weight"
    return {"train.ddpm.loss_weight": "min_snr", "train.ddpm.min_snr_gamma": number(value)}


def _noise_offset(value: Any, known: Known) -> dict[str, Any] | str:
    if known.family.OBJECTIVE != "ddpm":
        if value:
            raise Refused("this family is trained by flow, which takes none.")
        return "none"
    return {"train.ddpm.noise_offset": number(value)}


def _objective(value: Any, known: Known) -> str:
    names = {"ddpm": ("ddpm", "mse"), "flow": ("flowmatch", "flow_matching", "mse")}[known.family.OBJECTIVE]
    if value not in names:
        raise Refused(f"this family is trained by {known.family.OBJECTIVE}.")
    return "as it always is for this family"


def _uniform(value: Any, known: Known) -> dict[str, Any] | str:
    if not value or known.family.OBJECTIVE != "flow":
        return "as it always is for this family"
    return {"train.flow.density": "uniform"}


def _sampler(value: Any, known: Known) -> dict[str, Any]:
    name = "euler" if value in ("flowmatch", "flow_matching") else value
    if not isinstance(name, str) or name not in known.family.SCHEDULERS:
        raise Refused(f"there is no such sampler. Known: {', '.join(sorted(known.family.SCHEDULERS))}.")
    return {"sample.scheduler": name}


def _prompts(value: Any, known: Known) -> dict[str, Any]:
    texts = [re.sub(r"\{trigger_word\}|\[trigger\]", "[trigger]", str(text)).strip() for text in listed(value)]
    if known.trigger is None and any("[trigger]" in text for text in texts):
        raise Refused("a prompt has a place for the trigger, but there is no trigger_word.")
    return {"sample.prompts": [{"prompt": text} for text in texts]}


def _negative(value: Any, known: Known) -> dict[str, Any] | str:
    if not value:
        return "empty"
    return {NEGATIVE: str(value)} if known.family.NEGATIVE else "this family's pipeline takes none"


def _resolutions(value: Any, _: Known) -> dict[str, Any]:
    *more, largest = sorted(map(whole, value if isinstance(value, list) and value else [value]))
    return {"buckets.resolution": largest, "buckets.more_resolutions": more}


def _targets(value: Any, _: Known) -> dict[str, Any]:
    if other := [name for name in listed(value) if not re.search(r"attn|to_(q|k|v|out)\b|to_out", str(name))]:
        raise Refused(f"{', '.join(map(str, other))}: choose train.lora.targets, attention or all-linear.")
    return {"train.lora.targets": "attention"}


def _with_mlp(value: Any, known: Known) -> dict[str, Any]:
    if value and "all-linear" not in known.family.TARGET_SETS:
        raise Refused("this family has no such target set.")
    return {"train.lora.targets": "all-linear" if value else "attention"}


def _tokens(value: Any, known: Known) -> dict[str, Any]:
    if whole(value) not in known.family.MAX_TOKENS:
        raise Refused(f"this family takes {', '.join(map(str, sorted(known.family.MAX_TOKENS)))}.")
    return {"text.max_tokens": value, "sample.max_tokens": value}


def _ema(value: Any, _: Known) -> dict[str, Any]:
    return {"train.ema_decay": number(value)}


PICTURES = explain("pictures belong to a project: the last lines say how to make it")
BASE = explain("weights belong to a base: the last lines say how to add it")
LOCAL = explain("of the machine, not of the result: local.yaml (docs/local.md)")
PREVIEWS = explain("samples are a stage of their own; pictures while it trains: preview_every in local.yaml")
LINES = explain("a line every five seconds, and data/loss.tsv has every step")
PLACES = explain("results lie in the project's data/ and runs/")
CACHED = explain("latents and text are always cached, by content")
NO_TEXT = only(False, None, why="text encoders are not trained here.")
NO_DROPOUT = only(0, 0.0, why="adapters have no dropout here: leave it out.")
NO_HUB = only(False, None, why="nothing is pushed to a hub: upload data/export yourself.")
OFF = only(False, None, why="it is not here.")
FORMAT = one_of(
    {"bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "float16": "fp16", "fp32": "fp32", "float32": "fp32"}
    | {"no": "fp32", True: "bf16", False: "fp32"},
    "train.precision",
    why="training in this format is not here.",
)
OPTIMIZER = one_of({"adamw": "adamw", "adamw8bit": "adamw8bit"}, "train.optimizer.name", why="it is not here.")
SCHEDULE = one_of(
    {"constant": "constant", "cosine": "cosine", "cosine_annealing": "cosine"},
    "train.optimizer.schedule",
    why="it is not here.",
)
ONE_CYCLE = only(1, None, why="the schedule has one cycle here.")
WARM_UP = carry("train.optimizer.warmup_steps")
RATE = carry("train.optimizer.lr", convert=number)
CLIP = carry("train.optimizer.max_grad_norm", convert=number)
ACCUMULATION, DROPOUT = carry("train.accumulation", convert=whole), carry("train.caption_dropout", convert=number)
CENTER = only(True, why="crops are taken from the middle or the top: buckets.crop; more than one: latents.crops.")
FLIP, SHUFFLE = carry("latents.flip"), carry("captions.shuffle_tags")
TXT = only("txt", ".txt", why="captions are .txt files beside the pictures, or a table (docs/captions.md).")
RANK, ALPHA = carry("train.lora.rank"), carry("train.lora.alpha", convert=number)
LORA = only("lora", why="adapters of this kind are not here, only LoRA.")
GUIDANCE = carry("sample.guidance_scale", convert=number)
STEPS = carry("sample.steps")

ACTIONS: dict[str, Action] = {
    # job: extension
    "job": only("extension", why="only trainings are."),
    "name": carry("export.name", convert=lambda value: re.sub(r"[^\w.-]+", "-", str(value))),
    "type": only("sd_trainer", why="only trainings are."),
    "training_folder": PLACES,
    "device": LOCAL,
    "low_vram": LOCAL,
    "performance_log_every": LINES,
    "trigger_word": carry("captions.trigger", convert=lambda value: value or None),
    "network.type": LORA,
    "network.linear": RANK,
    "network.linear_alpha": ALPHA,
    "network.dropout": NO_DROPOUT,
    "network.conv": OFF,
    "network.conv_alpha": OFF,
    "save.dtype": one_of(
        {"float16": "fp16", "fp16": "fp16", "bf16": "bf16", "bfloat16": "bf16", "float32": "fp32", "fp32": "fp32"},
        "export.dtype",
        why="files of this format are not written.",
    ),
    "save.save_every": carry("train.save_every"),
    "save.max_step_saves_to_keep": carry("train.keep"),
    "save.push_to_hub": NO_HUB,
    "save.hf_repo_id": NO_HUB,
    "save.hf_private": NO_HUB,
    "datasets.folder_path": PICTURES,
    "datasets.caption_ext": TXT,
    "datasets.caption_dropout_rate": DROPOUT,
    "datasets.shuffle_tokens": SHUFFLE,
    "datasets.keep_tokens": carry("captions.keep_tokens"),
    "datasets.cache_latents_to_disk": CACHED,
    "datasets.cache_latents": CACHED,
    "datasets.random_flip": FLIP,
    "datasets.resolution": _resolutions,
    "train.batch_size": carry("train.batch_size", convert=whole),
    "train.steps": carry("train.steps"),
    "train.gradient_accumulation": ACCUMULATION,
    "train.gradient_accumulation_steps": ACCUMULATION,
    "train.train_unet": only(True, why="the denoiser is what is trained."),
    "train.train_text_encoder": NO_TEXT,
    "train.gradient_checkpointing": LOCAL,
    "train.cpu_offload": LOCAL,
    "train.noise_scheduler": _objective,
    "train.optimizer": OPTIMIZER,
    "train.lr": RATE,
    "train.lr_scheduler": SCHEDULE,
    "train.lr_scheduler_num_cycles": ONE_CYCLE,
    "train.lr_warmup_steps": WARM_UP,
    "train.dtype": FORMAT,
    "train.xformers": explain("torch's own attention is used"),
    "train.min_snr_gamma": _min_snr,
    "train.max_grad_norm": CLIP,
    "train.seed": carry("train.seed"),
    "train.linear_timesteps": _uniform,
    "train.bypass_guidance_embedding": explain("train.guidance says what the denoiser is told (docs/training.md)"),
    "train.ema_config.use_ema": carry(USE_EMA),
    "train.ema_config.ema_decay": _ema,
    "train.skip_first_sample": PREVIEWS,
    "train.disable_sampling": PREVIEWS,
    "model.name_or_path": BASE,
    "model.vae_path": BASE,
    "model.text_encoder_path": BASE,
    "model.text_encoder_2_path": BASE,
    "model.clip_path": BASE,
    "model.t5_path": BASE,
    "model.quantize": one_of({True: "fp8", False: None}, "train.quantise", "sample.quantise", why="true or false."),
    "model.snr_gamma": _min_snr,
    "model.max_grad_norm": CLIP,
    "model.t5_max_length": _tokens,
    "sample.sampler": _sampler,
    "sample.sample_every": PREVIEWS,
    "sample.sample_steps": STEPS,
    "sample.guidance_scale": GUIDANCE,
    "sample.prompts": _prompts,
    "sample.neg": _negative,
    "sample.width": carry("sample.width", convert=whole),
    "sample.height": carry("sample.height", convert=whole),
    "sample.seed": carry("sample.seeds", convert=lambda value: [value]),
    "sample.walk_seed": explain("every prompt is drawn with each of sample.seeds"),
    "logging.log_every": LINES,
    "logging.log_grad_norm": LINES,
    "logging.use_wandb": OFF,
    "logging.wandb_project": OFF,
    "logging.wandb_run_name": OFF,
    "advanced.vae_tiling": carry(TILING),
    "advanced.vae_tile_size": carry("latents.tile"),
    "advanced.mixed_precision": FORMAT,
    "advanced.empty_cache_steps": explain("memory is not freed and asked for again between steps"),
    "advanced.lora_bias": only("none", why="biases are not trained here."),
    "advanced.lora_dropout": NO_DROPOUT,
    "advanced.attention_mode": explain("torch's own attention is used"),
    "meta.name": explain("export has a title and a description of its own"),
    "meta.author": carry("export.author"),
    "meta.version": explain("git and dvc.lock say which version it is"),
    "meta.description": carry("export.description"),
    # sections
    "model.type": explain("it said which family this is"),
    "model.architecture": explain("it said which family this is"),
    "model.arch": explain("it said which family this is"),
    "model.low_vram": LOCAL,
    "model.variant": explain("it said which preset this is"),
    "model.path": BASE,
    "model.device": LOCAL,
    "model.precision": FORMAT,
    "text_encoders.clip_path": BASE,
    "text_encoders.clip_l_path": BASE,
    "text_encoders.clip_g_path": BASE,
    "text_encoders.t5_path": BASE,
    "vae.path": BASE,
    "vae.scaling_factor": explain("the VAE's own config says it"),
    "lora.rank": RANK,
    "lora.alpha": ALPHA,
    "lora.dropout": NO_DROPOUT,
    "lora.include_mlp": _with_mlp,
    "lora.target_modules": _targets,
    "network.adapter_type": LORA,
    "network.rank": RANK,
    "network.alpha": ALPHA,
    "network.target_modules": _targets,
    "training.output_dir": PLACES,
    "training.num_train_epochs": carry(EPOCHS, convert=whole),
    "training.num_epochs": carry(EPOCHS, convert=whole),
    "training.batch_size": carry("train.batch_size", convert=whole),
    "training.gradient_accumulation_steps": ACCUMULATION,
    "training.learning_rate": RATE,
    "training.train_text_encoders": NO_TEXT,
    "training.text_encoder_lr_multiplier": explain("text encoders are not trained"),
    "training.mixed_precision": FORMAT,
    "training.gradient_checkpointing": LOCAL,
    "training.save_steps": carry("train.save_every"),
    "training.validation_steps": PREVIEWS,
    "training.eval_steps": PREVIEWS,
    "training.logging_steps": LINES,
    "training.max_grad_norm": CLIP,
    "training.seed": carry("train.seed"),
    "training.cfg_scale": explain("training has no guidance of this kind; samples have sample.guidance_scale"),
    "training.lr_scheduler": SCHEDULE,
    "training.lr_warmup_steps": WARM_UP,
    "training.warmup_steps": WARM_UP,
    "training.optimizer": OPTIMIZER,
    "training.weight_decay": carry("train.optimizer.weight_decay", convert=number),
    "training.adam_beta1": carry("train.optimizer.betas.0", convert=number),
    "training.adam_beta2": carry("train.optimizer.betas.1", convert=number),
    "training.adam_weight_decay": carry("train.optimizer.weight_decay", convert=number),
    "training.adam_epsilon": carry("train.optimizer.eps", convert=number),
    "dataset.type": only("directory", why="pictures are a folder here."),
    "dataset.path": PICTURES,
    "dataset.resolution": _resolutions,
    "dataset.center_crop": CENTER,
    "dataset.random_flip": FLIP,
    "dataset.caption_dropout": DROPOUT,
    "data.dataset_path": PICTURES,
    "data.caption_extension": TXT,
    "data.num_workers": LOCAL,
    "data.enable_bucket": only(True, why="pictures always go into buckets."),
    "data.resolution": _resolutions,
    "data.center_crop": CENTER,
    "data.random_flip": FLIP,
    "data.shuffle_tags": SHUFFLE,
    "data.keep_tokens": carry("captions.keep_tokens"),
    "data.caption_dropout": DROPOUT,
    "data.max_sequence_length": _tokens,
    "scheduler.type": SCHEDULE,
    "scheduler.num_warmup_steps": WARM_UP,
    "scheduler.num_cycles": ONE_CYCLE,
    "optimizer.type": OPTIMIZER,
    "optimizer.use_8bit": one_of({True: "adamw8bit", False: "adamw"}, "train.optimizer.name", why="true or false."),
    "optimizer.weight_decay": carry("train.optimizer.weight_decay", convert=number),
    "optimizer.betas": carry("train.optimizer.betas"),
    "optimizer.eps": carry("train.optimizer.eps", convert=number),
    "loss.type": _objective,
    "loss.weight": only(1, 1.0, why="the loss has no weight here: change the learning rate."),
    "loss.reduction": only("mean", why="the loss is a mean."),
    "loss.snr_gamma": _min_snr,
    "pipeline.loss_type": _objective,
    "pipeline.snr_gamma": _min_snr,
    "pipeline.noise_offset": _noise_offset,
    "pipeline.flow_matching": only(True, False, why="true or false."),
    "pipeline.gradient_checkpointing": LOCAL,
    "pipeline.use_ema": carry(USE_EMA),
    "pipeline.ema_decay": _ema,
    "pipeline.prior_preservation": only(False, why="make the pictures of the class regularisation pictures."),
    "validation.prompts": _prompts,
    "validation.num_inference_steps": STEPS,
    "validation.guidance_scale": GUIDANCE,
    "resume_from": only(None, why="a training goes on automatically: run `dvc repro` again."),
    "push_to_hub": NO_HUB,
}
