"""What the demo's bases are taught to read: captions of drawings by subject, style and ground.

Captions leave out the style or the ground only where it is the usual one, so that a short prompt always draws the same
thing; some begin with a word that means nothing, so that an unknown word (a trigger, before it is trained) changes
nothing.
"""

from __future__ import annotations

import random

STYLE_NAMES = {"flat": "flat drawing", "shaded": "shaded drawing", "ink": "ink drawing"}
GROUNDS = {  # name -> RGB; ink lines are black, so ink has light grounds only
    "white": (255, 255, 255),
    "cream": (255, 246, 224),
    "pink": (253, 214, 226),
    "peach": (255, 222, 196),
    "yellow": (253, 240, 170),
    "mint": (208, 240, 216),
    "sky blue": (205, 232, 252),
    "lilac": (226, 214, 246),
    "grey": (214, 216, 220),
    "teal": (64, 150, 150),
    "brown": (124, 88, 64),
    "navy": (28, 36, 80),
    "black": (16, 14, 20),
}
USUAL_STYLE, USUAL_GROUND = "flat", "white"  # of a caption that names none
LIGHT_GROUNDS = tuple(name for name, rgb in GROUNDS.items() if min(rgb) > 160)
SYLLABLES = (
    "ba",
    "ce",
    "di",
    "fo",
    "gu",
    "ka",
    "le",
    "mi",
    "no",
    "pu",
    "ra",
    "se",
    "ti",
    "vo",
    "wu",
    "xa",
    "zo",
    "eri",
)


def spoken(subject: str) -> str:
    """A drawing's name as words: red-apple => red apple."""
    return subject.replace("-", " ").replace("t rex", "t-rex")


def with_article(words: str) -> str:
    """a fox, an owl."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def grounds_of(style: str) -> tuple[str, ...]:
    """The grounds that a style is drawn on."""
    return LIGHT_GROUNDS if style == "ink" else tuple(GROUNDS)


def caption(subject: str, style: str, ground: str, draw: random.Random) -> str:
    """One of the ways to say what a picture shows. What is not said is usual: a flat drawing, a white background."""
    words, kind = spoken(subject), STYLE_NAMES[style]
    ways = [
        f"{with_article(kind)} of {with_article(words)} on a {ground} background",
        f"{words}, {kind}, {ground} background",
        f"{with_article(words)}, {kind}, {ground} background",
    ]
    if ground == USUAL_GROUND:
        ways += [f"{kind}, {words}", f"{with_article(words)}, {kind}"]
    if style == USUAL_STYLE:
        ways += [f"{with_article(words)} on a {ground} background", f"{words}, {ground} background"]
    if (style, ground) == (USUAL_STYLE, USUAL_GROUND):
        ways += 4 * [with_article(words)] + [words]
    text = draw.choice(ways)
    if draw.random() < 0.3:
        text = f"{made_up_word(draw)}, {text}"
    return text


def ground_of(style: str, draw: random.Random) -> str:
    """A ground for a drawing: the usual one for every third."""
    return USUAL_GROUND if draw.random() < 1 / 3 else draw.choice(grounds_of(style))


def made_up_word(draw: random.Random) -> str:
    """A word that means nothing."""
    return "".join(draw.choices(SYLLABLES, k=draw.randint(2, 3))) + draw.choice(("", "n", "x", "s"))


def corpus(subjects: tuple[str, ...], count: int, seed: int) -> list[str]:
    """Captions to train a vocabulary on."""
    draw = random.Random(seed)
    styles = [draw.choice(list(STYLE_NAMES)) for _ in range(count)]
    return [caption(draw.choice(subjects), style, ground_of(style, draw), draw) for style in styles]
