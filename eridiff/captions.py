"""Captions: clean-up rules, the trigger word, and the variants that training draws from.

A caption passes the rules that params switch on, in the order of SYNTAX and RULES, whatever their order in params.
The trigger is put in front where it is missing, before the last rules, so that it does not stand twice.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from eridiff.captionrules import RULES
from eridiff.captionsyntax import SYNTAX, versions
from eridiff.errors import DataError, all_of, listing
from eridiff.files import digest_json
from eridiff.params_captions import MAX_VARIANTS, CaptionParams, RuleName
from eridiff.pictures import Picture
from eridiff.tables import Row
from eridiff.trigger import HIDDEN, PLACES, holds_word, whole_word

IMAGE_COLUMNS = {
    "path": "str", "file_digest": "str",
    "width": "int", "height": "int", "orientation": "int", "repeats": "int",
}  # fmt: skip
CAPTION_COLUMNS = {"path": "str", "raw": "str", "clean": "str", "variants": "strs", "rules": "strs"}

ALL_RULES: Mapping[str, Callable[[str], str]] = {
    name: rule for table in (SYNTAX, RULES) for name, rule in table.items()
}
AFTER_TRIGGER: tuple[RuleName, ...] = ("duplicate_tags", "punctuation")

NOTHING = " \t\r\n,;.:!?-"  # a caption of these alone says nothing


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """A caption after the rules. rules_fired: what changed it, `trigger` and `class_word` included."""

    text: str
    variants: tuple[str, ...]
    rules_fired: tuple[str, ...]


Rule = tuple[str, Callable[[str], str]]


def clean_caption(raw: str | None, params: CaptionParams) -> Cleaned:
    """Apply the rules, trigger, prefix and suffix. No variants where nothing says what the picture shows."""
    early, late = _rules(params)
    text, fired = _apply(early, (raw or "").replace(HIDDEN, "").strip(), params)
    there = holds_word(params.prefix + text + params.suffix, params.trigger)
    trigger = [params.trigger] if params.trigger and not there else []
    fired += ["trigger"] * len(trigger)
    if text.strip(NOTHING):
        text, fired_late = _apply(late, ", ".join([*trigger, text]), params, hide=there)
        fired += fired_late
    else:
        text = " ".join([*trigger, *filter(None, [params.class_word])])
        fired += ["class_word"] * (params.class_word is not None)
    if not text and not there:
        return Cleaned(text="", variants=(), rules_fired=tuple(fired))
    variants = tuple(params.prefix + variant + params.suffix for variant in caption_variants(text, params))
    return Cleaned(text=params.prefix + text + params.suffix, variants=variants, rules_fired=tuple(fired))


def clean_alternatives(raw: str | None, params: CaptionParams) -> Cleaned:
    """A picture's caption with all its variants, each text once: of its choices, and of its lines where params say
    that these are captions of their own.
    """
    early = [rule for rule in _rules(params)[0] if rule[0] == "json_captions"]
    text, fired = _apply(early, (raw or "").replace(HIDDEN, "").strip(), params)
    lines = [line for line in text.splitlines() if line.strip()] if params.alternatives else []
    texts = [version for line in (lines or [text]) for version in _versions(line, params)]
    fired += ["choices"] * (len(texts) > max(len(lines), 1))
    cleaned = [clean_caption(one, params) for one in texts]
    return Cleaned(
        text=", ".join(dict.fromkeys(one.text for one in cleaned if one.variants)),
        variants=tuple(dict.fromkeys(variant for one in cleaned for variant in one.variants)),
        rules_fired=tuple(dict.fromkeys([*fired, *(rule for one in cleaned for rule in one.rules_fired)])),
    )


def _rules(params: CaptionParams) -> tuple[list[Rule], list[Rule]]:
    """The rules that params switch on, in their order: before the trigger is put in, and after."""
    order = [*SYNTAX, *RULES]
    order.remove("wide_commas")
    order.insert(order.index("other_scripts") + 1, "wide_commas")  # a line that is dropped needs no commas
    switched_on = {*params.syntax, *params.rules}
    if params.trigger is None:
        switched_on.discard("trigger_places")  # nothing fills them: `_unfilled` names them
    rules: list[Rule] = [(name, ALL_RULES[name]) for name in order if name in switched_on]
    return [one for one in rules if one[0] not in AFTER_TRIGGER], [one for one in rules if one[0] in AFTER_TRIGGER]


def _apply(rules: Iterable[Rule], text: str, params: CaptionParams, *, hide: bool = True) -> tuple[str, list[str]]:
    """A text after the rules, and the names of those that changed it. hide: keep the trigger out of their reach.

    One that was just put in front is not hidden: it replaces a tag that is the same but for case.
    """
    if hide and params.trigger:
        text = whole_word(params.trigger).sub(HIDDEN, text)
    fired: list[str] = []
    for name, rule in rules:
        before, text = text, rule(text)
        fired += [name] * (text != before)
    return text.replace(HIDDEN, params.trigger or ""), fired


def _versions(text: str, params: CaptionParams) -> list[str]:
    """The texts that a caption's choices make; the caption alone where it has none."""
    if "choices" not in params.syntax or "|" not in text:
        return [text]
    hidden = whole_word(params.trigger).sub(HIDDEN, text) if params.trigger else text
    return [version.replace(HIDDEN, params.trigger or "") for version in versions(hidden)]


