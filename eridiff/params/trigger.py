"""The trigger word in texts: whether it stands there, and a prompt without it."""

import re

PLACE = "[trigger]"  # stands for the trigger in prompts of params.yaml
PLACES = re.compile(  # stand for it in captions that were written for other trainers
    "|".join(rf"{start}[ \t]?trigger(?:[ _-]?words?)?[ \t]?{end}" for start, end in (
        (r"\{\{", r"\}\}"), (r"\{", r"\}"), (r"\[", r"\]"), ("<", ">"),
    )),
    re.IGNORECASE,
)  # fmt: skip
HIDDEN = "\ufdd0"  # stands for it while rules run; Unicode reserves it for such uses


def whole_word(word: str) -> re.Pattern[str]:
    """A word that is not part of a longer one; capitals count."""
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")


def holds_word(text: str, word: str | None) -> bool:
    """Whether a text holds the word as a whole; never where there is none."""
    return word is not None and whole_word(word).search(text) is not None


def without_trigger(prompt: str) -> str:
    """A prompt without `[trigger]`, and without the commas and spaces that it leaves behind."""
    return re.sub(rf"{re.escape(PLACE)}[\s,]*", "", prompt).strip(" ,")
