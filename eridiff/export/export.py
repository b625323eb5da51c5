"""Export: a checkpoint becomes files that load everywhere at the trained strength, or nothing is written."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eridiff.bases.comfyui_files import comfy_files
from eridiff.bases.licences import Licence, read_licences, unknown
from eridiff.core.errors import ExportError, did_you_mean
from eridiff.core.files import canonical_json, write_text
from eridiff.core.leftovers import temporary_path
from eridiff.core.progress import say
from eridiff.export.metadata import base_notice, hashes, modelspec, training_metadata
from eridiff.export.model_card import model_card
from eridiff.export.verify import check_file
from eridiff.family import Keys, Scene, family_names, load_family, load_keys, load_workflow
from eridiff.formats.floats import from_float32, to_float32
from eridiff.formats.safetensors import RawTensor, TensorFile, write_tensors
from eridiff.models.lora import read_checkpoint
from eridiff.params.export import ExportParams
from eridiff.weights.lora_keys import Dialect, Factors, join


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A checkpoint as the export sees it."""

    factors: Mapping[str, Factors]  # diffusers module -> its adapter
    unused: frozenset[str]  # modules whose output is discarded, so they never get a gradient
    lineage: Mapping[str, Any]
    keys: Keys
    licences: tuple[Licence, ...]  # of the base


def export_checkpoint(folder: Path, params: ExportParams, out: Path) -> None:
    """Write the family's files, a workflow and a model card of one of `folder`'s checkpoints into `out`.

    Raises: ExportError where there is no such checkpoint, a module was never trained, or a file fails the
    gate; the folder `out` is then as it was.
    """
    path = choose_checkpoint(folder, params)
    trained = read_trained(path)
    dialects: tuple[Dialect, ...] = trained.keys.DIALECTS
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(out)
    fresh = temporary / "new"
    fresh.mkdir(parents=True)
    try:
        for dialect in dialects:
            file = fresh / dialect.file_name(params.name)
            write_file(file, dialect, trained, params)
            config = trained.lineage["denoiser_config"]
            error = check_file(TensorFile(file), dialect, config, trained.factors, trained.unused, params.dtype)
            say(
                f"export: {file.name}: {len(trained.factors)} modules of {path.name} in {params.dtype}, "
                f"largest error of a weight change {error:.1e}"
            )
        _write_texts(fresh, trained, params)
        if not trained.licences:
            say(f"export: the licence of base '{trained.lineage['base']}' is {unknown(trained.lineage['base'])}")
        if out.exists():
            os.replace(out, temporary / "old")
        os.replace(fresh, out)
    finally:
        shutil.rmtree(temporary)


def choose_checkpoint(folder: Path, params: ExportParams) -> Path:
    """The file of the chosen checkpoint.

    Raises: ExportError, with the steps there are, where the step or the moving average does not exist.
    """
    found = {path: re.fullmatch(r"step-(\d+)", path.stem) for path in folder.glob("*.safetensors")}
    files = {int(match[1]): path for path, match in found.items() if match}
    if not files:
        raise ExportError(f"{folder} holds no checkpoint (step-N.safetensors): run the train stage first.")
    if params.checkpoint == "last":
        step = max(files)
    elif params.checkpoint == "best":
        step = min(files, key=lambda step: (_loss(files[step]), -step))
    else:
        step = params.checkpoint
    if step not in files:
        choices = ", ".join(str(step) for step in sorted(files))
        raise ExportError(
            f"params.yaml: export.checkpoint is {step}, but {folder} has last, best and the steps {choices}."
        )
    average = files[step].with_name(files[step].name.replace("step-", "ema-"))
    if params.ema and not average.exists():
        raise ExportError(
            f"params.yaml: export.ema is true, but {folder} has no {average.name}: the moving average was "
            "not trained. Set export.ema: false, or train.ema_decay (such as 0.999) and train again."
        )
    return average if params.ema else files[step]


def _loss(path: Path) -> float:
    """The loss that a checkpoint's lineage names."""
    loss = read_checkpoint(path)[1].get("loss")
    return float("inf") if loss is None else float(loss)


