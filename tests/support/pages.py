"""Pages of the docs, for the tests that read them: their headings and tables."""

import re
from itertools import takewhile
from pathlib import Path

from tests.conftest import ROOT

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)  # a block: its language, its text
PAGES = [
    *(ROOT / name for name in ("CHANGELOG.md", "README.md", "data/demo/README.md")),
    *sorted(ROOT.glob("docs/*.md")),
]


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text("utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def table_of(name: str, heading: str) -> list[dict[str, str]]:
    """The rows of the first table below a heading: column -> cell without backticks; a nameless column is a number."""
    _, _, section = (ROOT / name).read_text("utf-8").partition(f"# {heading}\n")
    lines = section[section.index("\n|") + 1 :].splitlines()
    head, _, *rows = (
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in takewhile(lambda line: line[:1] == "|", lines)
    )
    return [dict(zip([name or str(n) for n, name in enumerate(head)], row, strict=True)) for row in rows]
