"""What the stages of the current project put out: the files in the folder, and DVC's objects of them.

dvc.lock names a folder object (JSON of md5 and path), which lies in the cache whose place DVC's configuration gives.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eridiff.config import read_yaml
from eridiff.files import CHUNK_BYTES, MAX_LISTING_BYTES, open_file
from eridiff.jsonfiles import load_json

KIND_OF = {"latents": "latents", "text": "texts"}  # caching stage -> kind of its entries in the store
ORIGINALS = ""  # in place of a stage: files that the user put under DVC, which no stage can make again


@dataclass(frozen=True, kw_only=True)
class OwnFile:
    """One file of an out: in the project's folder, and as DVC's object."""

    path: Path
    md5: str
    object: Path


@dataclass(frozen=True, kw_only=True)
class OwnOut:
    """One out: its folder, the folder object that dvc.lock names, and the files in it; () where it cannot be read.

    Of an out that is one file, folder and listing are that file and its object.
    """

    stage: str
    folder: Path
    md5: str
    listing: Path
    files: tuple[OwnFile, ...]


def locked_outs() -> dict[str, str]:
    """Path -> md5 of every out in the project's dvc.lock; {} outside a project or where nothing ran yet."""
    return {path: md5 for outs in _locked().values() for path, md5 in outs.items()}


def _locked() -> dict[str, dict[str, str]]:
    """Stage -> path -> md5 of its outs."""
    lock = Path("dvc.lock")
    stages = (read_yaml(lock) or {}).get("stages", {}) if lock.exists() else {}
    return {stage: _md5s(entry) for stage, entry in stages.items()}


def _md5s(entry: Mapping[str, Any]) -> dict[str, str]:
    return {str(out["path"]): str(out["md5"]) for out in entry.get("outs", []) if "md5" in out}


def locked_md5(path: Path) -> str | None:
    """The md5 that dvc.lock gives a file; of an object in DVC's cache, the one that is its name. None: it has none."""
    folder = path.parent
    if folder.parent.name == "md5" and re.fullmatch("[0-9a-f]{2}", folder.name):
        return folder.name + path.name
    place = os.path.relpath(path)
    for out, md5 in locked_outs().items():
        if out == place:
            return md5
        if md5.endswith(".dir") and place.startswith(f"{out}/"):
            files = _read_out(cache_folder(), "", Path(out), md5).files
            return next((file.md5 for file in files if str(file.path) == place), None)
    return None


def read_outs() -> list[OwnOut]:
    """The outs of all stages as dvc.lock has them; [] outside a project or where nothing ran yet."""
    found = [(stage, path, md5) for stage, outs in _locked().items() for path, md5 in outs.items()]
    cache = cache_folder() if found else Path()
    return [_read_out(cache, stage, Path(path), md5) for stage, path, md5 in found]


def read_originals() -> list[OwnOut]:
    """What the user put under DVC (`data/raw.dvc`), as the pointer has it."""
    pointers = [path for path in Path("data").glob("*.dvc") if path.is_file()] if Path("dvc.yaml").exists() else []
    cache = cache_folder() if pointers else Path()
    return [
        _read_out(cache, ORIGINALS, pointer.parent / path, md5)
        for pointer in sorted(pointers)
        for path, md5 in _md5s(read_yaml(pointer) or {}).items()
    ]


def _read_out(cache: Path, stage: str, folder: Path, md5: str) -> OwnOut:
    listing = object_path(cache, md5)
    if not md5.endswith(".dir"):
        files: tuple[OwnFile, ...] = (OwnFile(path=folder, md5=md5, object=listing),)
        return OwnOut(stage=stage, folder=folder, md5=md5, listing=listing, files=files)
    try:
        items = [(str(item["relpath"]), str(item["md5"])) for item in load_json(listing, MAX_LISTING_BYTES)]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        items = []
    files = tuple(OwnFile(path=folder / name, md5=digest, object=object_path(cache, digest)) for name, digest in items)
    return OwnOut(stage=stage, folder=folder, md5=md5, listing=listing, files=files)


def object_path(cache: Path, md5: str) -> Path:
    """The cache's file of a digest; a folder's digest ends in `.dir`."""
    return cache / "files" / "md5" / md5[:2] / md5[2:]


def all_objects(cache: Path) -> Iterator[Path]:
    """Every object of a DVC cache, whatever project or state it is of."""
    yield from (path for path in (cache / "files" / "md5").glob("??/*") if path.is_file())


def cache_folder() -> Path:
    """DVC's cache as its own configuration gives it."""
    from dvc.repo import Repo

    with Repo() as repo:
        return Path(repo.cache.local.path).parent.parent


def digest_md5(path: Path) -> str:
    """md5 (hex) of a file's bytes, as DVC names its objects."""
    digest = hashlib.md5(usedforsecurity=False)
    with open_file(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
