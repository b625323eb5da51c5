"""Syntax of other programs in captions, which would be trained as words: named rules => plain text.

A rule takes a text and the trigger (or what stands for it) and returns the text; it leaves alone what is not certainly
its syntax, so a plain caption stays byte for byte. What no rule takes is found by `left_over`.
"""

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence

from eridiff.dataset.caption.json_values import NotJson, caption_in, lone_surrogate, parse_json
from eridiff.params.captions import SyntaxName
from eridiff.params.trigger import HIDDEN, PLACES

MAX_CHOICES = 32  # versions of one caption: each is encoded
NESTED = 4  # choices within choices

NETWORK = r"<(?:lora|lyco|locon|loha|lokr|hypernet)[ \t]*:[^<>\n]*>"
NETWORKS = re.compile(
    rf"(?:^|(?<=[,\n]))[ \t]*{NETWORK}[ \t]*(?:,|$)|(?<![ \t])[ \t]*{NETWORK}", re.IGNORECASE | re.MULTILINE
)
EMBEDDING_NAME = r"embedding:(?![0-9.]+(?![\w.-]))[^\s,:;|(){}<>\[\]\uff0c\u3001]+"
WEIGHTED = rf"{EMBEDDING_NAME}(?::[-+]?[0-9.]{{1,8}})?"
EMBEDDING = rf"(?<![\w:.-])(?:\([ \t]*{WEIGHTED}[ \t]*\)|{WEIGHTED})"
EMBEDDINGS = re.compile(
    rf"(?:^|(?<=[,\n]))[ \t]*{EMBEDDING}[ \t]*(?:,|$)|(?<![ \t])[ \t]*{EMBEDDING}", re.IGNORECASE | re.MULTILINE
)
SEPARATORS = re.compile(r"(?:(?<![ \t,])[ \t]*)?(?:,[ \t]*)?(?:\|\|\||;;;)[ \t]*,?")
CHOICE = re.compile(r"(?<!\\)(?:\{([^{}\[\]$\n]*)\}|\[([^{}\[\]$\n]*)\])")
OPTION_WEIGHT = re.compile(r"[ \t]*[0-9]{0,3}\.?[0-9]{1,3}::")
BREAKS = re.compile(
    r"(?:^|(?<=[,\n]))[ \t]*BREAK[ \t]*(?:,|(?=\n)|$)"  # a tag or line of its own
    r"""|(?<![A-Z][A-Z])(?<![\s"'])[ \t]+BREAK[ \t]+(?![A-Z]{2}|[\s"']|$)""",  # not of "COFFEE BREAK", "BREAK GLASS"
    re.MULTILINE,
)
WEIGHT = re.compile(r":[ \t]*[-+]?[0-9]{0,2}\.[0-9]{1,4}[ \t]*$|(?<! ):[0-9]$")
A_NUMBER = re.compile(r"^[ \t]*$|(?:^|[ \t])[0-9.]+$")  # before the colon of `(ratio 16:9)`
BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"))
WIDE_COMMAS = "[\uff0c\u3001\uff64\ufe50\ufe51]"
JOINED = re.compile(r"[^\W_]_(?:[^\W_]|\()")  # `long_hair`, `emma_(x)`
NO_TAG = re.compile(r".{0,3}|__.*|.*\..*")  # faces such as `o_o`, wildcards, names of files
COUNTED = re.compile(r"[1-9]\+?(?:girl|boy|other)s?")
ENDS_SENTENCE = re.compile(r"[^\W_]{2}[.!?;:](?:\s|$)")
PROSE = {
    "a", "an", "and", "are", "as", "at", "behind", "by", "for", "from", "has", "her", "his", "in", "into", "is", "it",
    "its", "near", "next", "of", "on", "or", "over", "that", "the", "their", "this", "to", "under", "was", "wearing",
    "while", "who", "whose", "with",
}  # fmt: skip
LEFT_OVER = re.compile(
    r"\A[ ,\n]*[0-9]+(?:[ ,\n]+-?[0-9]+(?:\.[0-9]+)?){4,}[ ,\n]*\Z|"  # boxes of objects, as YOLO has them
    r"(?<![\w:.-])embedding:[^\W\d]|[{}\[\]\\]|<[\w-]+:|\|\||;;;|\(\(|\)\)|__\w|\$\$|::|:[0-9]?\.[0-9]+\)|(?<!\w)BREAK(?!\w)|"
    r"<\||</?[a-z][\w-]*>|"  # tokens of language models and encoders: `<|endoftext|>`, `<s0>`, `</s>`
    r"(?<!\S)(?:\$\{?|%)(?:trigger|token|name|class)|"  # places that no rule fills
    r"(?<!\S)--(?:ar|aspect|chaos|iw|niji|no|q|quality|s|seed|style|stylize|v|version|w|weird)\s|"  # Midjourney's
    + WIDE_COMMAS
)
CLOSING = {")": "(", "]": "[", "}": "{"}


