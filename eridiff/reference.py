"""docs/params.md and docs/local.md, generated from the configuration's own types and docstrings.

`python -m eridiff.reference` writes them; a test compares.
"""

import json
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from eridiff.check import SECTIONS
from eridiff.core.config import Section
from eridiff.core.files import write_text
from eridiff.core.sections import docstrings, nested
from eridiff.machine.local import LocalConfig, checkout_root

PARAMS_HEAD = """# params.yaml

Every setting that can change a byte of a result, and nothing else. Unknown keys are refused, with the nearest known
name. Types are strict (`1` is not a string, `"1"` not a number; `1e-4` is a number). Every number has bounds, every
list a length; a text has at most 20,000 characters and no control characters. A file has at most 256 KiB, 10,000
values (an alias counts as its content) and 32 levels. Keys without a default are required.
This page is generated: `python -m eridiff.reference`.
"""
LOCAL_HEAD = """# local.yaml

Settings of one machine. None of them changes a byte of a result, so no stage reruns when one changes. The file is
optional, not tracked, and as strict as params.yaml. It is searched for in the current folder and then upward, so the
checkout's file also applies in projects and experiments. Missing keys are taken from `~/.config/eridiff/local.yaml`,
which applies in every checkout and project. This page is generated: `python -m eridiff.reference`.

Three environment variables take precedence: `ERIDIFF_STORE` (the store's folder), `ERIDIFF_DEVICE`, and
`ERIDIFF_MODELS` (folders searched for bases, joined by `:`).
"""
SIGNS = {"Ge": ">=", "Gt": ">", "Le": "<=", "Lt": "<", "MinLen": "at least", "MaxLen": "at most"}
NAMES = {int: "int", float: "number", str: "text", bool: "true / false", NoneType: "null"}


def params_page() -> str:
    """docs/params.md."""
    parts = [PARAMS_HEAD]
    for name, model in SECTIONS.items():
        parts.append(f"\n## {name}\n\n{_first_line(model)}\n\n{_table(model)}")
        parts += [f"\n### {path}\n\n{_first_line(m)}\n\n{_table(m)}" for path, m in nested(model, name)]
    return "".join(parts)


def local_page() -> str:
    """docs/local.md."""
    return f"{LOCAL_HEAD}\n{_table(LocalConfig)}"


def _table(model: type[BaseModel]) -> str:
    rows = ["| key | type | default | |", "|---|---|---|---|"]
    texts = docstrings(model)
    for name, field in model.model_fields.items():
        text = " ".join(texts[name].split()).replace("|", "\\|")
        rows.append(f"| `{name}` | {_type(field)} | {_default(field)} | {text} |")
    return "\n".join(rows) + "\n"


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


def _type(field: FieldInfo) -> str:
    return _spell(field.annotation) + _bounds(field.metadata)


def _spell(annotation: Any) -> str:
    """A type in words."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin in (Union, UnionType):
        return " or ".join(_spell(arg) for arg in args)
    if origin is tuple:
        return f"list of {_spell(args[0])}" if args[-1] is Ellipsis else f"list of {len(args)} {_spell(args[0])}"
    if origin is dict:
        return f"{_spell(args[0])} -> {_spell(args[1])}"
    if hasattr(annotation, "__metadata__"):
        inner = [part for info in annotation.__metadata__ for part in getattr(info, "metadata", [])]
        bounds = _bounds(inner).removeprefix(", ")
        return _spell(annotation.__origin__) + (f" ({bounds})" if bounds else "")
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "section"
    return NAMES.get(annotation, str(annotation))


def _bounds(metadata: list[Any]) -> str:
    """The bounds of a number, or the length of a list."""
    found = []
    for bound in metadata:
        name = type(bound).__name__
        if name in SIGNS:
            value = getattr(bound, {"MinLen": "min_length", "MaxLen": "max_length"}.get(name, name.lower()))
            found.append(f"{SIGNS[name]} {_number(value)}")
    return f", {', '.join(found)}" if found else ""


def _number(value: float) -> str:
    """A bound; the largest as powers of two."""
    if isinstance(value, int) and abs(value) > 10**12:
        return f"{'-' if value < 0 else ''}2^{value.bit_length() - 1}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Section):
        return "see below"
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def main() -> None:
    """Write both pages."""
    docs = checkout_root() / "docs"
    for path, text in pages().items():
        write_text(docs / path, text)


def pages() -> dict[str, str]:
    """File name -> text."""
    return {"params.md": params_page(), "local.md": local_page()}


if __name__ == "__main__":
    main()
