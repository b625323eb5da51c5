"""params.yaml and local.yaml: typed, strict, read by the parser that DVC uses (YAML 1.2: `1e-4` is a number)."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eridiff.core.config_errors import explain_all
from eridiff.core.errors import ConfigError
from eridiff.core.files import open_file
from eridiff.core.value_limits import MAX_DEPTH, MAX_LETTERS, MAX_VALUES, find_fault

MAX_YAML_BYTES = 1 << 18  # of one file; the largest preset has 4,000, the demo's dvc.lock 30,000
MAX_MESSAGE = 600  # letters of the parser's own words
NEXT_LINE = "\x85"  # the one control character that the parser takes, and makes a space of


class Section(BaseModel):
    """One section of a configuration file: frozen, unknown keys refused, no conversion of types.

    Every number in it has two bounds and every list a length (a test walks all models); texts have one rule.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        str_max_length=MAX_LETTERS,
    )


SectionT = TypeVar("SectionT", bound=Section)
MAX_STEPS = 10_000_000  # optimizer steps, and whatever counts them
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)]  # what torch's generators take


def _way_to(path: Path) -> str:
    """What to do about a missing file: it lies further up where a command was run in a folder of a project."""
    here = path.resolve().parent
    above = [folder for folder in here.parents if (folder / path.name).exists()]
    if above and not (here / "dvc.yaml").exists():
        return f"Run this in {above[0]}."
    return "A preset to copy lies in presets/."


def read_yaml(path: Path) -> Any:
    """Parse a YAML file as DVC does.

    Raises: ConfigError for a missing file, a syntax error or a duplicate key, with the line; and for one that is out of
    bounds (parse_yaml).
    """
    try:
        with open_file(path) as file:
            start = file.read(MAX_YAML_BYTES + 1)
        text = start.decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing. {_way_to(path)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no valid YAML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Parse a YAML text as DVC does, within bounds of size, depth and number (eridiff/core/value_limits.py).

    Raises: ConfigError that begins with `where`.
    """
    from ruamel.yaml.error import YAMLError

    if len(text.encode("utf-8", "replace")) > MAX_YAML_BYTES:
        raise ConfigError(f"{where} has more than {MAX_YAML_BYTES} bytes: it is no file of settings.")
    if NEXT_LINE in text:  # as a value's other characters below, but the parser would leave a space of it
        line = text[: text.index(NEXT_LINE)].count("\n") + 1
        raise ConfigError(f"{where}: line {line} holds the control character U+0085, an invisible line end.")
    try:
        value = _bounded_yaml().load(text)
    except YAMLError as error:
        raise ConfigError(f"{where} is no valid YAML: {str(error)[:MAX_MESSAGE]}") from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:  # of what follows a tag
        text = str(error)[:MAX_MESSAGE]
        raise ConfigError(
            f"{where} is no valid YAML: a number, or what follows a tag, cannot be read: {text}"
        ) from None
    if fault := find_fault(value):
        raise ConfigError(f"{where}: {fault}.")
    return value


def _bounded_yaml() -> Any:
    """ruamel's safe loader, which counts as it parses: levels, and values with aliases as what they stand for."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.Parser = _bounded_parser()
    return yaml


@cache
def _bounded_parser() -> Any:
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent
    from ruamel.yaml.parser import Parser

    class BoundedParser(Parser):  # type: ignore[misc, unused-ignore]
        """Refuses a bomb before anything is built of it."""

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.open: list[
                tuple[str | None, int]
            ] = []  # anchors of what is not closed yet, and the count at its start
            self.sizes: dict[str, int] = {}  # anchor -> values
            self.count = 0

        def get_event(self) -> Any:
            event = super().get_event()
            if isinstance(event, AliasEvent):
                if event.anchor in (anchor for anchor, _ in self.open):
                    raise YAMLError(f"*{event.anchor} stands inside what it names")
                self.count += self.sizes.get(event.anchor, 1)
            elif isinstance(event, CollectionStartEvent):
                self.open.append((event.anchor, self.count))
                self.count += 1
            elif isinstance(event, CollectionEndEvent):
                anchor, before = self.open.pop()
                if anchor:
                    self.sizes[anchor] = self.count - before
            elif isinstance(event, ScalarEvent):
                self.count += 1
            if len(self.open) > MAX_DEPTH:
                raise YAMLError(f"more than {MAX_DEPTH} levels of lists and sections")
            if self.count > MAX_VALUES:
                raise YAMLError(f"more than {MAX_VALUES} values, aliases counted as what they stand for")
            return event

    return BoundedParser


def load_section(model: type[SectionT], name: str, path: Path = Path("params.yaml")) -> SectionT:
    """Read and validate one section of params.yaml.

    Raises: ConfigError that names the key's path, its value, the choices and the nearest known name.
    """
    params = read_yaml(path)
    if not isinstance(params, Mapping) or name not in params:
        raise ConfigError(f"{path}: section '{name}' is missing.")
    return validate(model, params[name], where=str(path), prefix=name)


def validate(model: type[SectionT], data: object, *, where: str, prefix: str) -> SectionT:
    """Check plain data against a section's model; `prefix` is the key path of the section in its file."""
    if fault := find_fault(data):
        raise ConfigError(f"{where}: {f'{prefix}.' if prefix else ''}{fault}.")
    try:
        text = json.dumps(data)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {prefix or 'the file'}: not plain values: {error}.") from None
    try:
        return model.model_validate_json(text)  # JSON mode: lists fill tuples, strict otherwise
    except ValidationError as error:
        raise ConfigError("\n       ".join(explain_all(model, error, where, prefix))) from None