def json_captions(text: str) -> str:
    """The caption and tags of a JSON object or list that is the whole text."""
    if text.strip()[:1] not in ("{", "["):
        return text
    try:
        caption = caption_in(parse_json(text))
    except NotJson:
        return text
    return text if caption is None or lone_surrogate(caption) else caption


def trigger_places(text: str) -> str:
    """`[trigger]`, `{trigger_word}` and the like => what stands for the trigger while rules run."""
    return PLACES.sub(HIDDEN, text)


def networks(text: str) -> str:
    """Drop `<lora:name:0.8>` and its kind, and the tag that held nothing else."""
    return NETWORKS.sub("", text)


def embeddings(text: str) -> str:
    """Drop ComfyUI's `embedding:name` and `(embedding:name:1.2)`, and the tag that held nothing else."""
    return EMBEDDINGS.sub("", text)


def separators(text: str) -> str:
    """kohya's `|||` and `;;;` between tags => a comma: no word of either side is lost."""
    return SEPARATORS.sub(", ", text)


def choices(text: str) -> str:
    """The first of each `{a|b}` or `[a|b]`; `versions` has all."""
    return versions(text)[0]


def versions(text: str) -> tuple[str, ...]:
    """All texts that the choices of `{a|b}` and `[a|b]` make, each once, the first choices first.

    Where there are more than MAX_CHOICES, so many in which each of up to so many options stands.
    """
    found = {text: None}
    for _ in range(NESTED):
        more = dict.fromkeys(made for one in found for made in _made(one))
        found = dict(itertools.islice(more.items(), MAX_CHOICES))
        if len(more) == 1 and text in more:
            break
    return tuple(found)


def _made(text: str) -> list[str]:
    """The texts of one level of choices."""
    parts: list[list[str]] = []
    end = 0
    for hit in CHOICE.finditer(text):
        inside = hit[1] if hit[1] is not None else hit[2]
        if "|" in inside and "|||" not in inside:
            parts += [[text[end : hit.start()]], [OPTION_WEIGHT.sub("", one, count=1) for one in inside.split("|")]]
            end = hit.end()
    parts.append([text[end:]])
    few = math.prod(len(options) for options in parts[:100]) <= MAX_CHOICES and len(parts) < 100
    if few:
        return ["".join(chosen) for chosen in itertools.product(*parts)]
    return ["".join(options[number % len(options)] for options in parts) for number in range(MAX_CHOICES)]


def breaks(text: str) -> str:
    """`BREAK` between parts of a prompt => a comma; in quotes or among other capitals it is a word."""
    return BREAKS.sub(lambda hit: ", " if hit[0][-1] in " \t" and hit[0].strip() == "BREAK" else "", text)