def caption_variants(text: str, params: CaptionParams) -> tuple[str, ...]:
    """Up to `variants` different orders of a caption's tags; fewer where its tags have no more orders.

    A function of seed and text alone: no other caption has a part in it. More variants keep those before.
    """
    if not params.shuffle_tags:
        return (text,)
    tags = [tag.strip() for tag in text.split(",") if tag.strip()]
    kept, free = tags[: params.keep_tokens], tags[params.keep_tokens :]
    wanted = min(params.variants, _orders(free))
    generator = random.Random(int(digest_json([params.seed, text]), 16))
    found: dict[str, None] = {}
    for _ in range(100 * wanted):  # an end also where the draws miss one of few orders
        order = sorted(free, key=lambda _: generator.random())  # random() is what Python keeps stable
        found[", ".join([*kept, *order])] = None
        if len(found) == wanted:
            break
    return tuple(found)


def _orders(tags: Sequence[str]) -> int:
    """How many different orders tags have, equal ones among them; those that are more than any number of variants
    are not counted."""
    orders, placed = 1, 0
    for count in sorted(Counter(tags).values(), reverse=True):
        placed += count
        few = min(count, placed - count)  # of many tags three places are enough to pass the bound
        orders *= math.comb(placed, few if placed <= 64 else min(few, 3))
        if orders >= MAX_VARIANTS:
            break
    return orders


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
        *_unfilled(rows, params),
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


def _unfilled(rows: Sequence[Row], params: CaptionParams) -> Iterator[str]:
    """Places for the trigger that nothing fills."""
    plain = [row for row in rows if params.trigger is None or regularises(row["path"], params)]
    places = [(row["path"], PLACES.search(row["raw"])) for row in plain if "trigger_places" in params.syntax]
    for told in (True, False):
        wrong = [f"{path}: '{place[0]}'" for path, place in places if place and regularises(path, params) != told]
        way_out = (
            "and captions.trigger is not set. Set it, or take `trigger_places` out of captions.syntax to train these"
            if told
            else "in regularisation pictures (captions.regularisation). Take it out, or move the pictures"
        )
        if wrong:
            yield f"captions hold a place for the trigger, {way_out}:{listing(wrong)}"


def _with_trigger(rows: Sequence[Row], trigger: str | None) -> Iterator[str]:
    wrong = [f"{row['path']}: {row['clean'][:60]!r}" for row in rows if holds_word(row["clean"], trigger)]
    if wrong:
        yield (
            f"regularisation pictures (captions.regularisation) with the trigger '{trigger}' in their caption, prefix "
            f"or suffix, which would teach the LoRA the opposite. Take it out, or move the pictures:{listing(wrong)}"
        )
