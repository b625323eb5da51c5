"""What the stages of the current project put out: the files in the folder, and DVC's objects of them.

dvc.lock names a folder object (JSON of md5 and path), which lies in the cache whose place DVC's configuration gives.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eridiff.config import read_yaml
from eridiff.files import CHUNK_BYTES

STAGES = {"latents": "data/latents", "text": "data/text"}  # stage -> out
KIND_OF = {"latents": "latents", "text": "texts"}  # stage -> kind of its entries in the store


@dataclass(frozen=True, kw_only=True)
class OwnFile:
    """One file of an out: in the project's folder, and as DVC's object."""

    path: Path
    md5: str
    object: Path


@dataclass(frozen=True, kw_only=True)
class OwnOut:
    """One out: its folder, the folder object that dvc.lock names, and the files in it; () where it cannot be read."""

    stage: str
    folder: Path
    md5: str
    listing: Path
    files: tuple[OwnFile, ...]


def locked_outs() -> dict[str, str]:
    """Path -> md5 of every out in the project's dvc.lock; {} outside a project or where nothing ran yet."""
    lock = Path("dvc.lock")
    stages = (read_yaml(lock) or {}).get("stages", {}) if lock.exists() else {}
    return {out["path"]: out["md5"] for entry in stages.values() for out in entry.get("outs", []) if "md5" in out}


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
    """The outs of the caching stages as dvc.lock has them; [] outside a project or where nothing ran yet."""
    lock = Path("dvc.lock")
    if not lock.exists():
        return []
    stages = (read_yaml(lock) or {}).get("stages", {})
    digests = {
        stage: entry["md5"]
        for stage, out in STAGES.items()
        for entry in stages.get(stage, {}).get("outs", [])
        if entry["path"] == out
    }
    cache = cache_folder() if digests else Path()
    return [_read_out(cache, stage, Path(STAGES[stage]), md5) for stage, md5 in digests.items()]


def _read_out(cache: Path, stage: str, folder: Path, md5: str) -> OwnOut:
    listing = object_path(cache, md5)
    try:
        items = [(str(item["relpath"]), str(item["md5"])) for item in json.loads(listing.read_text("utf-8"))]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        items = []
    files = (OwnFile(path=folder / name, md5=digest, object=object_path(cache, digest)) for name, digest in items)
    return OwnOut(stage=stage, folder=folder, md5=md5, listing=listing, files=tuple(files))


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
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
