"""The licence of a base: noted by `eridiff base add` beside the pointers, carried along by `export`.

`data/bases/NAME/license.json` is a file of its own, which only `export` reads: no latent, embedding or LoRA depends on
a licence, so stating one later starts neither training nor samples.
"""

import importlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field

from eridiff.core.config import Section, validate
from eridiff.core.errors import ConfigError
from eridiff.core.files import open_file
from eridiff.core.json_files import read_json
from eridiff.core.printable import UNSAFE_BUT_LINES
from eridiff.core.value_limits import MAX_TEXT
from eridiff.machine.local import bases_dir

FILE = "license.json"
LICENCES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE", "LICENCE.md", "LICENCE.txt")
NOTICES = ("NOTICE", "NOTICE.md", "NOTICE.txt")
UNNAMED = ("", "other", "unknown")  # what model cards say where hubs have no short name
# All of the makers' licences want it said that the model was changed.
MAX_NAME = 200  # letters of a licence's name
CHANGED = "Changed: a LoRA was trained on this model and alters its layers where it is loaded."


class Licence(Section):
    """One licence under which a base stands."""

    model_config = ConfigDict(str_max_length=MAX_TEXT)

    name: Annotated[str, Field(min_length=1)]
    """Its name, or its short name on hubs."""
    url: str | None = None
    """Its page."""
    notices: Annotated[tuple[str, ...], Field(max_length=100)] = ()
    """What it wants to be said of everything made with the base, word by word."""
    source: str = FILE
    """Who says so."""


class Licences(Section):
    """The file `license.json`; of several licences the one that the base itself states comes first."""

    licenses: Annotated[tuple[Licence, ...], Field(max_length=100)] = ()
    """None: not known."""


def licence_path(base: str) -> Path:
    """Where the licences of a base are noted."""
    return bases_dir() / base / FILE


def read_licences(base: str) -> tuple[Licence, ...]:
    """The licences noted for a base; none for bases that were added before licences were noted.

    Raises: ConfigError for a file that cannot be read, with the key.
    """
    path = licence_path(base)
    if not path.exists():
        return ()
    try:
        record = read_json(path)
    except ValueError as error:
        raise ConfigError(f"{path} is no valid JSON: {error}. docs/bases.md shows one.") from None
    return validate(Licences, record, where=str(path), prefix="").licenses


def licences_text(licences: tuple[Licence, ...]) -> str:
    """The text of `license.json`: indented, readable in a diff."""
    return json.dumps(Licences(licenses=licences).model_dump(), indent=1, ensure_ascii=False) + "\n"


def stated_licence(folder: Path, page: str | None = None) -> Licence | None:
    """What the files beside a base's weights say: the model card's front matter, else the licence file's first line.

    page: of the repository on the hub, to which the card's links are relative. None where they say nothing.
    """
    texts = {name: _read(folder / name) for name in ("README.md", *LICENCES, *NOTICES)}
    card = _front_matter(texts["README.md"])
    name = next((card[key] for key in ("license_name", "license") if card.get(key, "") not in UNNAMED), "")
    source = "README.md"
    if not name:
        source, text = next(((file, texts[file]) for file in LICENCES if texts[file]), ("", ""))
        name = _first_line(text)
    link = card.get("license_link", "")
    url = link if link.startswith("http") else f"{page}/blob/main/{link}" if page and link else page
    notices = tuple(texts[file].strip() for file in NOTICES if texts[file])
    if not name and not notices:
        return None
    return Licence(name=name or "see its notice", url=url, notices=notices, source=f"{source or 'NOTICE'} of the base")


def _first_line(text: str) -> str:
    """The first line that says something, without Markdown's marks, cut."""
    return next((line.strip(" #*\t") for line in text.splitlines() if line.strip(" #*\t")), "")[:MAX_NAME]


def _read(path: Path) -> str:
    """A text beside the weights; its page breaks and the like as spaces.

    Raises: ConfigError for one that is too long to be one.
    """
    if not path.is_file():
        return ""
    with open_file(path) as file:
        start = file.read(MAX_TEXT + 1)
    if len(start) > MAX_TEXT:
        raise ConfigError(f"{path} has more than {MAX_TEXT} bytes: it is no text of a licence. Take it away.")
    text = start.decode("utf-8", errors="replace").replace("\r\n", "\n")
    return UNSAFE_BUT_LINES.sub(" ", text)


def _front_matter(text: str) -> dict[str, str]:
    """The keys on licences at the top of a model card. Read by lines: other keys may be no valid YAML."""
    found = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    lines = re.findall(r"^(license\w*):[ \t]*(.*?)[ \t]*$", found[1], re.MULTILINE) if found else []
    return {key: value.strip("'\"") for key, value in lines}


def tagged_licence(metadata: Mapping[str, str], file: str) -> Licence | None:
    """What a weight file says of itself: `modelspec.license`, which may be a name, a link or a whole licence."""
    name = _first_line(metadata.get("modelspec.license", ""))
    if not name:
        return None
    return Licence(name=name, url=name if name.startswith("http") else None, source=f"the metadata of {file}")


def published_licence(family: str, model: str) -> Licence | None:
    """The licence of a published model, from the family's published.json.

    Read here and not by `eridiff.families.published`: that module is code of every stage, which an edit would start.
    """
    package = importlib.import_module(f"eridiff.families.{family}")
    path = Path(str(package.__file__)).with_name("published.json")
    record = json.loads(path.read_text("utf-8")).get("licenses", {}).get(model) if path.exists() else None
    if record is None:
        return None
    source = f"the makers of {model}, whose form the base has"
    return validate(Licence, {**record, "source": source}, where=str(path), prefix=f"licenses.{model}")


def unknown(base: str) -> str:
    """What to do where no licence is known."""
    return f"not known. State it in data/bases/{base}/{FILE} (docs/bases.md)"


def notices_of(licences: tuple[Licence, ...]) -> list[str]:
    """All notices, each once, and what was changed; empty where no licence is known."""
    notices = dict.fromkeys(notice for licence in licences for notice in licence.notices)
    return [*notices, CHANGED] if licences else []


def terms(licences: tuple[Licence, ...]) -> str:
    """The first licence in one line: its name and page."""
    first = licences[0]
    return f"{first.name} ({first.url})" if first.url else first.name
