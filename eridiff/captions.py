"""Captions: clean-up rules, the trigger word, and the variants that training draws from.

A caption passes the rules that params switch on, in the order of RULES, whatever their order in params. The
trigger is put in front where it is missing, before the last rules, so that it does not stand twice.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from eridiff.captionrules import RULES, RuleName
from eridiff.config import Section, Seed
from eridiff.errors import DataError, all_of, listing
from eridiff.files import digest_json
from eridiff.pictures import Ignored, Picture
from eridiff.tables import Row
from eridiff.trigger import holds_word, whole_word

IMAGE_COLUMNS = {
    "path": "str", "file_digest": "str",
    "width": "int", "height": "int", "orientation": "int", "repeats": "int",
}  # fmt: skip
CAPTION_COLUMNS = {"path": "str", "raw": "str", "clean": "str", "variants": "strs", "rules": "strs"}

HARMLESS: tuple[RuleName, ...] = ("html_tags", "html_entities", "unicode", "whitespace", "punctuation")
AFTER_TRIGGER: tuple[RuleName, ...] = ("duplicate_tags", "punctuation")

HIDDEN = "\ufdd0"  # stands for the trigger while rules run; Unicode reserves it for such uses
NOTHING = " \t\r\n,;.:!?-"  # a caption of these alone says nothing


def _plain_words(value: str) -> str:
    if value != value.strip() or not value or re.search(r"[,\n\r\t]", value):
        raise ValueError("must be a word or words, without commas and without spaces at the ends")
    return value


def _folder_path(value: str) -> str:
    if value != PurePosixPath(value).as_posix() or value.startswith("/") or {".", ".."} & set(value.split("/")):
        raise ValueError("must be a folder below data/raw, written as `plain` or `studio/plain`")
    return value


Words = Annotated[str, AfterValidator(_plain_words)]
FolderPath = Annotated[str, AfterValidator(_folder_path)]


class CaptionParams(Section):
    """How captions are cleaned and varied."""

    trigger: Words | None = None
    """Word that must stand in each caption: put in front, with a comma, where it is missing (case counts)."""
    class_word: Words | None = None
    """What the pictures show, such as `toy`. A picture without a caption gets `trigger class_word`."""
    prefix: str = ""
    """Text in front of each caption, as it stands: write the space or comma at its end."""
    suffix: str = ""
    """Text after each caption, as it stands: write the space or comma at its start."""
    rules: Annotated[tuple[RuleName, ...], Field(max_length=100)] = HARMLESS
    """Clean-up rules. They run in this order, whatever their order here: html_tags (removed), html_entities
    (`&amp;` to `&`), unicode (odd spaces, zero-width letters, curly quotes), other_scripts (lines that are
    not in Latin letters dropped), file_names (`IMG_2031.JPG` dropped), underscores (to spaces), whitespace
    (lines joined, runs of spaces to one), duplicate_tags (the first is kept), punctuation (stray commas)."""
    alternatives: bool = False
    """Take each line of a caption as a caption of its own, among which training draws; else lines are joined."""
    variants: Annotated[int, Field(ge=1, le=1000)] = 1
    """Versions of each caption, among which training draws. Each is encoded once."""
    shuffle_tags: Annotated[bool, Field(validate_default=True)] = False
    """Put the comma-separated tags of each version in another order. Needed for more than one version."""
    keep_tokens: Annotated[int, Field(ge=0, le=1000)] = 0
    """Tags at the start that are not shuffled; the trigger counts as one where it stands in front."""
    seed: Seed = 0
    """Seed of the orders."""
    regularisation: Annotated[tuple[FolderPath, ...], Field(max_length=1000)] = ()
    """Folders below data/raw whose pictures show what the LoRA must leave alone: their captions get neither the
    trigger nor the class word."""

    @field_validator("shuffle_tags")
    @classmethod
    def _versions_differ(cls, value: bool, info: ValidationInfo) -> bool:
        if info.data.get("variants", 1) > 1 and not value:
            raise ValueError(f"{info.data['variants']} variants would be equal. Set it to true, or variants to 1")
        return value


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """A caption after the rules. rules_fired: what changed it, `trigger` and `class_word` included."""

    text: str
    variants: tuple[str, ...]
    rules_fired: tuple[str, ...]


def clean_caption(raw: str | None, params: CaptionParams) -> Cleaned:
    """Apply the rules, trigger, prefix and suffix. No variants where nothing says what the picture shows."""
    text, fired = _apply([name for name in RULES if name not in AFTER_TRIGGER], (raw or "").strip(), params)
    there = holds_word(params.prefix + text + params.suffix, params.trigger)
    trigger = [params.trigger] if params.trigger and not there else []
    fired += ["trigger"] * len(trigger)
    if text.strip(NOTHING):
        text, late = _apply(AFTER_TRIGGER, ", ".join([*trigger, text]), params, hide=there)
        fired += late
    else:
        text = " ".join([*trigger, *filter(None, [params.class_word])])
        fired += ["class_word"] * (params.class_word is not None)
    if not text and not there:
        return Cleaned(text="", variants=(), rules_fired=tuple(fired))
    variants = tuple(params.prefix + variant + params.suffix for variant in caption_variants(text, params))
    return Cleaned(text=params.prefix + text + params.suffix, variants=variants, rules_fired=tuple(fired))


def clean_alternatives(raw: str | None, params: CaptionParams) -> Cleaned:
    """A picture's caption, or its lines each by itself where params say so: all their variants, each text once."""
    lines = [line for line in (raw or "").splitlines() if line.strip()] if params.alternatives else []
    if len(lines) < 2:
        return clean_caption(raw, params)
    cleaned = [clean_caption(line, params) for line in lines]
    return Cleaned(
        text=", ".join(dict.fromkeys(one.text for one in cleaned if one.variants)),
        variants=tuple(dict.fromkeys(variant for one in cleaned for variant in one.variants)),
        rules_fired=tuple(dict.fromkeys(rule for one in cleaned for rule in one.rules_fired)),
    )


