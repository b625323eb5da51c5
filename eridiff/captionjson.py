"""Captions in JSON: text => values within bounds, and the caption that a value of one picture holds."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

MAX_VALUES = 3_000_000  # of one text: each takes 50 to 100 bytes, however short it is written
MAX_COMMAS = 12_000_000  # as many numbers, or words in captions
SENTENCES = ("caption", "text", "prompt", "description")  # the first that holds something counts
BOARD_TAGS = "tag_string"
TAGS = ("tags", BOARD_TAGS)  # of kohya's scripts and of picture boards; added to the sentence
TALKS = ("conversations", "messages", "conversation")
SPEAKERS = ("gpt", "assistant", "model")
BOARD_WORD = re.compile(r"(?:^|\s)[^\s_]+_\S+(?:\s|$)")  # `long_hair` among others


class NotJson(ValueError):
    """A text that is no JSON, or more than is read."""


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises: NotJson that says why: also for keys that stand twice, of which one would be lost, for nesting beyond
    Python's stack, and for more values than memory is for.
    """
    values = text.count("[") + text.count("{") + text.count('"') // 2
    if values > MAX_VALUES or text.count(",") > MAX_COMMAS:
        raise NotJson(f"more than {MAX_VALUES:,} values, and no more are read: split it, or use metadata.jsonl")
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_int=_short)
    except RecursionError:
        raise NotJson("lists or objects in each other, deeper than is read") from None
    except NotJson:
        raise
    except ValueError as error:
        raise NotJson(str(error)) from None


def caption_in(value: Any) -> str | None:
    """The caption that a picture's JSON value holds: a text, a list of tags, or an object's sentence and tags.

    kohya's scripts keep both, and train `caption, tags`. A list of sentences is one a line. None: there is none.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        sentence = next((found for name in SENTENCES if (found := _lines(value.get(name), "\n"))), None)
        tags = next((found for name in TAGS if (found := _tags(value.get(name), name))), None)
        return ", ".join(filter(None, [sentence, tags])) or _by_likely_name(value)
    return _lines(value, ", ")


def _by_likely_name(value: Mapping[str, Any]) -> str | None:
    """The only text of an object, or the only one under a name such as `<DETAILED_CAPTION>` or `joycaption`."""
    likely = [one for name, one in value.items() if len(value) == 1 or "caption" in name.lower()]
    texts = {text for one in likely if (text := _lines(one, "\n")) is not None and (text or len(value) == 1)}
    return texts.pop() if len(texts) == 1 else None


def answers_in(record: Mapping[str, Any]) -> list[str] | None:
    """What the model says in a conversation about a picture, as LLaVA and chat formats keep captions; None without."""
    turns = next((found for name in TALKS if isinstance(found := record.get(name), list)), None)
    if turns is None:
        return None
    told = [(turn.get("from", turn.get("role")), turn) for turn in turns if isinstance(turn, Mapping)]
    texts = [_spoken(turn.get("value", turn.get("content"))) for who, turn in told if who in SPEAKERS]
    return [text for text in texts if text]


def records_in(value: Any) -> list[dict[str, Any]] | None:
    """The rows of a data set's JSON: a list of objects, or COCO's captions by the pictures' ids; None for others."""
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        return value
    if not isinstance(value, dict):
        return None
    images, notes = value.get("images"), value.get("annotations")
    if not (isinstance(images, list) and isinstance(notes, list) and all(isinstance(x, dict) for x in images + notes)):
        return None
    captions: dict[Any, list[str]] = {}
    for note in notes:
        if isinstance(note.get("caption"), str):
            captions.setdefault(str(note.get("image_id")), []).append(note["caption"])
    rows = ({"file_name": one.get("file_name"), "text": captions.get(str(one.get("id")))} for one in images)
    return list(rows) if captions else None


def _spoken(value: Any) -> str | None:
    """The text of a turn: as such, or in parts."""
    if isinstance(value, list):
        value = [one.get("text") if isinstance(one, Mapping) else one for one in value]
        value = [one for one in value if isinstance(one, str)]
    return _lines(value, "\n")


def lone_surrogate(text: str) -> str | None:
    """The half of a letter that a text holds, as `U+D800`: JSON can write it, no file can hold it. None without."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"U+{ord(text[error.start]):04X}"
    return None


def _lines(value: Any, between: str) -> str | None:
    """A text, or a list of texts joined; None for anything else."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, Sequence) and value and all(isinstance(one, str) for one in value):
        return between.join(one.strip() for one in value if one.strip())
    return None


def _tags(value: Any, name: str) -> str | None:
    """Tags of an object, between commas: of picture boards they may stand by kind, or between spaces.

    With spaces only where it is certain: the field is never written otherwise, or a tag holds `_` for its own spaces.
    """
    if isinstance(value, Mapping):
        kinds = [one for kind in value.values() for one in (kind.values() if isinstance(kind, Mapping) else [kind])]
        return ", ".join(dict.fromkeys(filter(None, (_lines(one, ", ") for one in kinds)))) or None
    text = _lines(value, ", ")
    if not isinstance(value, str) or text is None or "," in text:
        return text
    return ", ".join(text.split()) if name == BOARD_TAGS or BOARD_WORD.search(text) else text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise NotJson(f"the key {twice[:60]!a} stands twice")
    return found


def _short(digits: str) -> int:
    """No caption is a number: one of thousands of digits would only take time."""
    if len(digits) > 100:
        raise NotJson(f"a number of {len(digits)} digits")
    return int(digits)
