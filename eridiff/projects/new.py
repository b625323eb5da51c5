"""`eridiff new`: a project out of a folder of pictures, a trigger word and a preset; its base is found too."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eridiff.bases.add import add_base, missing_components
from eridiff.bases.hub import cached_snapshot
from eridiff.bases.places import Places
from eridiff.bases.recognise import components_in
from eridiff.bases.wanted import has_pointers, how_to_add, write_wanted
from eridiff.core.config import load_section, read_yaml, validate
from eridiff.core.errors import BaseError, DataError
from eridiff.core.files import read_text, write_text
from eridiff.core.progress import say
from eridiff.family import load_family, published
from eridiff.machine.gpus import Gpu, find_gpus
from eridiff.machine.local import find_home
from eridiff.params.captions import CaptionParams
from eridiff.params.edit import filled
from eridiff.params.model import ModelParams
from eridiff.projects.presets import Preset, all_presets, describe_gpus, read_preset
from eridiff.projects.projects import make_project, project_place, run_command
from eridiff.weights.files import open_weights

FITS, HERE = "fits", "here"
PROMPTS = [{"prompt": "[trigger]"}, {"prompt": "[trigger], outdoors, evening light"}]  # true of any pictures
README = """# {name}

Pictures and captions: data/raw. What is trained, and how: params.yaml. Results: data/samples, data/lora, data/export.

    eridiff why      # what would run, and why
    {run:<15}  # run it

Started from the preset {preset} on a machine with:

    {gpus}
"""


def start_project(name: str, images: Path, trigger: str, preset: Path, *, push: bool = False) -> Path:
    """Make a project from a preset, with the trigger and the export's name filled in; returns its folder.

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

    own = project_place(name).name

    def fill(folder: Path) -> None:
        changes = _own_settings(record, captions, own, folder)
        write_text(folder / "params.yaml", filled(read_text(preset), changes))
        write_text(
            folder / "README.md",
            README.format(name=own, run=run_command(folder), preset=preset.stem, gpus="\n    ".join(gpus)),
        )

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
    if find_home() and has_pointers(model.base):
        missing = missing_components(model.base, model.family)
        return f"{', '.join(missing)} not on this machine" if missing else HERE
    found = _find_base(model)
    return f"found in {found[0]}" if found else "not on this machine"


def settle_base(params: Path) -> str:
    """Make the pointers of a params file's base where there are none and its files are found; a line that says what is.

    Where they are not found, wanted pointers are written, so that what needs no weights runs.
    The base of a preset is called as its makers' model, whose usual files are looked for where local.yaml names none.
    """
    model = load_section(ModelParams, "model", params)
    if has_pointers(model.base):
        return f"base: {model.base}"
    sources = _find_base(model)
    if not sources:
        write_wanted(model.base, model.family)
        return f"{how_to_add(model.base, model.family)} Captions, buckets and `eridiff plan` run without it"
    said = ", ".join(map(str, sources))
    say(f"base: {model.base} from {said}")
    try:
        add_base(model.base, sources)
    except BaseError as error:
        write_wanted(model.base, model.family)
        return f"base: '{model.base}' could not be added from {said}: {error}"
    return f"base: {model.base}"


def _find_base(model: ModelParams) -> list[Path]:
    """The folder or files of a base: those that local.yaml names, if all are there, else its makers'; [] for none."""
    named = Places(model.base).named
    if named and all(path.exists() for path in named):
        return named
    found = find_published(model.family, model.base)
    return [] if found is None else [found]


def find_published(family: str, model: str) -> Path | None:
    """A file of a published model's denoiser under its usual name, or its folder in the hub's cache."""
    known = published(family)
    if model not in known.models:
        return None
    names = known.files[load_family(family).DENOISER][1:]
    for path in Places().files():
        if path.name in names and _shows(path, model):
            return path
    return cached_snapshot(known.hub[model])


def _shows(path: Path, model: str) -> bool:
    """Whether a file's header shows this model."""
    try:
        found, _ = components_in(open_weights(path))
    except (BaseError, DataError):
        return False
    return any(one.look.model == model for one in found)
