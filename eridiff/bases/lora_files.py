"""What a LoRA file is, in any dialect: method, rank, alpha, modules, base, trigger, steps and where it comes from.

Only the header is read, and the numbers of alpha. Names are looked up in the key tables of all families, both ways:
the makers' names and diffusers', with dots or with underscores.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from eridiff.core.json_files import parse_json
from eridiff.family import family_names, load_family, load_keys, published
from eridiff.formats.floats import to_float32
from eridiff.weights.component_tensors import shorten
from eridiff.weights.files import Weights

# Endings of tensor names: (what, its role, regular expression).
ENDINGS = (
    ("LoRA", "down", r"\.lora_down\.weight|\.lora_A(\.[^.]+)?\.weight|[._]lora(_linear_layer)?\.down\.weight"),
    ("LoRA", "up", r"\.lora_up\.weight|\.lora_B(\.[^.]+)?\.weight|[._]lora(_linear_layer)?\.up\.weight"),
    ("LoRA", "mid", r"\.lora_mid\.weight"),
    ("DoRA", "scale", r"\.dora_scale|\.lora_magnitude_vector(\.[^.]+)?(\.weight)?"),
    ("LoHa", "down", r"\.hada_w[12]_b"),
    ("LoHa", "up", r"\.hada_(w[12]_a|t[12])"),
    ("LoKr", "down", r"\.lokr_w[12]_b"),
    ("LoKr", "up", r"\.lokr_(w[12]|w[12]_a|t[12])"),
    ("OFT", "up", r"\.(b?oft_.+)"),
    ("whole differences", "up", r"\.(diff|diff_b|set_weight)"),
    ("", "alpha", r"\.alpha"),
)
SPLIT = re.compile("|".join(f"(?P<e{i}>{pattern})" for i, (_, _, pattern) in enumerate(ENDINGS)))
METHODS = ("DoRA", "LoKr", "LoHa", "OFT", "LoRA", "whole differences")  # the most special one names the file
# Beginnings of module names: (prefix, component of the base, dialect).
PREFIXES = (
    ("lora_unet_", "denoiser", "kohya's names"),
    ("oft_unet_", "denoiser", "kohya's names"),
    ("lora_te1_", "text encoder 1", "kohya's names"),
    ("lora_te2_", "text encoder 2", "kohya's names"),
    ("lora_te3_", "text encoder 3", "kohya's names"),
    ("lora_te_", "text encoder", "kohya's names"),
    ("lora_transformer_", "denoiser", "OneTrainer's names"),
    ("lycoris_", "denoiser", "LyCORIS's names"),
    ("base_model.model.", "denoiser", "PEFT's names"),
    ("unet.", "denoiser", "diffusers' names (PEFT)"),
    ("transformer.", "denoiser", "diffusers' names (PEFT)"),
    ("text_encoder.", "text encoder 1", "diffusers' names (PEFT)"),
    ("text_encoder_2.", "text encoder 2", "diffusers' names (PEFT)"),
    ("text_encoder_3.", "text encoder 3", "diffusers' names (PEFT)"),
    ("model.diffusion_model.", "denoiser", "ComfyUI's names"),
    ("diffusion_model.", "denoiser", "ComfyUI's names"),
    ("", "denoiser", "names without a prefix"),
)
KNOWN_SHARE = 0.9  # of a denoiser's modules, that must be a model's for the LoRA to be of it
MAX_LETTERS = 100
MAX_ALPHA = 1e9  # above it, it is no alpha
# Metadata of other trainers, in the order in which they are believed.
BASE_KEYS = ("modelspec.architecture", "ss_base_model_version", "ss_sd_model_name")
STEP_KEYS = ("ss_steps", "ss_max_train_steps")
ORIGIN_KEYS = (
    "modelspec.title",
    "modelspec.author",
    "modelspec.date",
    "modelspec.merged_from",
    "modelspec.license",
    "ss_output_name",
    "ss_num_train_images",
    "ss_epoch",
    "ss_training_comment",
    "ss_sd_scripts_commit_hash",
    "sshs_model_hash",
)


@dataclass
class Module:
    """One adapted module."""

    component: str
    name: str  # less the prefix
    dialect: str
    methods: set[str] = field(default_factory=set)
    ranks: list[int] = field(default_factory=list)
    alpha: float | None = None


def split_name(tensor: str) -> tuple[str, int] | None:
    """Tensor name => (stem of its module, place in ENDINGS); None where it is of no adapter."""
    for found in SPLIT.finditer(tensor):
        if found.start() and found.end() == len(tensor):
            return tensor[: found.start()], next(i for i in range(len(ENDINGS)) if found[f"e{i}"] is not None)
    return None


def is_lora(names: Iterable[str]) -> bool:
    """Whether tensors are an adapter's."""
    found = (split_name(name) for name in names)
    return any(split is not None and ENDINGS[split[1]][0] not in ("", "whole differences") for split in found)