def _apply(names: Iterable[RuleName], text: str, params: CaptionParams, *, hide: bool = True) -> tuple[str, list[str]]:
    """Those of the named rules that params switch on. hide: keep the trigger out of their reach.

    One that was just put in front is not hidden: it replaces a tag that is the same but for case.
    """
    if hide and params.trigger:
        text = whole_word(params.trigger).sub(HIDDEN, text)
    fired: list[str] = []
    for name in names:
        if name in params.rules:
            before, text = text, RULES[name](text)
            fired += [name] * (text != before)
    return text.replace(HIDDEN, params.trigger or ""), fired


def caption_variants(text: str, params: CaptionParams) -> tuple[str, ...]:
    """Up to `variants` different orders of a caption's tags; fewer where its tags have no more orders.

    A function of seed and text alone: no other caption has a part in it. More variants keep those before.
    """
    if not params.shuffle_tags:
        return (text,)
    tags = [tag.strip() for tag in text.split(",") if tag.strip()]
    kept, free = tags[: params.keep_tokens], tags[params.keep_tokens :]
    wanted = min(params.variants, math.factorial(min(len(free), 10)))
    generator = random.Random(int(digest_json([params.seed, text]), 16))
    found: dict[str, None] = {}
    for _ in range(100 * wanted):  # an end also where equal tags leave fewer orders
        order = sorted(free, key=lambda _: generator.random())  # random() is what Python keeps stable
        found[", ".join([*kept, *order])] = None
        if len(found) == wanted:
            break
    return tuple(found)


def images_rows(pictures: Iterable[Picture]) -> list[Row]:
    """Rows of images.parquet, by path: everything about the files, nothing about captions."""
    ordered = sorted(pictures, key=lambda picture: picture.path)
    return [{name: getattr(picture, name) for name in IMAGE_COLUMNS} for picture in ordered]


