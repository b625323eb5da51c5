"""`eridiff import-config`: a YAML file of EriDiffusion as params.yaml, every key accounted for."""

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eridiff.check import SECTIONS
from eridiff.core.config import parse_yaml, read_yaml, validate
from eridiff.core.errors import ConfigError, did_you_mean
from eridiff.core.files import read_text, write_text
from eridiff.core.printable import printable
from eridiff.dataset.image.header import PICTURE_SUFFIXES
from eridiff.family import family_names, load_family, published
from eridiff.params.edit import filled
from eridiff.projects.eridiffusion_keys import ACTIONS, EPOCHS, NEGATIVE, TILING, USE_EMA, Known, Refused
from eridiff.projects.presets import find_preset

FLAG = "model.is_"  # model.is_NAME: true says which family it is
PATHS = {"folder_path", "dataset_path", "path", "name_or_path"}


@dataclass(frozen=True)
class Imported:
    """A params file, what became of each key, and what to do next."""

    text: str
    lines: list[str]
    next_steps: list[str]


def import_config(path: Path, images: Path | None = None) -> Imported:
    """Read a file of either schema. images: the folder of pictures, whose number turns epochs into steps.

    Raises: ConfigError that names every key that is unknown, or asks for what is not here; nothing is left out
    without a word.
    """
    leaves = dict(_leaves(_settings(path)))
    family, model = _which_model(path, leaves)
    known = Known(load_family(family), leaves.get("trigger_word") or None)
    changes: dict[str, Any] = {}
    lines, refused = [], []
    for key, value in leaves.items():
        if key.startswith(FLAG):
            lines.append(f"{key}: {_shown(value)}: it said which family this is")
            continue
        if key not in ACTIONS:
            section = key.rpartition(".")[0]
            refused.append(
                f"{key}: unknown.{did_you_mean(key, [k for k in ACTIONS if k.rpartition('.')[0] == section])}"
            )
            continue
        try:
            found = ACTIONS[key](value, known) if value is not None else "empty"
        except Refused as error:
            refused.append(f"{key}: {_shown(value)}: {error}")
            continue
        if isinstance(found, str):
            lines.append(f"{key}: {_shown(value)}: {found}")
        else:
            changes |= found
            lines.append(f"{key}: {_shown(value)} -> {', '.join(f'{k} = {_shown(v)}' for k, v in found.items())}")
    if refused:
        raise ConfigError(f"{path} asks for what is not here; change or remove these keys:\n  " + "\n  ".join(refused))
    _settle(changes, lines, images)
    preset = find_preset(f"{model}-24gb")
    text = filled(read_text(preset), _merged(read_yaml(preset), changes))
    lines.append(f"all other keys are those of presets/{preset.name}")
    return Imported(_checked(text, path), lines, _next_steps(leaves, model))


def write_imported(path: Path, out: Path, images: Path | None = None) -> Imported:
    """Write the params file; nothing is overwritten.

    Raises: ConfigError where the file is there already, or as import_config.
    """
    if out.exists():
        raise ConfigError(f"{out} is there already: choose another name with --out.")
    imported = import_config(path, images)
    write_text(out, imported.text)
    return imported


def _settings(path: Path) -> dict[str, Any]:
    """The file's keys; those of its one process without the levels around it."""
    record = read_yaml(path)
    if not isinstance(record, dict):
        raise ConfigError(f"{path} holds no keys.")
    if "job" in record:
        config = record.pop("config", None)
        processes = config.pop("process", None) if isinstance(config, dict) else None
        if not isinstance(processes, list) or len(processes) != 1 or not isinstance(processes[0], dict):
            raise ConfigError(f"{path}: config.process must be a list of one training.")
        record |= config | processes[0]
    settings: dict[str, Any] = record
    return settings