def read_modules(weights: Weights) -> dict[str, Module]:
    """Stem -> module of every adapter in a file."""
    modules: dict[str, Module] = {}
    for tensor in weights.where:
        if (split := split_name(tensor)) is None:
            continue
        stem, (method, role, _) = split[0], ENDINGS[split[1]]
        if stem not in modules:
            prefix, component, dialect = next(row for row in PREFIXES if stem.startswith(row[0]))
            modules[stem] = Module(component, stem.removeprefix(prefix).replace(".processor.", "."), dialect)
        shape = weights.shape(tensor)
        if method:
            modules[stem].methods.add(method)
        if role == "down" and shape:
            modules[stem].ranks.append(shape[0])
        if role == "alpha" and shape in ((), (1,)) and weights.dtype(tensor) in ("F32", "F16", "BF16"):
            modules[stem].alpha = float(to_float32(weights.raw(tensor)).reshape(()))
    return {stem: module for stem, module in modules.items() if module.methods}


def describe_lora(weights: Weights) -> Iterator[str]:
    """Lines that say what a LoRA file is."""
    modules = read_modules(weights)
    metadata = {key: value for file in weights.files for key, value in file.metadata.items()}
    lineage = _read_json(metadata.get("eridiff", ""))
    yield _method_line(weights, modules)
    yield _modules_line(modules)
    yield f"rank {_counts(module.ranks[0] for module in modules.values() if module.ranks)}; {_alpha(modules, metadata)}"
    yield _base_line(modules, metadata, lineage)
    yield _trigger_line(metadata, lineage)
    yield _steps_line(metadata, lineage)
    yield from _origin_lines(metadata, lineage)


def _method_line(weights: Weights, modules: Mapping[str, Module]) -> str:
    methods = {method for module in modules.values() for method in module.methods}
    first = next(method for method in METHODS if method in methods)
    also = sorted(methods - {first, "LoRA" if first == "DoRA" else first})
    dialects = Counter(module.dialect for module in modules.values()).most_common()
    formats = Counter(weights.dtype(name) for name in weights.where).most_common()
    more = f" and {', '.join(also)}" if also else ""
    return f"{first}{more}: {' and '.join(name for name, _ in dialects)}; " + ", ".join(
        f"{name} x {count}" for name, count in formats
    )


def _modules_line(modules: Mapping[str, Module]) -> str:
    components = Counter(module.component for module in modules.values())
    counts = ", ".join(f"{count} of the {name}" for name, count in sorted(components.items()))
    return f"modules: {counts} ({shorten(sorted(modules))})"


def _counts(values: Iterable[float]) -> str:
    """`16`, or `8 x 100, 16 x 622`, by module."""
    found = Counter(f"{value:g}" for value in values)
    if len(found) == 1:
        return next(iter(found))
    return (
        ", ".join(f"{value} x {count}" for value, count in sorted(found.items(), key=lambda p: float(p[0]))) or "none"
    )


def _alpha(modules: Mapping[str, Module], metadata: Mapping[str, str]) -> str:
    """Alpha as the file has it; where it has none, what its metadata say, else the strength that readers take."""
    alphas = [module.alpha for module in modules.values() if module.alpha is not None]
    if alphas:
        ratios = {m.alpha / m.ranks[0] for m in modules.values() if m.alpha is not None and m.ranks and m.ranks[0]}
        strength = f" (alpha / rank {ratios.pop():g})" if len(ratios) == 1 else ""
        return f"alpha {_counts(alphas)}{strength}"
    packed = _read_json(metadata.get("lora_adapter_metadata", ""))
    stated = [value for key, value in packed.items() if key.split(".")[-1] == "lora_alpha"]
    if numbers := [value for value in stated if isinstance(value, int | float) and abs(value) < MAX_ALPHA]:
        return f"alpha {_counts(dict.fromkeys(numbers))}, by lora_adapter_metadata (ComfyUI does not read it)"
    return "alpha is not in the file: readers take the rank"


@cache
def known_modules(family: str, model: str) -> frozenset[str]:
    """Names of a published denoiser's modules, the makers' and diffusers', with underscores for dots."""
    keys, component = load_keys(family), load_family(family).DENOISER
    config = published(family).models[model][component]
    rows = [*keys.COMPONENTS[component].rows("original", config)]
    names = {name.rpartition(".")[0] for row in rows for name in (row.target, *row.slices)}
    tables = [row for dialect in keys.DIALECTS for row in dialect.table(config)]
    names |= {name for row in tables for name in (row.target, *row.slices)}
    return frozenset(name.replace(".", "_") for name in names)


def all_models() -> list[tuple[str, str]]:
    """(family, model) of every published model."""
    return [(family, model) for family in family_names() for model in published(family).models]


