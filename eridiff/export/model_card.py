"""The model card beside an export: what it is, how to use it, what it was trained on, what made it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eridiff.bases.comfyui_files import ComfyFiles
from eridiff.bases.licences import Licence, notices_of, unknown
from eridiff.core.files import canonical_json


def model_card(
    title: str,
    files: Sequence[tuple[str, str]],
    lineage: Mapping[str, Any],
    stated: Mapping[str, str | None],
    licences: tuple[Licence, ...],
    comfy: ComfyFiles,
) -> str:
    """Markdown. `files` are (name, programs that read it); `stated` is what the user says of the LoRA.

    licences: of the base. comfy: the files that the workflow loads the base from.
    """
    trigger, description = lineage.get("trigger"), stated.get("description")
    kind = "the moving average (EMA) of the adapters" if lineage.get("ema") else "the adapters"
    lines = [*_front_matter(trigger, stated), f"# {title}", ""]
    lines += [description, ""] if description else []
    base = f"{lineage['base']} ({lineage['family']})"
    lines += [f"A LoRA for {base}: {kind} after {lineage['step']} steps.", ""]
    lines += [f"Trigger: `{trigger}`", ""] if trigger else []
    lines += ["## Files", "", *_table(("file", "for"), [(f"`{name}`", who) for name, who in files]), ""]
    lines += [
        "`workflow.json` is a ComfyUI graph (API format) that loads the base and the LoRA and samples once. It loads",
        f"{_joined(dict.fromkeys(comfy.files.values()))} ({comfy.source});",
        "where your files have other names, choose them in its loaders. The trained strength is 1.0.",
        "",
    ]
    lines += _data(lineage)
    lines += ["## Training", "", *_table(("param", "value"), _flat(lineage["params"])), ""]
    lines += ["## Made from", "", *_table(("input", "sha256"), _digests(lineage)), ""]
    lines += ["## Licence", "", f"Of this LoRA: {stated.get('license') or 'not stated'}.", ""]
    lines += _base_licence(lineage["base"], licences)
    return "\n".join(lines)


def _joined(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _front_matter(trigger: str | None, stated: Mapping[str, str | None]) -> list[str]:
    """The YAML block that model hubs read. JSON strings are YAML strings."""
    tags = ["lora", *[tag.strip() for tag in (stated.get("tags") or "").split(",") if tag.strip()]]
    lines = ["---", f"tags: {json.dumps(tags, ensure_ascii=False)}"]
    lines += [f"instance_prompt: {json.dumps(trigger, ensure_ascii=False)}"] if trigger else []
    licence = stated.get("license")
    lines += [f"license: {json.dumps(licence, ensure_ascii=False)}"] if licence else []
    return [*lines, "---", ""]


def _base_licence(base: str, licences: tuple[Licence, ...]) -> list[str]:
    """The section on the base's licence, its notices word by word."""
    lines = ["## Licence of the base", "", f"The licence of the base, `{base}`, binds this LoRA as well.", ""]
    if not licences:
        return [*lines, f"It is {unknown(base)}, then export again.", ""]
    for licence in licences:
        name = f"[{licence.name}]({licence.url})" if licence.url else licence.name
        lines.append(f"- {name}, according to {licence.source}")
    for notice in notices_of(licences):
        lines += ["", *(f"> {line}".rstrip() for line in notice.splitlines())]
    return [*lines, ""]


def _data(lineage: Mapping[str, Any]) -> list[str]:
    """The section on pictures: how many, in which buckets, with which tags."""
    rows = [(f"{width} x {height}", count) for width, height, count in lineage["buckets"]]
    tags = sorted(lineage["tag_frequency"].items(), key=lambda item: (-item[1], item[0]))[:10]
    lines = ["## Trained on", "", f"{lineage['num_pictures']} pictures.", ""]
    lines += [*_table(("bucket", "pictures"), rows), ""]
    named = ", ".join(f"{tag} ({count})" for tag, count in tags)
    return [*lines, f"Most frequent tags: {named}.", ""] if tags else lines


def _digests(lineage: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Digests of what train declares."""
    pointer = [
        (f"{component} ({kind})", f"`{digest}`")
        for component, identity in sorted(lineage["pointer"].items())
        for kind, digest in sorted(identity.items())
    ]
    return [*pointer, *((name, f"`{digest}`") for name, digest in sorted(lineage["inputs"].items()))]


def _flat(params: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested params as (path, JSON value); sections that are not used are left out."""
    rows: list[tuple[str, str]] = []
    for key, value in sorted(params.items()):
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        elif value is not None:
            rows.append((f"{prefix}{key}", canonical_json(value)))
    return rows


def _table(head: tuple[str, str], rows: Sequence[tuple[object, object]]) -> list[str]:
    """A Markdown table of two columns; a bar inside a cell would end it."""
    cells = [tuple(str(cell).replace("|", "\\|") for cell in row) for row in rows]
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {left} | {right} |" for left, right in cells)]
