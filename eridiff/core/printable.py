"""Text as a terminal may show it: what a file, a name or a program says moves no cursor and forges no line."""

import re
from typing import TextIO

# What a terminal obeys instead of showing it: control characters (C0, DEL, C1), other ends of lines, bidi overrides
# and isolates, and halves of surrogate pairs, which no encoding takes. Names that are no UTF-8 are full of those.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
UNSAFE_BUT_LINES = re.compile(UNSAFE.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))
BYTES = range(0xDC80, 0xDD00)  # how Python holds bytes of a name that are no UTF-8
INDENT = "       "  # as wide as `error: `


def printable(text: str) -> str:
    """One line: every unsafe character as an escape that is shown, such as `\\x1b` or `\\u202e`."""
    return UNSAFE.sub(_escape, text)


def printable_lines(text: str) -> str:
    """The same for a text of several lines: their ends stay."""
    return UNSAFE_BUT_LINES.sub(_escape, text)


def indented(text: str) -> str:
    """A message whose further lines never begin at the margin, so that a name in it is no line of its own."""
    first, *rest = printable_lines(text).split("\n")
    return "\n".join([first, *(line if line.startswith("  ") else INDENT + line for line in rest)])


def encodable(text: str, stream: TextIO) -> str:
    """The text in the letters of a stream's encoding, with escapes for all others."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code in BYTES:
        return f"\\x{code - 0xDC00:02x}"
    short = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(found[0])
    return short or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
