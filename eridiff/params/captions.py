"""The section `captions` of params.yaml."""

import re
from pathlib import PurePosixPath
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from eridiff.core.config import Section, Seed
from eridiff.params.trigger import PLACES

RuleName = Literal[
    "html_tags", "html_entities", "unicode", "other_scripts", "file_names", "underscores", "whitespace",
    "duplicate_tags", "punctuation",
]  # fmt: skip
SyntaxName = Literal[
    "json_captions", "trigger_places", "networks", "embeddings", "separators", "choices", "breaks", "weights",
    "escapes", "spaced_tags", "wide_commas",
]  # fmt: skip

HARMLESS: tuple[RuleName, ...] = ("html_tags", "html_entities", "unicode", "whitespace", "punctuation")
MAX_VARIANTS = 1000


def _plain_words(value: str) -> str:
    if value != value.strip() or not value or re.search(r"[,\n\r\t]", value):
        raise ValueError("must be a word or words, without commas and without spaces at the ends")
    return _no_place(value)


def _no_place(value: str) -> str:
    place = PLACES.search(value)
    if place:
        raise ValueError(f"holds '{place[0]}', which is filled in captions only: write the trigger itself")
    return value


def _folder_path(value: str) -> str:
    if value != PurePosixPath(value).as_posix() or value.startswith("/") or {".", ".."} & set(value.split("/")):
        raise ValueError("must be a folder below data/raw, written as `plain` or `studio/plain`")
    return value


Words = Annotated[str, AfterValidator(_plain_words)]
Text = Annotated[str, AfterValidator(_no_place)]
FolderPath = Annotated[str, AfterValidator(_folder_path)]


class CaptionParams(Section):
    """How captions are cleaned, and which variants they get."""

    trigger: Words | None = None
    """Word that every caption must contain: added in front, with a comma, if it is missing (case-sensitive)."""
    class_word: Words | None = None
    """What the pictures show, such as `toy`. A picture without a caption gets `trigger class_word`."""
    prefix: Text = ""
    """Text in front of each caption, used exactly as written: include the space or comma at its end."""
    suffix: Text = ""
    """Text after each caption, used exactly as written: include the space or comma at its start."""
    rules: Annotated[tuple[RuleName, ...], Field(max_length=100)] = HARMLESS
    """Clean-up rules. They run in this order, whatever their order here: html_tags (removed), html_entities
    (`&amp;` to `&`), unicode (odd spaces, zero-width letters, curly quotes), other_scripts (lines that are
    not in Latin letters dropped), file_names (`IMG_2031.JPG` dropped), underscores (to spaces), whitespace
    (lines joined, runs of spaces to one), duplicate_tags (the first is kept), punctuation (stray commas)."""
    syntax: Annotated[tuple[SyntaxName, ...], Field(max_length=100)] = get_args(SyntaxName)
    """Syntax of other programs that is read as what it means, before the rules: json_captions (caption and tags of a
    JSON object), trigger_places (`[trigger]`, `{trigger_word}` filled), networks (`<lora:x:1>` dropped), embeddings
    (`embedding:x` dropped), separators (`|||`, `;;;` to commas), choices (`{a|b}` to a version of the caption each),
    breaks (`BREAK` to a comma), weights (`(x:1.3)`, `((x))` to x), escapes (`\\(` to `(`), spaced_tags
    (`1girl long_hair` to `1girl, long_hair`), wide_commas (of Chinese and Japanese, to `, `)."""
    alternatives: bool = False
    """Each line of a caption file is a caption of its own, from which training draws; otherwise lines are joined."""
    variants: Annotated[int, Field(ge=1, le=MAX_VARIANTS)] = 1
    """Variants of each caption, from which training draws. Each is encoded once."""
    shuffle_tags: Annotated[bool, Field(validate_default=True)] = False
    """Shuffle the comma-separated tags of each variant. Required for more than one variant."""
    keep_tokens: Annotated[int, Field(ge=0, le=1000)] = 0
    """Number of tags at the start that are not shuffled; a trigger in front counts as one."""
    seed: Seed = 0
    """Seed of the orders."""
    regularisation: Annotated[tuple[FolderPath, ...], Field(max_length=1000)] = ()
    """Folders below data/raw with regularisation pictures, which show what the LoRA must not change: their captions get
    neither the trigger nor the class word."""

    @field_validator("shuffle_tags")
    @classmethod
    def _versions_differ(cls, value: bool, info: ValidationInfo) -> bool:
        if info.data.get("variants", 1) > 1 and not value:
            raise ValueError(f"{info.data['variants']} variants would be equal. Set it to true, or variants to 1")
        return value
