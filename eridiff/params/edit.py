"""Values put into the text of a params file, its comments kept."""

import io
from collections.abc import Mapping
from typing import Any


def filled(text: str, changes: Mapping[str, Mapping[str, Any]]) -> str:
    """A params file with some keys changed, its comments kept, but for those inside a list that is another now."""
    from ruamel.yaml import YAML
    from ruamel.yaml.representer import RoundTripRepresenter

    class Representer(RoundTripRepresenter):  # type: ignore[misc]
        """Writes null as a word: the library leaves nothing."""

    Representer.add_representer(type(None), lambda it, value: it.represent_scalar("tag:yaml.org,2002:null", "null"))
    yaml = YAML()
    yaml.Representer = Representer
    yaml.preserve_quotes, yaml.width = True, 1 << 16
    yaml.indent(mapping=2, sequence=4, offset=2)
    record = yaml.load(text)
    for section, values in changes.items():
        for key, value in values.items():
            record[section][key] = value
            if isinstance(value, list):
                record[section].ca.items.pop(key, None)
    buffer = io.StringIO()
    yaml.dump(record, buffer)
    return buffer.getvalue()