def captions_rows(pictures: Iterable[Picture], params: CaptionParams) -> list[Row]:
    """Rows of captions.parquet, by path: everything about captions, nothing about the files' bytes.

    Raises: DataError that names the pictures of which nothing says what they show, regularisation pictures that
    have the trigger, and folders of params that hold no picture.
    """
    ordered = sorted(pictures, key=lambda picture: picture.path)
    plain = params.model_copy(update={"trigger": None, "class_word": None})
    rows: list[Row] = []
    for picture in ordered:
        clean = clean_alternatives(picture.caption, plain if regularises(picture.path, params) else params)
        rows.append({
            "path": picture.path, "raw": picture.caption or "", "clean": clean.text,
            "variants": list(clean.variants), "rules": list(clean.rules_fired),
        })  # fmt: skip
    problems = [
        *_empty_folders([picture.path for picture in ordered], params.regularisation),
        *_silent([row for row in rows if not row["variants"]], params),
        *_with_trigger([row for row in rows if regularises(row["path"], params)], params.trigger),
    ]
    if problems:
        raise DataError(all_of(problems))
    return rows


def regularises(path: str, params: CaptionParams) -> bool:
    """Whether a picture lies in one of the folders of regularisation pictures, at any depth."""
    return any(path.startswith(f"{folder}/") for folder in params.regularisation)


def _empty_folders(paths: Sequence[str], named: Iterable[str]) -> Iterator[str]:
    folders = {parent.as_posix() for path in paths for parent in PurePosixPath(path).parents} - {"."}
    for name in named:
        if name not in folders:
            there = f"Folders with pictures: {', '.join(sorted(folders))}." if folders else "No folder holds pictures."
            yield (f"params.yaml: captions.regularisation names '{name}', which holds no picture. {there}")


def _silent(rows: Sequence[Row], params: CaptionParams) -> Iterator[str]:
    """Two messages, because a trigger or class word helps only where it is put in."""
    for plain in (True, False):
        silent = [
            row["path"] + (f": {row['raw'][:60]!r}" if row["raw"] else "")
            for row in rows
            if regularises(row["path"], params) == plain
        ]
        way_out = (
            "Regularisation pictures (captions.regularisation) get neither trigger nor class word, so each needs a "
            "caption of its own (cat.txt for cat.png)"
            if plain
            else "Add a caption to each (cat.txt for cat.png), or set captions.trigger or captions.class_word"
        )
        if silent:
            yield (
                f"pictures without a caption, or with one of which the rules leave nothing. {way_out}:{listing(silent)}"
            )


def _with_trigger(rows: Sequence[Row], trigger: str | None) -> Iterator[str]:
    wrong = [f"{row['path']}: {row['clean'][:60]!r}" for row in rows if holds_word(row["clean"], trigger)]
    if wrong:
        yield (
            f"regularisation pictures (captions.regularisation) with the trigger '{trigger}' in their caption, prefix "
            f"or suffix, which would teach the LoRA the opposite. Take it out, or move the pictures:{listing(wrong)}"
        )


def report(pictures: Sequence[Picture], rows: Iterable[Row], ignored: Iterable[Ignored], params: CaptionParams) -> str:
    """What the stage did, in lines: pictures, rules and how often each fired, repeats, ignored files."""
    counts = Counter(rule for row in rows for rule in row["rules"])
    order = [*RULES, "trigger", "class_word"]
    fired = ", ".join(f"{rule} {counts[rule]}" for rule in order if counts[rule])
    lines = [f"captions: {len(pictures)} pictures; {fired or 'no rule changed anything'}"]
    folders = Counter(_repeat_folder(picture) for picture in pictures if picture.repeats > 1)
    for (folder, times), count in sorted(folders.items()):
        lines.append(f"repeats: {folder}/: {times} times each of {count} {'picture' if count == 1 else 'pictures'}")
    bare = [picture.path for picture in pictures if not (picture.caption or "").strip()]
    lines += [f"without a caption of their own: {len(bare)} of them, such as {bare[0]}"] if bare else []
    plain = sum(regularises(picture.path, params) for picture in pictures)
    lines += [f"regularisation: {plain} pictures without the trigger"] if plain else []
    copies: dict[str, list[str]] = {}
    for picture in pictures:
        copies.setdefault(picture.file_digest, []).append(picture.path)
    lines += [f"same picture: {', '.join(paths)}" for paths in copies.values() if len(paths) > 1]
    return "\n".join([*lines, *(f"ignored: {item.path}: {item.reason}" for item in ignored)])


def _repeat_folder(picture: Picture) -> tuple[str, int]:
    return PurePosixPath(picture.path).parent.as_posix(), picture.repeats
