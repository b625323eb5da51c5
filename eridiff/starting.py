"""`eridiff new`: a project out of a folder of pictures, a trigger word and a preset; its base is found too."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eridiff.bases import add_base, missing_components
from eridiff.config import load_section, read_yaml, validate
from eridiff.errors import BaseError, DataError
from eridiff.families import load_family, published
from eridiff.files import read_text, write_text
from eridiff.gpus import Gpu, find_gpus
from eridiff.headers import find_parts
from eridiff.hub import cached_snapshot
from eridiff.params_captions import CaptionParams
from eridiff.params_model import ModelParams
from eridiff.places import Places
from eridiff.presets import Preset, all_presets, describe_gpus, read_preset
from eridiff.progress import say
from eridiff.projects import make_project
from eridiff.wanted import has_pointers, how_to_add, write_wanted
from eridiff.weightfiles import open_weights

FITS, HERE = "fits", "here"
PROMPTS = [{"prompt": "[trigger]"}, {"prompt": "[trigger], outdoors, evening light"}]  # true of any pictures
README = """# {name}

Pictures and captions: data/raw. What is trained, and how: params.yaml. Results: data/samples, data/lora, data/export.

    eridiff why      # what would run, and because of what
    dvc repro        # run it

Started from the preset {preset} on a machine with:

    {gpus}
"""


def start_project(name: str, images: Path, trigger: str, preset: Path, *, push: bool = False) -> Path:
    """Make projects/NAME from a preset, with the trigger and the export's name filled in; returns its folder.

    Says first which GPUs there are, and whether the preset is meant for their memory. The preset's class word, its
    licence, its subjects to draw and measure and its folders of regularisation pictures that are not there are taken
    out.
    push: whether `dvc push` sends the pictures too.

    Raises: ConfigError for a wrong trigger, name or preset; DataError where there are no pictures.
    """
    record = read_yaml(preset)
    captions = validate(
        CaptionParams, dict(record["captions"]) | {"trigger": trigger}, where="--trigger", prefix="captions"
    )
    gpus = describe_gpus(read_preset(preset), find_gpus())
    for line in gpus:
        say(line)

    def fill(folder: Path) -> None:
        changes = _own_settings(record, captions, name, folder)
        write_text(folder / "params.yaml", filled(read_text(preset), changes))
        write_text(folder / "README.md", README.format(name=name, preset=preset.stem, gpus="\n    ".join(gpus)))

    return make_project(name, images, preset, push=push, fill=fill)


def _own_settings(
    record: Mapping[str, Any], captions: CaptionParams, name: str, folder: Path
) -> dict[str, dict[str, Any]]:
    """What a project has otherwise than its preset, whose words on pictures of its own are not true of these."""
    changes: dict[str, dict[str, Any]] = {
        "captions": {"trigger": captions.trigger},
        "export": {"name": name, "title": f"{name} ({captions.trigger})"},
    }
    if captions.class_word:
        changes["captions"]["class_word"] = None
    if captions.regularisation:
        there = [one for one in captions.regularisation if (folder / "data" / "raw" / one).is_dir()]
        changes["captions"]["regularisation"] = there
    if record["export"].get("license"):
        changes["export"]["license"] = None
    if record["sample"].get("measures"):  # of prompts whose subjects are among the preset's own pictures, or are not
        changes["sample"] = {"prompts": PROMPTS, "measures": False}
    return changes


def offer_presets(gpus: Sequence[Gpu]) -> str:
    """What to say where no preset is chosen: the GPUs, then all presets; those that fit come first."""
    described = [(preset, _fit(preset, gpus), _base_state(preset)) for preset in all_presets()]
    order = [FITS, "runs on any machine", "needs more memory" if gpus else "needs a GPU"]
    described.sort(key=lambda row: (order.index(row[1]), row[2] != HERE, -(row[0].gigabytes or 0), row[0].name))
    lines = [gpu.described() for gpu in gpus] or ["GPU: none found (nvidia-smi names none)"]
    for preset, fit, base in described:
        size = f"{preset.gigabytes} GB" if preset.gigabytes else ""
        lines.append(f"  {preset.name:<18} {size:>5}  {fit + ',':<20} base {preset.model.base}: {base}")
    head = (
        "--preset is missing: which model is trained, and for how much memory. Choose one of these, and with --trigger "
        "the word that will call what is trained, such as zwxcat:"
    )
    return "\n       ".join([head, *lines])


def _fit(preset: Preset, gpus: Sequence[Gpu]) -> str:
    if preset.model.allow_cpu:
        return "runs on any machine"
    if not gpus:
        return "needs a GPU"
    fits = preset.gigabytes is None or any(gpu.compare(preset.gigabytes) >= 0 for gpu in gpus)
    return FITS if fits else "needs more memory"


def _base_state(preset: Preset) -> str:
    """Whether a preset's base is on this machine."""
    model = preset.model
    if has_pointers(model.base):
        missing = missing_components(model.base, model.family)
        return f"{', '.join(missing)} not on this machine" if missing else HERE
    found = find_published(model.family, model.base)
    return f"found in {found}" if found else "not on this machine"


def filled(text: str, changes: Mapping[str, Mapping[str, Any]]) -> str:
    """A params file with some keys changed, its comments kept, but for those inside a list that is another now."""
    from ruamel.yaml import YAML
    from ruamel.yaml.representer import RoundTripRepresenter

    class Representer(RoundTripRepresenter):  # type: ignore[misc]
        """Writes null as a word: the library leaves nothing."""

    Representer.add_representer(type(None), lambda it, value: it.represent_scalar("tag:yaml.org,2002:null", "null"))
    yaml = YAML()
    yaml.Representer = Representer
    yaml.preserve_quotes, yaml.width = True, 1 << 16
    yaml.indent(mapping=2, sequence=4, offset=2)
    record = yaml.load(text)
    for section, values in changes.items():
        for key, value in values.items():
            record[section][key] = value
            if isinstance(value, list):
                record[section].ca.items.pop(key, None)
    buffer = io.StringIO()
    yaml.dump(record, buffer)
    return buffer.getvalue()


def settle_base(params: Path) -> str:
    """Make the pointers of a params file's base where there are none and its files are found; a line that says what is.

    Where they are not found, wanted pointers are written, so that what needs no weights runs.
    The base of a preset is called as its makers' model, whose usual files are looked for.
    """
    model = load_section(ModelParams, "model", params)
    if has_pointers(model.base):
        return f"base: {model.base}"
    source = find_published(model.family, model.base)
    if source is None:
        write_wanted(model.base, model.family)
        return f"{how_to_add(model.base, model.family)} Captions, buckets and `eridiff plan` run without it"
    say(f"base: {model.base} from {source}")
    try:
        add_base(model.base, [source])
    except BaseError as error:
        write_wanted(model.base, model.family)
        return f"base: '{model.base}' could not be added from {source}: {error}"
    return f"base: {model.base}"


def find_published(family: str, variant: str) -> Path | None:
    """A file of a published model's denoiser under its usual name, or its folder in the hub's cache."""
    known = published(family)
    if variant not in known.variants:
        return None
    names = known.files[load_family(family).DENOISER][1:]
    for path in Places().files():
        if path.name in names and _shows(path, variant):
            return path
    return cached_snapshot(known.hub[variant])


def _shows(path: Path, variant: str) -> bool:
    """Whether a file's header shows this model."""
    try:
        parts, _ = find_parts(open_weights(path))
    except (BaseError, DataError):
        return False
    return any(part.look.variant == variant for part in parts)