def read_trained(path: Path) -> Trained:
    """A checkpoint's adapters by module, as fp32.

    Raises: ExportError for an unknown family, for tensors that are no plain LoRA, for numbers that are not
    finite, and for modules that training never moved.
    """
    tensors, lineage, adapter = read_checkpoint(path)
    if lineage["family"] not in family_names():
        choices = did_you_mean(lineage["family"], family_names())
        raise ExportError(f"{path} is of the family '{lineage['family']}', which is none here.{choices}")
    family = load_family(lineage["family"])
    prefix = f"{family.DENOISER}."
    pattern = re.compile(re.escape(prefix) + r"(.+)\.lora_[AB]\.weight")
    modules = {name: match[1] if (match := pattern.fullmatch(name)) else None for name in tensors}
    strange = sorted(name for name, module in modules.items() if module is None)
    if strange:
        raise ExportError(f"{path}: '{strange[0]}' is no part of a plain LoRA on {family.DENOISER}.")
    alpha = float(adapter["lora_alpha"])
    names = sorted({module for module in modules.values() if module})
    factors = {module: _factors(path, tensors, f"{prefix}{module}", alpha) for module in names}
    unused = frozenset(family.unused_modules(lineage["denoiser_config"]))
    still = [module for module, adapter in factors.items() if not adapter.moved() and module not in unused]
    if still:
        more = f" and {len(still) - 5} more" if len(still) > 5 else ""
        raise ExportError(
            f"{path}: never trained, so they would change nothing: {', '.join(still[:5])}{more}. Train more "
            "steps, or choose a target set (train.lora.targets) that gets a gradient."
        )
    licences = read_licences(lineage["base"])
    return Trained(
        factors=factors, unused=unused, lineage=lineage, keys=load_keys(lineage["family"]), licences=licences
    )


def _factors(path: Path, tensors: Mapping[str, RawTensor], name: str, alpha: float) -> Factors:
    """One module's adapter."""
    pair = [tensors.get(f"{name}.lora_{letter}.weight") for letter in "AB"]
    down, up = (to_float32(tensor) if tensor else np.zeros((0, 0), np.float32) for tensor in pair)
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or not down.size:
        raise ExportError(f"{path}: the adapter of {name} is not whole: shapes {down.shape} and {up.shape}.")
    if not (np.isfinite(down).all() and np.isfinite(up).all()):
        raise ExportError(
            f"{path}: the adapter of {name} holds NaN or infinity: training broke. Choose an earlier step."
        )
    return Factors(down, up, alpha)


def write_file(path: Path, dialect: Dialect, trained: Trained, params: ExportParams) -> None:
    """Write one file with its metadata.

    Raises: ExportError for trained modules that the dialect has no name for.
    """
    tensors = make_tensors(dialect, trained, params.dtype)
    training = training_metadata(trained.lineage, trained.keys, params.name)
    metadata = {
        "format": "pt",
        **training,
        **modelspec(trained.lineage, trained.keys, params.stated(), trained.licences),
        **base_notice(trained.licences),
        **hashes(path.parent, tensors, training),
        "eridiff": canonical_json(dict(trained.lineage)),
    }
    write_tensors(path, tensors, metadata)


def make_tensors(dialect: Dialect, trained: Trained, dtype: str) -> dict[str, RawTensor]:
    """The tensors of one dialect's file.

    Raises: ExportError for trained modules that the dialect has no name for.
    """
    rows = dialect.table(trained.lineage["denoiser_config"])
    nameless = sorted(trained.factors.keys() - {module for row in rows for module in row.slices})
    if nameless:
        raise ExportError(f"{nameless[0]} was trained, but files for {dialect.readers} have no name for it.")
    tensors: dict[str, RawTensor] = {}
    for row in rows:
        factors = join(row, trained.factors)
        if factors is None:
            continue
        key = dialect.key(row.target)
        up = factors.up if dialect.alpha else np.float32(factors.scale) * factors.up
        tensors[key + dialect.down] = from_float32(factors.down, dtype)
        tensors[key + dialect.up] = from_float32(up, dtype)
        if dialect.alpha:  # fp32 always: readers take it by value, and rounding would change the strength
            tensors[key + dialect.alpha] = from_float32(np.array(factors.alpha, np.float32), "fp32")
    return tensors


def _write_texts(folder: Path, trained: Trained, params: ExportParams) -> None:
    """The workflow and the model card."""
    lineage = trained.lineage
    dialects: tuple[Dialect, ...] = trained.keys.DIALECTS
    tags = sorted(lineage["tag_frequency"].items(), key=lambda item: (-item[1], item[0]))
    sizes = sorted(lineage["buckets"], key=lambda bucket: (-bucket[2], -bucket[0] * bucket[1], bucket))
    comfy = comfy_files(lineage["base"], lineage["family"], lineage["denoiser_config"])
    scene = Scene(
        lora=dialects[0].file_name(params.name),
        files=comfy.files,
        prompt=lineage.get("trigger") or (tags[0][0] if tags else ""),
        size=(sizes[0][0], sizes[0][1]) if sizes else (1024, 1024),
        denoiser_config=lineage["denoiser_config"],
        scheduler_config=lineage["scheduler_config"],
    )
    graph = load_workflow(lineage["family"]).workflow(scene)
    write_text(folder / "workflow.json", json.dumps(graph, indent=2, ensure_ascii=False) + "\n")
    files = [(dialect.file_name(params.name), dialect.readers) for dialect in dialects]
    card = model_card(params.title or params.name, files, lineage, params.stated(), trained.licences, comfy)
    write_text(folder / "README.md", card)