def _leaves(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value); a list of one section is that section.

    Raises: ConfigError for several data sets.
    """
    for key, item in value.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(item, list) and item and all(isinstance(one, dict) for one in item):
            if len(item) > 1:
                raise ConfigError(
                    f"{name} has {len(item)} entries: put their pictures into one folder, or import each."
                )
            item = item[0]
        if isinstance(item, dict) and item:
            yield from _leaves(item, name)
        else:
            yield name, item


def _which_model(path: Path, leaves: Mapping[str, Any]) -> tuple[str, str]:
    """The family, and which of its published models.

    Raises: ConfigError where the file does not say, or names a family that is not here.
    """
    said = [key.removeprefix(FLAG) for key, value in leaves.items() if key.startswith(FLAG) and value]
    said += [str(leaves[key]).lower() for key in ("model.type", "model.architecture", "model.arch") if leaves.get(key)]
    families = {name: set(published(name).predecessor) for name in family_names()}
    found = {family for family, names in families.items() if names & set(said)}
    if len(found) != 1:
        known = sorted(name for names in families.values() for name in names)
        what = f"says {', '.join(said)}" if said else "does not say which model it is for"
        raise ConfigError(
            f"{path} {what} (model.type, model.architecture or model.is_NAME). Known: {', '.join(known)}."
        )
    (family,) = found
    words = " ".join(
        str(leaves.get(key) or "") for key in ("model.variant", "model.name_or_path", "model.path")
    ).lower()
    models = list(published(family).models)
    return family, next((name for name in models if name.rpartition("-")[2] in words), models[0])


def _settle(changes: dict[str, Any], lines: list[str], images: Path | None) -> None:
    """Turn what is said by several keys, or otherwise than here, into params."""
    if not changes.pop(USE_EMA, True):
        changes["train.ema_decay"] = None
    if not changes.pop(TILING, True):
        changes["latents.tile"] = None
    size = [changes.pop(f"sample.{side}", None) for side in ("width", "height")]
    if any(size):
        changes["sample.size"] = [size[0] or size[1], size[1] or size[0]]
    betas = [changes.pop(f"train.optimizer.betas.{place}", beta) for place, beta in enumerate((0.9, 0.999))]
    if betas != [0.9, 0.999]:
        changes["train.optimizer.betas"] = betas
    negative, prompts = changes.pop(NEGATIVE, None), changes.get("sample.prompts")
    if negative is not None and prompts:
        changes["sample.prompts"] = [{**prompt, "negative": negative} for prompt in prompts]
    if (epochs := changes.pop(EPOCHS, None)) is not None:
        formula = "epochs x pictures / (batch_size x accumulation)"
        if images is None:
            lines.append(f"epochs: {epochs}: train.steps counts steps: {formula}; --images FOLDER calculates them")
        else:
            number = sum(path.suffix.lower() in PICTURE_SUFFIXES for path in images.rglob("*"))
            batch = max(1, changes.get("train.batch_size", 1) * changes.get("train.accumulation", 1))
            changes["train.steps"] = max(1, epochs * math.ceil(number / batch))
            lines.append(f"epochs: {epochs} of {number} pictures -> train.steps = {changes['train.steps']}")


def _merged(preset: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Section -> key -> value: what changes, inner sections merged with the preset's."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        section, name, *inner = key.split(".")
        target = sections.setdefault(section, {})
        if inner:
            target.setdefault(name, dict(preset[section].get(name) or {}))[inner[0]] = value
        else:
            target[name] = value
    return sections


def _checked(text: str, path: Path) -> str:
    """The params file, each section as its stage reads it.

    Raises: ConfigError where a value is out of its bounds.
    """
    record = parse_yaml(text, str(path))
    for name, model in SECTIONS.items():
        validate(model, record[name], where=str(path), prefix=name)
    return text


def _next_steps(leaves: Mapping[str, Any], model: str) -> list[str]:
    """The commands that the file's paths are for."""
    folder = next((leaves[key] for key in leaves if key.startswith("data") and key.split(".")[-1] in PATHS), "FOLDER")
    weights = [str(value) for key, value in leaves.items() if _is_weights(key) and value]
    return [
        f"eridiff base add {model} {shlex.join(weights) or 'SOURCE'}",
        f"eridiff new NAME --images {shlex.quote(str(folder))} --params PARAMS",
    ]


def _is_weights(key: str) -> bool:
    section, _, last = key.partition(".")
    return section in ("model", "text_encoders", "vae") and (last in PATHS or last.endswith("_path"))


def _shown(value: Any) -> str:
    """A value in a line, cut."""
    if isinstance(value, bool):
        return str(value).lower()
    text = f"{value:g}" if isinstance(value, float) else printable(str(value))
    return text if len(text) <= 60 else f"{text[:57]}..."
