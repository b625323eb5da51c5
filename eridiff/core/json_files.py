"""JSON files that people and other programs write: pointers, licences, configs of models. One reader, in bounds."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from eridiff.core.files import read_file
from eridiff.core.value_limits import MAX_LETTERS, find_fault, shown

MAX_JSON_BYTES = 1 << 22  # of one file; a pointer of a base has 10,000


class Record(BaseModel):
    """What a file must hold to be read; what else it holds is left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, str_max_length=MAX_LETTERS)


RecordT = TypeVar("RecordT", bound=Record)


def parse_json(text: str | bytes, **hooks: Any) -> Any:
    """The value of a text of JSON.

    Raises: ValueError where it is none, or goes deeper than Python follows.
    """
    try:
        return json.loads(text, **hooks)
    except RecursionError:
        raise ValueError("lists and objects stand too deep in each other") from None


def load_json(path: Path, at_most: int = MAX_JSON_BYTES) -> Any:
    """The value in a file that a program of ours, or DVC, wrote, of at most so many bytes.

    Raises: OSError as files.read_file, ValueError where it is no JSON in UTF-8.
    """
    return parse_json(read_file(path, at_most).decode("utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file.

    Raises: ValueError, in words, where it is no JSON in UTF-8, no object, holds a key twice or is out of the bounds of
    eridiff/core/value_limits.py, or where it is no file (a pipe is not waited for); FileNotFoundError.
    """
    try:
        value = parse_json(read_file(path, MAX_JSON_BYTES).decode("utf-8"), object_pairs_hook=_once)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(error.strerror) from None
    if not isinstance(value, dict):
        raise ValueError(f"it holds {shown(value)}, no object")
    if fault := find_fault(value):
        raise ValueError(fault)
    return value


def read_record(path: Path, model: type[RecordT]) -> RecordT:
    """The object in a file as a model has it.

    Raises: ValueError as read_json, and with the key's path where a key is missing or of another type.
    """
    try:
        return model.model_validate_json(json.dumps(read_json(path)))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where} is {shown(first['input'])}: {first['msg'].lower()}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {shown(next(name for name in names if names.count(name) > 1))} stands twice")
    return found
