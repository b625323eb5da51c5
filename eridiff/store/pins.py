"""Pins: what of the store each project put out last, so that gc keeps it.

    STORE/roots/PROJECT.KIND.sealed.json    host, project (its real path), kind, names, earlier; with a checksum

names are shards (of `latents`, `texts`) or states (of `runs`); earlier ones are what the project had before and needs
no longer. One small file a project and kind, written by the stage that has put something out.
"""

import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from eridiff.core.errors import DataError, StoreError
from eridiff.core.files import digest_json, write_text
from eridiff.core.json_files import parse_json
from eridiff.core.progress import warn
from eridiff.formats.seals import read_sealed, sealed_json

PINS = "roots"  # the folder, under the name that stores have had from the start
BASES = "bases"  # the folder of quantised bases, which are leased by use instead of pinned
DAY_SECONDS = 86400.0


@dataclass(frozen=True, kw_only=True)
class Pin:
    """What one project needs of one kind."""

    path: Path
    host: str
    project: Path
    kind: str
    names: tuple[str, ...]
    earlier: tuple[str, ...]
    written: float  # time of the file, s

    @property
    def is_present(self) -> bool:
        """Whether the project's folder is to be seen from this machine."""
        return (self.project / "dvc.yaml").exists()

    def holds(self, days: float, now: float) -> bool:
        """Whether it still counts.

        Yes while the project is there. A folder that is gone (of `dvc exp run --temp`) counts for `days` more; one of
        another machine, which cannot be looked at from here, until it is forgotten by name.
        """
        return self.is_present or self.host != socket.gethostname() or now - self.written < days * DAY_SECONDS


def pin(root: Path, kind: str, project: Path, names: Iterable[str]) -> None:
    """Pin what a project's stage has just put out. A store that cannot be written is left as it is, with a warning."""
    host, place = socket.gethostname(), Path(os.path.realpath(project))
    path = root / PINS / f"{digest_json([host, str(place)])[:32]}.{kind}.sealed.json"
    unsealed = path.with_name(path.name.replace(".sealed.", "."))  # of before
    names = sorted(set(names))
    before: set[str] = set()
    for one in (path, unsealed):
        with suppress(OSError, StoreError):  # a damaged one is written again
            old = read_pin(one)
            before |= {*old.names, *old.earlier}
    record = {
        "host": host,
        "project": str(place),
        "kind": kind,
        "names": names,
        "earlier": sorted(before - set(names)),
    }
    try:
        write_text(path, sealed_json(record))
        unsealed.unlink(missing_ok=True)
    except OSError as error:
        warn(f"{place} is not pinned in {root} ({error.strerror}): `eridiff store gc` may remove what it needs.")


def read_pins(root: Path) -> list[Pin]:
    """All pins of a store.

    Raises: StoreError where one is damaged: without it gc would remove what a project needs.
    """
    found = []
    for path in sorted((root / PINS).glob("*.json")):
        with suppress(FileNotFoundError):
            found.append(read_pin(path))
    return found


def forget_earlier(pins: Iterable[Pin], names: set[str]) -> None:
    """Take names that are gone out of the lists of what projects had before."""
    for old in pins:
        if names.intersection(old.earlier) and old.path.exists():
            record = parse_json(read_sealed(old.path, ""))
            record["earlier"] = sorted(set(record["earlier"]) - names)
            write_text(old.path, sealed_json(record))
            os.utime(old.path, (old.written, old.written))  # no run of the project: its lease goes on


def read_pin(path: Path) -> Pin:
    """One pin.

    Raises: StoreError where it is damaged, FileNotFoundError.
    """
    try:
        record = parse_json(read_sealed(path, ""))
        return Pin(
            path=path,
            host=str(record["host"]),
            project=Path(record["project"]),
            kind=str(record["kind"]),
            names=tuple(map(str, record["names"])),
            earlier=tuple(map(str, record["earlier"])),
            written=path.stat().st_mtime,
        )
    except (DataError, ValueError, KeyError, TypeError):
        raise StoreError(
            f"{path} is damaged: it says which entries a project needs. Remove it, and run `dvc repro --force "
            "--single-item latents` and `text` in that project: it pins them again."
        ) from None
