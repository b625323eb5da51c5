"""Invisible letters that decide what is seen: joiners in emoji and in scripts whose letters join.

`unicodedata` knows no joining types, so scripts are told by the names of their letters (Unicode's ArabicShaping.txt
and IndicSyllabicCategory.txt have the same scripts).
"""

import unicodedata

JOINERS = "\u200c\u200d"
CURSIVE = ("ARABIC", "SYRIAC", "MONGOLIAN", "NKO", "MANDAIC", "PHAGS-PA", "ADLAM", "MANICHAEAN", "SOGDIAN", "HANIFI")
VIRAMA = 9  # the combining class of the signs that join consonants of Indic scripts
BLACK_FLAG = "\U0001f3f4"  # begins the flags of England, Scotland and Wales, which go on in tag letters
TAG_LETTERS = ("\U000e0020", "\U000e007f")
SKIN = ("\U0001f3fb", "\U0001f3ff")
EMOJI_STYLE = "\ufe0f"
# Format characters that are drawn, or that arrange what is: Arabic number signs, hieroglyphs, Mongolian vowels.
DRAWN = {
    *map(chr, range(0x600, 0x606)), "\u06dd", "\u070f", "\u0890", "\u0891", "\u08e2", "\u180e",
    "\U000110bd", "\U000110cd", *map(chr, range(0x13430, 0x13440)),
}  # fmt: skip


def kept_joiners(text: str) -> set[int]:
    """The places of format characters that must stay; all others say nothing to a reader."""
    kept: set[int] = set()
    for at, letter in enumerate(text):
        if (
            letter in DRAWN
            or (letter in JOINERS and _joins(text, at))
            or (TAG_LETTERS[0] <= letter <= TAG_LETTERS[1] and at and (text[at - 1] == BLACK_FLAG or at - 1 in kept))
        ):
            kept.add(at)
    return kept


def _joins(text: str, at: int) -> bool:
    """Whether a joiner stands where it changes what is drawn."""
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    if any(near and (unicodedata.combining(near) == VIRAMA or _is_cursive(near)) for near in (before, after)):
        return True
    while before and (before == EMOJI_STYLE or SKIN[0] <= before <= SKIN[1]):
        at -= 1
        before = text[at - 1 : at]
    return bool(before) and bool(after) and unicodedata.category(before) == unicodedata.category(after) == "So"


def _is_cursive(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "LM" and unicodedata.name(letter, "").startswith(CURSIVE)