def weights(text: str) -> str:
    """`(x:1.3)`, `((x))`, `[[x]]` and `{{x}}` => x. Single brackets and `(ratio 16:9)` stay."""
    opened: list[tuple[int, list[tuple[int, int]]]] = []  # place, and the last group that closed inside
    cut: set[int] = set()
    skipped = -1
    for at, letter in enumerate(text):
        if at == skipped:
            continue
        if letter == "\\":
            skipped = at + 1
        elif letter in "([{":
            opened.append((at, []))
        elif letter in CLOSING and opened and text[opened[-1][0]] == CLOSING[letter]:
            start, inner = opened.pop()
            weight = _weight(text, start, at) if letter == ")" else at
            if weight < at:
                cut.update(range(weight, at + 1), (start,))
            elif inner == [(start + 1, at - 1)]:
                cut.update((start, start + 1, at - 1, at))
            if opened:
                opened[-1][1][:] = [(start, at)]
    return "".join(letter for at, letter in enumerate(text) if at not in cut) if cut else text


def _weight(text: str, start: int, end: int) -> int:
    """Where the weight of a bracket's content begins; its end where there is none."""
    near = text[max(start + 1, end - 40) : end]
    hit = WEIGHT.search(near)
    if hit is None or A_NUMBER.search(near[: hit.start()]):
        return end
    return end - len(near) + hit.start()


def escapes(text: str) -> str:
    """`\\(x\\)` => `(x)`, as for the other brackets; `\\(^o^)/` stays."""
    for opening, closing in BRACKETS:
        if f"\\{opening}" in text and f"\\{closing}" in text:
            text = text.replace(f"\\{opening}", opening).replace(f"\\{closing}", closing)
    return text


def spaced_tags(text: str) -> str:
    """Tags of picture boards between spaces, `1girl long_hair` => commas; prose stays."""
    if "_" not in text or " " not in text:
        return text
    return "\n".join(_spaced(line) for line in text.split("\n"))


def _spaced(line: str) -> str:
    """One line; it stays where a word of prose, a capital or the end of a sentence is in it."""
    return ",".join(_separated(tag) for tag in line.split(",")) if _like_tags(line) else line


def _separated(tag: str) -> str:
    words = tag.split()
    indent = tag[: len(tag) - len(tag.lstrip())]
    return indent + ", ".join(words) if _marks(words) > 1 else tag


def _like_tags(line: str) -> bool:
    words = line.replace(",", " ").split()
    return line == line.lower() and PROSE.isdisjoint(words) and ENDS_SENTENCE.search(line) is None


def _marks(words: Sequence[str]) -> int:
    """How many of the words only picture boards write; 0 for a single word."""
    marks = sum(bool(COUNTED.fullmatch(word) or _is_joined(word)) for word in words)
    return marks if len(words) > 1 else 0


def _is_joined(word: str) -> bool:
    return NO_TAG.fullmatch(word) is None and JOINED.search(word) is not None


def _like_spaced_tags(text: str) -> bool:
    """Whether a text may be tags between spaces, or still is: one mark is not enough to be certain."""
    words = text.split()
    return spaced_tags(text) != text or (len(words) > 2 and "," not in text and _like_tags(text) and _marks(words) > 0)


def wide_commas(text: str) -> str:
    """Commas of Chinese and Japanese => `, `."""
    return re.sub(WIDE_COMMAS + r"(?=[ \t\n]|$)", ",", re.sub(WIDE_COMMAS + r"(?=[^ \t\n])", ", ", text))


def left_over(text: str) -> str | None:
    """What still looks like another program's syntax, with what follows it; None for a plain caption."""
    hit = LEFT_OVER.search(text)
    tags = text.strip(" \t\n,")
    start, found = (hit.start(), text) if hit else (0, tags if _like_spaced_tags(tags) else "")
    return found[start : start + 30] or None


SYNTAX: Mapping[SyntaxName, Callable[[str], str]] = {
    "json_captions": json_captions,
    "trigger_places": trigger_places,  # before choices and weights: `{{trigger}}`
    "networks": networks,
    "embeddings": embeddings,
    "separators": separators,
    "choices": choices,
    "breaks": breaks,
    "weights": weights,
    "escapes": escapes,  # after weights: `(a \(b\):1.2)`
    "spaced_tags": spaced_tags,  # after what may hold together what stands between spaces
    "wide_commas": wide_commas,  # by itself after the rule other_scripts, which may drop the line
}
