"""The copies of the versions in a standalone project, against this eridiff's: a stage runs only where they agree.

Where they do not, `eridiff upgrade` shows what would run again, and writes the copies again.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from eridiff import __version__
from eridiff.core.config import read_yaml
from eridiff.core.errors import ConfigError, EridiffError, run_main
from eridiff.core.files import read_text
from eridiff.versions import (
    STAGES,
    Versions,
    code_versions,
    describe_change,
    family_versions,
    is_standalone,
    version_files,
)

WRITER = "# Written by eridiff "
HEADER = WRITER + "{version}: `eridiff upgrade` writes it again, so that edits of it are lost.\n"


def written(text: str) -> str:
    """A file of a standalone project with the name of this eridiff above it: a comment, at which DVC does not look."""
    return HEADER.format(version=__version__) + text


def without_writer(text: str) -> str:
    """Such a file less that line: a release that changes nothing else makes no project one of before."""
    first, _, rest = text.partition("\n")
    return rest if first.startswith(WRITER) else text


def writer_of(folder: Path) -> str | None:
    """The version of the eridiff that wrote a standalone project's copies; None where they do not say."""
    first = read_text(folder / STAGES).partition("\n")[0]
    return first.removeprefix(WRITER).partition(":")[0] if first.startswith(WRITER) else None


def params_of(folder: Path) -> Mapping[str, Any]:
    """params.yaml of a project; {} where it cannot be read, which the stage `check` says."""
    try:
        found = read_yaml(folder / "params.yaml") if (folder / "params.yaml").exists() else None
    except EridiffError:
        return {}
    return found if isinstance(found, Mapping) else {}


def family_of(params: Mapping[str, Any]) -> str | None:
    """`model.family` of params.yaml; None where it has none, which the stage `check` says."""
    model = params.get("model")
    family = model.get("family") if isinstance(model, Mapping) else None
    return family if isinstance(family, str) else None


def known_versions(family: str | None) -> dict[str, Versions]:
    """This eridiff's files of versions that count for a project of a family, by the place of their copy."""
    found: dict[str, Versions] = {}
    for place, path in version_files().items():
        if place == STAGES:
            found[place] = code_versions(path.parent)
        elif path.parent.name == family:
            found[place] = family_versions(path.parent)
    return found


def version_differences(folder: Path) -> list[str]:
    """Which numbers of a standalone project's copies are not this eridiff's, each with what its raises change.

    Only those of the project's own family count. Raises: ConfigError where a copy cannot be read.
    """
    family, lines = family_of(params_of(folder)), []
    for place, file in known_versions(family).items():
        its, ours = _numbers(folder / place), file.numbers
        changed = [name for name in sorted({*its, *ours}) if its.get(name) != ours.get(name)]
        lines += [describe_change(file, name, its.get(name), ours.get(name), family or "") for name in changed]
    return lines


def refuse_other_versions(folder: Path) -> None:
    """Refuse to run a standalone project whose copies of the versions are not this eridiff's.

    Raises: ConfigError that names the differences and the command.
    """
    differences = version_differences(folder) if is_standalone(folder) else []
    if not differences:
        return
    writer = writer_of(folder)
    before = f"eridiff {writer}" if writer else "another eridiff"
    raise ConfigError(
        f"{folder.resolve()} has the versions of {before}, and this is eridiff {__version__}: "
        f"{'; '.join(differences)}. Run `eridiff upgrade` there: it shows what would run again, and why, and then "
        f"writes this eridiff's (`--dry-run` only shows). To go on as before, install {before} again."
    )


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage in the current folder, which is a project's; not where its versions are another eridiff's."""

    def checked() -> None:
        refuse_other_versions(Path())
        main()

    run_main(checked)


def _numbers(path: Path) -> dict[str, Any]:
    """Name -> number of a copy, as it stands: another eridiff may have other names. {} where it is missing."""
    record = read_yaml(path) if path.exists() else None
    if record is not None and not isinstance(record, Mapping):
        raise ConfigError(f"{path} holds no versions: `eridiff upgrade` writes it again.")
    sections = {name: value for name, value in (record or {}).items() if isinstance(value, Mapping)}
    return {f"{section}.{name}": number for section, named in sections.items() for name, number in named.items()}
