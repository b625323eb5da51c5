"""A stage's own last output, found through dvc.lock in DVC's cache: what a caching stage imports first.

While a stage runs its out is gone, but the dvc.lock beside the dvc.yaml still names the old folder object. After
a clone and `dvc pull`, or in a project or experiment with an empty store, nothing then is encoded again.
"""

import json
from pathlib import Path

from eridiff.config import read_yaml


def earlier_shards(stage: str, out: str) -> list[Path]:
    """Shard files that the last run of `stage` put out as the folder `out`, in DVC's cache; [] if there are none.

    The cache's place comes from DVC's configuration: experiments and projects have no `.dvc/cache` of their own.
    """
    return sorted(path for name, path in _earlier_files(stage, out).items() if name.endswith(".safetensors"))


def earlier_index(stage: str, out: str) -> Path | None:
    """The index that the last run of `stage` put out in the folder `out`, in DVC's cache; None if there is none."""
    return _earlier_files(stage, out).get("index.parquet")


def _earlier_files(stage: str, out: str) -> dict[str, Path]:
    """Relative path -> file in DVC's cache, of those that the cache holds."""
    lock = Path("dvc.lock")
    if not lock.exists():
        return {}
    record = (read_yaml(lock) or {}).get("stages", {}).get(stage, {})
    digests = [entry["md5"] for entry in record.get("outs", []) if entry["path"] == out]
    if not digests:
        return {}
    cache = _cache_folder()
    listing = _object(cache, digests[0])
    if not listing.exists():
        return {}
    items = json.loads(listing.read_text("utf-8"))
    files = {item["relpath"]: _object(cache, item["md5"]) for item in items}
    return {name: path for name, path in files.items() if path.exists()}


def _object(cache: Path, md5: str) -> Path:
    """The cache's file of a digest; a folder's digest ends in `.dir`."""
    return cache / "files" / "md5" / md5[:2] / md5[2:]


def _cache_folder() -> Path:
    """DVC's cache as its own configuration gives it."""
    from dvc.repo import Repo

    with Repo() as repo:
        return Path(repo.cache.local.path).parent.parent
