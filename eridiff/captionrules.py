"""The clean-up rules of captions: functions from text to text, by the names that params switch on."""

import html
import re
import unicodedata
from collections.abc import Callable, Mapping
from html.entities import html5

from eridiff.joiners import kept_joiners
from eridiff.params_captions import RuleName

FILE_SUFFIXES = "png|jpe?g|jfif|webp|gif|bmp|tiff?|heic|heif|avif|psd|dng|cr[23]|nef|arw|orf|rw2|txt|mp4|mov"
CAMERAS = "IMG|DSC|DSCN|DSCF|DCIM|PXL|VID|MVI|MG|GOPR|DJI|CIMG|SAM|WA|Screenshot|Photo"
VERSIONS = "v[0-9]+|final|copy"
FILE_NAME = re.compile(
    rf"""\S+\.(?:{FILE_SUFFIXES})             # cat.png, C:\\pictures\\cat.png
    | _?(?:{CAMERAS})[-_]?[0-9]{{3,}}[\w-]* | P[0-9]{{7}}  # IMG_2031, DSC01234, P1010234
    | \w+_(?:{VERSIONS})(?:_(?:{VERSIONS}|[0-9]+))*    # file_name_v2, cat_final_2""",
    re.VERBOSE | re.IGNORECASE,
)
BLOCK_TAG = re.compile(r"</?(?:br|hr|p|div|li|ul|ol|tr|table|h[1-6])(?:\s[^<>]*)?/?>", re.IGNORECASE)
INLINE_TAG = re.compile(  # with attributes or none: `<a cat>` is no tag
    r"</?(?:a|b|i|u|s|em|strong|small|big|sub|sup|span|font|code|pre|img|td|th|tbody|center|mark|body|html)"
    r"(?:\s+[\w-]+\s*=[^<>]*)?\s*/?>",
    re.IGNORECASE,
)
ENTITY = re.compile(r"&(?:#0*[0-9]{1,7}|#[xX]0*[0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{0,31});")
ENDS = "".join(filter(str.isspace, map(chr, range(0x3001)))) + ",;"
LONGEST_NAME = 255  # of a file, on every file system
KEYBOARD = re.compile(r"[ -~\n\r\t]*")  # what has nothing to be replaced, as most captions
PLAIN = {
    **dict.fromkeys("\u2018\u2019\u201a\u201b", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f", '"'),
    **dict.fromkeys("\u0085\u2028\u2029\x0b\x0c", "\n"),
    "\u2026": "...",
}


def html_tags(text: str) -> str:
    """Remove tags of HTML; `<br>` and the ends of blocks become newlines. `<3` and `<lora:x:1>` stay."""
    ends = text.rfind("-->") + len("-->")  # from what begins after the last end each search would run to the text's
    text = re.sub(r"<!--.*?-->", "", text[:ends], flags=re.DOTALL) + text[ends:] if ends >= len("-->") else text
    return INLINE_TAG.sub("", BLOCK_TAG.sub("\n", text))


def html_entities(text: str) -> str:
    """Replace entities by their letters: `&amp;` => `&`. One level; a bare `&` and unknown names stay."""
    return ENTITY.sub(lambda found: _entity(found[0]), text)


def unicode(text: str) -> str:
    """NFC; odd spaces to spaces, invisible letters removed, curly quotes and the ellipsis as ASCII.

    Joiners stay where they hold an emoji together or decide how a script is written.
    """
    if KEYBOARD.fullmatch(text):
        return text
    text = unicodedata.normalize("NFC", text)
    kept = kept_joiners(text)
    return "".join(letter if at in kept else _plain_letter(letter) for at, letter in enumerate(text))


def other_scripts(text: str) -> str:
    """Drop lines whose letters are mostly not Latin."""
    if text.isascii():
        return text
    lines = text.splitlines()
    kept = [line for line in lines if _is_latin(line)]
    return text if len(kept) == len(lines) else "\n".join(kept)


def file_names(text: str) -> str:
    """Drop words that are names of files or cameras' numbers, and the tags that held nothing else."""
    return "\n".join(_drop_file_names(line) for line in text.split("\n"))


def underscores(text: str) -> str:
    """Underscores => spaces, except in words of up to three letters: `o_o` and `^_^` are faces."""
    return re.sub(r"[^\s,]+", lambda word: word[0].replace("_", " ") if len(word[0]) > 3 else word[0], text)


def whitespace(text: str) -> str:
    """One line, single spaces. Lines join by a space in prose and after punctuation, else by a comma."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    lines = [line for line in lines if line]
    prose = bool(lines) and lines[-1][-1] in ".!?"
    ends = [" " if prose or line[-1] in ",;.:!?" else ", " for line in lines[:-1]]
    return "".join(line + end for line, end in zip(lines, [*ends, ""], strict=True)) if lines else ""


def duplicate_tags(text: str) -> str:
    """Drop tags that stand already, in whatever case; the first is kept."""
    tags = text.split(",")
    names = [tag.strip().casefold() for tag in tags]
    first = {name: place for place, name in reversed(list(enumerate(names)))}
    kept = [tag for place, tag in enumerate(tags) if not names[place] or first[names[place]] == place]
    return text if len(kept) == len(tags) else ",".join(kept)


def punctuation(text: str) -> str:
    """No space before a comma and one after it, no commas in a row, none at the ends."""
    text = re.sub(r"(?<![ \t])[ \t]*,(?:[ \t]*,)*", ",", text)
    text = re.sub(r",(?=[^\s\d])", ", ", text)
    return text.strip(ENDS)


def _entity(entity: str) -> str:
    if entity[1] == "#":
        return html.unescape(re.sub("(?<=[#xX])0+(?=[0-9a-fA-F])", "", entity))  # Python reads no 5,000 digits
    return html5.get(entity[1:], entity)  # unescape also takes `&notes;` for `&not` and `es;`


def _plain_letter(letter: str) -> str:
    if letter in "\n\r\t":
        return letter
    if letter in PLAIN:
        return PLAIN[letter]
    kind = unicodedata.category(letter)
    if kind == "Zs":
        return " "
    return "" if kind in ("Cf", "Cc") else letter  # zero-width, direction marks, soft hyphen, controls


def _is_latin(line: str) -> bool:
    """Whether at least half of a line's letters are Latin; a line without letters is kept."""
    letters = [letter for letter in line if letter.isalpha()]
    latin = sum(unicodedata.name(letter, "").startswith("LATIN") for letter in letters)
    return 2 * latin >= len(letters)


def _drop_file_names(line: str) -> str:
    tags = line.split(",")
    kept = []
    for tag in tags:
        words = tag.split(" ")
        left = [word for word in words if not _is_file_name(word.strip("()[]{}\"'.:;!?\t\r"))]
        if len(left) == len(words):
            kept.append(tag)
        elif any(left):
            kept.append(" ".join(left))
    return ",".join(kept) if kept == tags else ",".join(kept).lstrip()


def _is_file_name(word: str) -> bool:
    return len(word) <= LONGEST_NAME and FILE_NAME.fullmatch(word) is not None


RULES: Mapping[RuleName, Callable[[str], str]] = {
    "html_tags": html_tags,  # before entities: `&lt;b&gt;` means the letters <b>
    "html_entities": html_entities,
    "unicode": unicode,
    "other_scripts": other_scripts,
    "file_names": file_names,
    "underscores": underscores,
    "whitespace": whitespace,
    "duplicate_tags": duplicate_tags,
    "punctuation": punctuation,
}