def fitting_models(
    modules: Mapping[str, Module], models: Iterable[tuple[str, str]]
) -> tuple[list[tuple[str, str]], float]:
    """The models that have most of the denoiser's modules by name, and the share that they have."""
    names = {module.name.replace(".", "_") for module in modules.values() if module.component == "denoiser"}
    shares = {model: len(names & known_modules(*model)) / len(names) for model in models if names}
    best = max(shares.values(), default=0.0)
    return [model for model, share in shares.items() if share == best and best], best


def _claimed(metadata: Mapping[str, str], lineage: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The models that a file says it is of; all where it says nothing that is known. Families share some names."""
    said = metadata.get("modelspec.architecture", "").split("/")[0]

    def is_meant(family: str, model: str) -> bool:
        config = published(family).models[model][load_family(family).DENOISER]
        return load_keys(family).architecture(config) == said

    models = all_models()
    same = [model for model in models if lineage.get("family") == model[0]]
    return [model for model in same or models if is_meant(*model)] or same or models


def _base_line(modules: Mapping[str, Module], metadata: Mapping[str, str], lineage: Mapping[str, Any]) -> str:
    fitting, share = fitting_models(modules, _claimed(metadata, lineage))
    models = " or ".join(f"{family} ({model})" for family, model in fitting)
    if share >= KNOWN_SHARE:
        of = "all" if share == 1 else f"{share:.1%}"
        names = f"{of} of the denoiser's modules are those of {models}"
    else:
        nearest = f" (at most {share:.0%}: {models})" if models else ""
        names = f"its modules are of none of the models that are trained here{nearest}"
    said = (
        [f"{_plain(lineage['base'])} ({_plain(lineage.get('family'))}), by its lineage"] if lineage.get("base") else []
    )
    said += [f"{_plain(metadata[key])} ({key})" for key in BASE_KEYS if metadata.get(key)]
    return f"base: {'; '.join([*said, names])}"


def _trigger_line(metadata: Mapping[str, str], lineage: Mapping[str, Any]) -> str:
    stated = metadata.get("modelspec.trigger_phrase") or lineage.get("trigger")
    if stated:
        return f"trigger: {_plain(stated)}"
    tags: Counter[str] = Counter()
    for folder in _read_json(metadata.get("ss_tag_frequency", "")).values():
        if isinstance(folder, dict):
            tags.update({str(tag).strip(): count for tag, count in folder.items() if isinstance(count, int)})
    often = ", ".join(f"{_plain(tag)} ({count})" for tag, count in tags.most_common(3))
    return f"trigger: none is named{f'; its most frequent tags are {often}' if often else ''}"


def _steps_line(metadata: Mapping[str, str], lineage: Mapping[str, Any]) -> str:
    if lineage.get("step"):
        params = lineage.get("params")
        whole = params.get("steps") if isinstance(params, dict) else None
        average = ", the moving average" if lineage.get("ema") else ""
        return f"steps: {_plain(lineage['step'])}{f' of {_plain(whole)}' if whole else ''}{average}, by its lineage"
    for key in STEP_KEYS:
        if metadata.get(key):
            return f"steps: {_plain(metadata[key])} ({key})"
    info = _read_json(metadata.get("training_info", ""))
    return f"steps: {_plain(info['step'])} (training_info)" if info.get("step") else "steps: not said"


def _origin_lines(metadata: Mapping[str, str], lineage: Mapping[str, Any]) -> Iterator[str]:
    """Where it comes from: eridiff's digests, or what other trainers write."""
    software = _read_json(metadata.get("software", "")).get("name")
    if metadata.get("ss_network_module"):
        software = software or f"sd-scripts or what writes its keys ({metadata['ss_network_module']})"
    said = [f"made by {_plain(software)}"] if software and not lineage else []
    said += [
        f"{key.split('.')[-1].removeprefix('ss_')} {_plain(metadata[key])}" for key in ORIGIN_KEYS if metadata.get(key)
    ]
    if said:
        yield f"origin: {', '.join(said)}"
    if lineage:
        digests = {**_digests(lineage.get("pointer"), "content"), **_digests(lineage.get("inputs"), "")}
        yield "lineage: made by eridiff from " + ", ".join(f"{name} {digest}" for name, digest in digests.items())
    if not said and not lineage:
        yield "origin: the file says nothing"


def _digests(record: Any, key: str) -> dict[str, str]:
    """Name -> start of a digest, of what a lineage holds of them."""
    if not isinstance(record, dict):
        return {}
    values = {name: value.get(key) if key and isinstance(value, dict) else value for name, value in record.items()}
    return {_plain(name): _plain(value)[:12] for name, value in sorted(values.items()) if value}


def _read_json(text: str) -> dict[str, Any]:
    """Metadata that are JSON; empty where they are not, since other programs write what they like."""
    try:
        record = parse_json(text)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _plain(value: object) -> str:
    """A value of a stranger's file, fit for a terminal: one line, no control letters, not long."""
    text = "".join(letter if letter.isprintable() else "?" for letter in str(value)[: MAX_LETTERS + 1])
    return text if len(text) <= MAX_LETTERS else text[:MAX_LETTERS] + "..."
