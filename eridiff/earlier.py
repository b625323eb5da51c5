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
    lock = Path("dvc.lock")
    if not lock.exists():
        return []
    record = (read_yaml(lock) or {}).get("stages", {}).get(stage, {})
    digests = [entry["md5"] for entry in record.get("outs", []) if entry["path"] == out]
    if not digests:
        return []
    cache = _cache_folder()
    listing = _object(cache, digests[0])
    if not listing.exists():
        return []
    files = [_object(cache, item["md5"]) for item in json.loads(listing.read_text("utf-8")) if _is_shard(item)]
    return sorted(path for path in files if path.exists())


def _is_shard(item: dict[str, str]) -> bool:
    return item["relpath"].endswith(".safetensors")


def _object(cache: Path, md5: str) -> Path:
    """The cache's file of a digest; a folder's digest ends in `.dir`."""
    return cache / "files" / "md5" / md5[:2] / md5[2:]


def _cache_folder() -> Path:
    """DVC's cache as its own configuration gives it."""
    from dvc.repo import Repo

    with Repo() as repo:
        return Path(repo.cache.local.path).parent.parent
