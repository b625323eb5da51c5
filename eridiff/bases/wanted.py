"""Bases that are wanted: pointers without content, where a base is named and its weights are not here yet.

DVC stops before a stage whose dependency is missing, with no more than a path. With a wanted pointer in its place
everything runs that needs no weights, and the stages that need some start and say what to do.
"""

import json
from pathlib import Path
from typing import Any

from eridiff.bases.licences import published_licence
from eridiff.core.errors import BaseError, did_you_mean
from eridiff.core.files import write_text
from eridiff.core.json_files import read_json
from eridiff.family import family_names, load_family, published
from eridiff.machine.local import bases_dir

KEY = "wanted"  # of a pointer: what is known of the base, instead of its components


def makers_family(base: str) -> str | None:
    """The family whose makers published a model of this name; None where nobody did."""
    return next((name for name in family_names() if base in published(name).models), None)


def wanted_family(path: Path) -> str | None:
    """The family that a wanted pointer names; None where a file is none. Damaged ones are told where they are read."""
    try:
        record = read_json(path)
    except ValueError:
        return None
    if not isinstance(record.get(KEY), dict):
        return None
    return next((name for name in family_names() if name == record.get("family")), None)


def is_awaited(base: str) -> bool:
    """Whether a base has wanted pointers."""
    path = bases_dir() / base / "denoiser.json"
    return path.exists() and wanted_family(path) is not None


def has_pointers(base: str) -> bool:
    """Whether a base was added here: it has pointers, and they are more than wanted."""
    return (bases_dir() / base / "denoiser.json").exists() and not is_awaited(base)


def write_wanted(base: str, family: str) -> list[Path]:
    """Write wanted pointers where a base has none; pointers that are there stay. Returns what was written."""
    written = []
    for part in load_family(family).PARTS:
        path = bases_dir() / base / f"{part}.json"
        if not path.exists():
            record = {"format": 1, "family": family, "part": part, KEY: _facts(base, family, part)}
            write_text(path, json.dumps(record, sort_keys=True, indent=1, ensure_ascii=False) + "\n")
            written.append(path)
    return written


def want_base(base: str) -> list[Path]:
    """`eridiff base want`: wanted pointers of a published model.

    Raises: BaseError for a name that no makers gave.
    """
    family = makers_family(base)
    if family is None:
        known = [name for one in family_names() for name in published(one).models]
        raise BaseError(f"'{base}' is no published model.{did_you_mean(base, known)}")
    return write_wanted(base, family)


def _facts(base: str, family: str, part: str) -> dict[str, Any]:
    """What is known of a base without its files: none of it is compared with anything."""
    known = published(family)
    facts: dict[str, Any] = {"name": base, "hub": known.hub.get(base), "license": _licence_page(base, family)}
    facts["gigabytes"] = known.gigabytes.get(base, {}).get(part)
    return {key: value for key, value in facts.items() if value is not None}


def _licence_page(base: str, family: str) -> str | None:
    licence = published_licence(family, base)
    return licence.url if licence else None


def how_to_add(base: str, family: str) -> str:
    """The one sentence on a base that is not here: the command, where it is had, its size and its licence's page."""
    known = published(family)
    hub, size = known.hub.get(base), sum(known.gigabytes.get(base, {}).values())
    facts = [f"about {size:.0f} GB"] if size else []
    facts += [f"licence: {page}"] if (page := _licence_page(base, family)) else []
    more = f" ({', '.join(facts)})" if facts else ""
    source = f"{hub}, which is fetched from the hub{more}" if hub else "OWNER/NAME of the hub"
    return (
        f"base '{base}' is not here yet: add it with `eridiff base add {base} SOURCE`, where SOURCE is a file of "
        f"ComfyUI, a model folder, or {source}."
    )
