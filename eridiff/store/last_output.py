"""A stage's own last output, found through dvc.lock in DVC's cache: what a caching stage imports first.

While a stage runs its out is gone, but the dvc.lock beside the dvc.yaml still names the old folder object. After
a clone and `dvc pull`, or in a project or experiment with an empty store, nothing then is encoded again.
"""

from pathlib import Path

from eridiff.core.errors import StoreError
from eridiff.dvc.outs import read_outs
from eridiff.store.entries import WAY_OUT


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
    found = [own for own in read_outs() if own.stage == stage and own.folder == Path(out)]
    if found and not found[0].files and found[0].listing.exists():
        raise StoreError(f"{found[0].listing} in DVC's cache is damaged. {WAY_OUT}")
    files = {str(file.path.relative_to(own.folder)): file.object for own in found for file in own.files}
    return {name: path for name, path in files.items() if path.exists()}
