"""Presets: params files to start from, and the memory of the card that each is meant for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eridiff.core.config import load_section
from eridiff.core.errors import ConfigError, did_you_mean
from eridiff.core.files import read_text
from eridiff.machine.code import template
from eridiff.machine.gpus import Gpu
from eridiff.machine.local import find_checkout, find_home
from eridiff.params.model import ModelParams

# In a preset's first comment. No param, since memory changes no result: a preset differs in what follows from it.
CARD = re.compile(r"\bcard of (\d+) GB\b")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A params file of presets/."""

    name: str
    model: ModelParams
    gigabytes: int | None  # memory of the card that it is meant for; None: it does not say


def read_preset(path: Path) -> Preset:
    """What a preset is for.

    Raises: ConfigError where the file cannot be read.
    """
    model = load_section(ModelParams, "model", path)
    comment = re.match(r"(#.*\n)*", read_text(path))
    found = CARD.search(comment[0]) if comment else None
    return Preset(name=path.stem, model=model, gigabytes=int(found[1]) if found else None)


def presets_dir() -> Path:
    """The folder of presets: in a checkout its own, elsewhere those that come with this eridiff."""
    checkout = find_checkout()
    return (checkout if checkout and checkout == find_home() else template()) / "presets"


def all_presets() -> list[Preset]:
    """Every preset, by name."""
    return [read_preset(path) for path in sorted(presets_dir().glob("*.yaml"))]


def find_preset(name: str) -> Path:
    """The file of a preset, by its name or an old one.

    Raises: ConfigError for an unknown name, with those that exist.
    """
    folder = presets_dir()
    lines = read_text(folder / "aliases.txt").splitlines() if (folder / "aliases.txt").exists() else []
    aliases = dict(line.split() for line in lines if line and not line.startswith("#"))
    path = folder / f"{aliases.get(name, name)}.yaml"
    if not path.exists():
        known = [*(preset.name for preset in all_presets()), *aliases]
        raise ConfigError(f"there is no preset '{name}'.{_meant(name) or did_you_mean(name, known)}")
    return path


def _meant(name: str) -> str:
    """Presets whose names hold a word, such as a family's: those of real models first. Empty where there are none."""
    found = [preset for preset in all_presets() if name and name in preset.name]
    found.sort(key=lambda preset: (preset.model.allow_cpu, not preset.name.startswith(name), -(preset.gigabytes or 0)))
    *others, last = [f"'{preset.name}'" for preset in found] or [""]
    return f" Did you mean {', '.join(others)}{' or ' if others else ''}{last}?" if last else ""


def describe_gpus(preset: Preset, gpus: Sequence[Gpu]) -> list[str]:
    """A line a GPU: its memory, what the preset is meant for, and presets of the same base that suit it better."""
    if not gpus:
        needs = "runs without" if preset.model.allow_cpu else f"needs one{_size(preset)}"
        return [f"GPU: none found (nvidia-smi names none): {preset.name} {needs}"]
    return [f"{gpu.described()}{_judge(preset, gpu)}" for gpu in gpus]


def _size(preset: Preset) -> str:
    return f" of {preset.gigabytes} GB" if preset.gigabytes else ""


def _judge(preset: Preset, gpu: Gpu) -> str:
    """How a GPU's memory compares."""
    wanted = preset.gigabytes
    if wanted is None or gpu.mib is None:
        return ""
    than = gpu.compare(wanted)
    if than == 0:
        return f": what {preset.name} is meant for"
    better = [
        other.name
        for other in all_presets()
        if other.model == preset.model and other.gigabytes and gpu.compare(other.gigabytes) >= 0
        if other.gigabytes > wanted or than < 0
    ]
    hint = f"; for this card: {', '.join(better)}" if better else ""
    return f": {'less' if than < 0 else 'more'} than the {wanted} GB that {preset.name} is meant for{hint}"
