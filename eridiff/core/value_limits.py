"""Plain values of YAML and JSON files: how deep, how many and how long they may be, and whether a value is one.

One rule for every reader: eridiff/core/config.py has YAML's, eridiff/core/json_files.py JSON's. Numbers of params have
closer bounds in their models.
"""

from collections.abc import Mapping
from typing import Any

from eridiff.core.printable import UNSAFE, printable

MAX_DEPTH = 32  # levels of lists and sections; params.yaml has 5
MAX_VALUES = 10_000  # of one YAML file, aliases counted as what they stand for; dvc.lock of the demo has 2,500
MAX_LETTERS = 20_000  # of one text in a section; what else stands in files may have more
MAX_TEXT = 1 << 18
MAX_SHOWN = 120  # letters of a value in a message
LINES = {"\n", "\r", "\t"}


def shown(value: object) -> str:
    """A value in a message: as Python writes it, cut."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"  # Python itself refuses to write out the largest
    if isinstance(value, Mapping | list | tuple) and len(value) > MAX_SHOWN:
        return f"{len(value)} values"
    text = printable(repr(value[: 2 * MAX_SHOWN] if isinstance(value, str) else value))
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def find_fault(value: object) -> str:
    """What is wrong with a value as it came out of a file, with the path of the key; empty for a sound one.

    Whole numbers have 64 bits, texts no control characters, keys are texts or such numbers, and nothing holds itself.
    Dates and the like are not looked at: who asks for a type refuses them.
    """
    todo: list[tuple[str, object, int]] = [("", value, 0)]
    count = 0
    while todo:
        path, item, depth = todo.pop()
        count += 1
        if count > MAX_VALUES:
            return f"more than {MAX_VALUES} values"
        if depth > MAX_DEPTH:
            return f"more than {MAX_DEPTH} levels of lists and sections"
        if fault := _fault_of(item):
            return f"{path or 'the value'}: {fault}"
        if isinstance(item, Mapping):
            for key in item:
                if fault := "a list or section" if isinstance(key, tuple | frozenset | Mapping) else _fault_of(key):
                    return f"a key of {path or 'the file'}: {fault}"
            todo += [(f"{path}.{shown_key(key)}".lstrip("."), inner, depth + 1) for key, inner in item.items()]
        elif isinstance(item, list | tuple):
            todo += [(f"{path}.{place}".lstrip("."), inner, depth + 1) for place, inner in enumerate(item)]
    return ""


def shown_key(key: object) -> str:
    """A key in a path, cut."""
    text = printable(str(key))
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def _fault_of(item: Any) -> str:
    """What is wrong with one text or number."""
    if isinstance(item, bool):
        return ""
    if isinstance(item, int) and not -(1 << 63) <= item < 1 << 64:
        return f"{shown(item)}, and none has more than 64"
    if not isinstance(item, str):
        return ""
    if len(item) > MAX_TEXT:
        return f"a text of {len(item)} letters, more than {MAX_TEXT}"
    odd = next((found[0] for found in UNSAFE.finditer(item) if found[0] not in LINES and not is_bidi(found[0])), None)
    return f"{shown(item)} holds the control character U+{ord(odd):04X}" if odd else ""


def is_bidi(letter: str) -> bool:
    """Whether a character only says in which direction letters run: captions of some languages hold them."""
    return "\u202a" <= letter <= "\u202e" or "\u2066" <= letter <= "\u2069"
