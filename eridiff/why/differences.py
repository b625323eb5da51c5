"""Which part of a sample's key differs from the one it had: what `eridiff why` names."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eridiff.store.entries import KeyFields, Location, open_shard, read_catalogue
from eridiff.versions import Versions, describe_change

MAX_ALIKE = 16  # entries of the same picture or text that a new sample is compared with
DIGEST_LETTERS = 64
SHOWN_LETTERS = 8
MAX_LETTERS = 80  # of a caption
Change = tuple[Any, Any]  # before, now; None where there was or is nothing


class Entries:
    """The key fields of entries, each file's header read once and only when asked for."""

    def __init__(self, known: Mapping[str, Location], subject: str) -> None:
        """known: key -> where it lies. subject: the part that says what is encoded, `pixels` or `text`."""
        self.known, self.subject = known, subject
        self._files: dict[Path, dict[str, Location]] = {}
        self._alike: dict[str, list[KeyFields]] | None = None

    def key_fields(self, key: str | None) -> KeyFields | None:
        """The fields of an entry; None where there is none."""
        location = self.known.get(key) if key else None
        if location is None:
            return None
        if location.known is not None:
            return location.known
        if location.path not in self._files:
            self._files[location.path] = read_catalogue(open_shard(location.path))
        return self._files[location.path][location.key].key_fields

    def alike(self, key_fields: KeyFields) -> KeyFields | None:
        """The entry of the same picture or text that differs least; None where there is none."""
        if self._alike is None:
            self._alike = defaultdict(list)
            for key in sorted(self.known):
                other = self.key_fields(key) or {}
                self._alike[str(other.get(self.subject))].append(other)
        found = self._alike.get(str(key_fields[self.subject]), [])[:MAX_ALIKE]
        return min(found, key=lambda other: len(differences(other, key_fields)), default=None)


def differences(before: KeyFields, now: KeyFields) -> dict[str, Change]:
    """Leaf of the key -> its value before and now, where they differ; a crop is one leaf."""
    old, new = leaves(before), leaves(now)
    return {
        name: (old.get(name), new.get(name))
        for name in sorted({*old, *new})
        if _plain(old.get(name)) != _plain(new.get(name))
    }


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Key path -> value of nested params or key fields; a crop is kept whole."""
    if isinstance(value, Mapping) and path != "crop":
        return {k: v for key, item in value.items() for k, v in leaves(item, f"{path}.{key}" if path else key).items()}
    return {path: value}


def changed_params(
    now: Mapping[str, Any], before: Mapping[str, Any], versions: Mapping[str, Versions], family: str
) -> list[str]:
    """Params that differ from those of a stage's last run, in words; of a version, what each raise changes.

    versions: name of a version -> the file that it stands in.
    """
    changed = [key for key in sorted({*now, *before}) if now.get(key) != before.get(key)]
    lines = []
    for key in changed:
        if key not in versions:
            old, new = (repr(side[key]) if key in side else "(absent)" for side in (before, now))
            lines.append(f"{key}: {old} -> {new}")
        elif key in before or "model.family" not in changed:  # else it is of another family's file
            lines.append(describe_change(versions[key], key, before.get(key), now.get(key), family))
    return lines


def _plain(value: Any) -> Any:
    """As it comes out of JSON: a tuple is a list."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def as_json(changes: Mapping[str, Change]) -> dict[str, list[Any]]:
    """Changes as plain values."""
    return {name: [_plain(before), _plain(now)] for name, (before, now) in changes.items()}


def describe(changes: Mapping[str, Change], stage: str) -> str:
    """Changes in words: `crop (192, 192)@(0, 4) -> (256, 256)@(0, 0)`."""
    return ", ".join(_describe(name, *change, stage) for name, change in changes.items())


def _describe(name: str, before: Any, now: Any, stage: str) -> str:
    if name == "crop":
        return _describe_crop(before, now)
    if name == "text":  # the new one is the sample's name
        return f"was {_shorten(before)!r}"
    if name == "probe":
        return f"encoder drift {before or 'none'} -> {now or 'none'}"
    section, _, rest = name.partition(".")
    name = f"{stage}.{rest}" if section == "params" else name
    return f"{name} {_show(before)} -> {_show(now)}"


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_LETTERS else text[:MAX_LETTERS] + "..."


def _describe_crop(before: Any, now: Any) -> str:
    """What is cut out of the scaled picture, where; its scale and mirroring where only these differ."""
    if not before or not now:
        return f"crop {_crop(before)} -> {_crop(now)}"
    old, new = _crop(before), _crop(now)
    if _plain(before["resize"]) != _plain(now["resize"]) and old == new:
        old, new = (f"{_crop(crop)} of {tuple(crop['resize'])}" for crop in (before, now))
    if before["flip"] != now["flip"]:
        old, new = (f"{text}{' mirrored' if crop['flip'] else ''}" for text, crop in ((old, before), (new, now)))
    return f"crop {old} -> {new}"


def _crop(crop: Any) -> str:
    return f"{tuple(crop['bucket'])}@{tuple(crop['at'])}" if crop else "(none)"


def _show(value: Any) -> str:
    """A value in a message: a digest by its first letters."""
    if value is None:
        return "(absent)"
    if isinstance(value, str) and len(value) == DIGEST_LETTERS and set(value) <= set("0123456789abcdef"):
        return value[:SHOWN_LETTERS]
    return repr(value)
