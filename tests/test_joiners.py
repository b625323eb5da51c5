"""Invisible letters: those that hold emoji and scripts together stay, the others go."""

import pytest

from eridiff.captionrules import RULES
from eridiff.captions import clean_caption
from eridiff.params_captions import CaptionParams


@pytest.mark.parametrize(
    "text",
    [
        "a 👨‍👩‍👧 family",
        "❤️‍🔥",
        "👩🏽‍🚀",
        "🐻‍❄️",
        "🏳️‍🌈",
        "🏴󠁧󠁢󠁥󠁮󠁧󠁿 flag",
        "می‌خواهم",  # Persian
        "ه‍",
        "क्‍ष क्‌ष",  # Devanagari
        "ශ්‍රී ලංකා",  # Sinhala
        "ന്‍",  # Malayalam, at the end
        "১\u06dd",
    ],
)
def test_joiners_that_are_seen_stay(text: str) -> None:
    assert RULES["unicode"](text) == text
    assert clean_caption(text, CaptionParams()).text == text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("a\u200b\u200dy", "ay"),
        ("x\u200d y\u200c", "x y"),
        ("\u200d🐻", "🐻"),
        ("🐻\u200d cat", "🐻 cat"),
        ("a\U000e0041b \u200eс\u200d", "ab с"),
        ("猫\u200d猫", "猫猫"),
    ],
)
def test_joiners_that_join_nothing_go(text: str, clean: str) -> None:
    assert RULES["unicode"](text) == clean
