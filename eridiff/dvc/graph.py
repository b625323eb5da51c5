"""What DVC knows of a project: stages in order, their recorded and present digests, and the run-cache.

Reads only. The pipeline itself needs none of this; `eridiff why` does.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eridiff.core.errors import ConfigError
from eridiff.core.files import MAX_LISTING_BYTES
from eridiff.core.json_files import load_json


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One stage: what dvc.lock recorded, and what stands in the workspace now."""

    name: str
    recorded_deps: dict[str, str | None]  # path -> digest in dvc.lock
    present_deps: dict[str, str | None]  # path -> digest now, None where there is no file
    recorded_params: dict[str, Any]
    present_params: dict[str, Any]
    outs: dict[str, str | None]  # path -> digest in dvc.lock
    cmd_changed: bool
    handle: Any  # DVC's own stage


class Graph:
    """The stages of the project in a folder, producers first."""

    def __init__(self, folder: Path) -> None:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        try:
            self.repo = Repo(str(folder))
            self.repo.index.check_graph()
        except DvcException as error:
            raise ConfigError(f"DVC cannot read this project: {error}") from None

    def close(self) -> None:
        """Let DVC's files go."""
        self.repo.close()

    @cached_property
    def stages(self) -> list[StageRecord]:
        """All stages, each after those that it depends on."""
        import networkx

        with self.repo.lock:
            order = list(networkx.dfs_postorder_nodes(self.repo.index.graph))
            return [self._record(stage) for stage in order if stage.cmd]

    def _record(self, stage: Any) -> StageRecord:
        from dvc.dependency.param import ParamsDependency

        deps = [dep for dep in stage.deps if not isinstance(dep, ParamsDependency)]
        params = [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]
        return StageRecord(
            name=stage.name,
            recorded_deps={dep.def_path: dep.hash_info.value for dep in deps},
            present_deps={dep.def_path: dep.get_hash().value if dep.exists else None for dep in deps},
            recorded_params={key: value for dep in params for key, value in (dep.hash_info.value or {}).items()},
            present_params={key: value for dep in params for key, value in dep.read_params().items()},
            outs={out.def_path: out.hash_info.value for out in stage.outs},
            cmd_changed=bool(stage.cmd_changed),
            handle=stage,
        )

    def run_cached(self, record: StageRecord, deps: dict[str, str]) -> dict[str, str] | None:
        """Outs of an earlier run of the stage with these deps and the present params; None if DVC has none whole."""
        from dvc.dependency.param import ParamsDependency
        from dvc.stage.cache import _get_cache_hash
        from dvc.stage.serialize import to_single_stage_lockfile
        from dvc_data.hashfile.hash_info import HashInfo
        from dvc_data.hashfile.meta import Meta

        stage, cache = record.handle, self.repo.stage_cache
        for dep in stage.deps:
            params = isinstance(dep, ParamsDependency)
            dep.hash_info = dep.get_hash() if params else HashInfo("md5", deps[dep.def_path])
            dep.meta = Meta()
        for out in stage.outs:
            out.meta = out.meta or Meta()
        key = _get_cache_hash(to_single_stage_lockfile(stage), key=True)
        folder = Path(cache._get_cache_dir(key))
        entries = sorted(folder.glob("*"), key=lambda path: path.stat().st_mtime, reverse=True)
        found = cache._load_cache(key, entries[0].name) if entries else None
        if found is None or not all(self.has_object(out["md5"]) for out in found["outs"]):
            return None
        return {out["path"]: out["md5"] for out in found["outs"]}

    def hidden_edits(self) -> Iterator[tuple[str, str, list[str]]]:
        """Sources whose bytes are not those that DVC believes: (path, true digest, files). Reads every file."""
        from dvc.dependency.param import ParamsDependency

        made = {out.fs_path for stage in self.repo.index.stages for out in stage.outs if stage.cmd}
        deps = {
            dep.fs_path: dep
            for stage in self.repo.index.stages
            for dep in stage.deps
            if not isinstance(dep, ParamsDependency) and dep.fs_path not in made and dep.exists
        }
        with self.repo.lock:
            for dep in deps.values():
                believed, true = _files(dep, trust=True), _files(dep, trust=False)
                files = sorted(name for name in true[1] if true[1][name] != believed[1].get(name))
                if files:
                    yield dep.def_path, true[0], [f"{dep.def_path}/{name}" if name else dep.def_path for name in files]

    def index_of(self, digest: str | None) -> Path | None:
        """The index in a caching stage's out, in DVC's cache; None where the cache is missing it."""
        if digest is None or not self.object_path(digest).exists():
            return None
        md5 = self.listing(digest).get("index.parquet")
        path = self.object_path(md5) if md5 else None
        return path if path and path.exists() else None

    def has_object(self, digest: str) -> bool:
        """Whether DVC's cache holds a file or, with all its files, a folder."""
        path = self.object_path(digest)
        if not path.exists():
            return False
        return not digest.endswith(".dir") or all(
            self.object_path(md5).exists() for md5 in self.listing(digest).values()
        )

    def object_path(self, digest: str) -> Path:
        """DVC's cache file of a digest."""
        return Path(self.repo.cache.local.oid_to_path(digest))

    def listing(self, digest: str) -> dict[str, str]:
        """Relative path -> digest of the files in a folder object."""
        items = load_json(self.object_path(digest), MAX_LISTING_BYTES)
        return {item["relpath"]: item["md5"] for item in items}


def _files(dep: Any, *, trust: bool) -> tuple[str, dict[str, str]]:
    """Digest of a dep, and relative path -> digest of the files in it ("" for a file itself).

    trust: take what DVC remembers of files whose time, size and inode are the same.
    """
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.state import StateNoop
    from dvc_data.hashfile.tree import Tree

    store = copy.copy(dep.local_cache)
    if not trust:
        store.state = StateNoop()
    _, _, found = build(store, dep.fs_path, dep.fs, dep.hash_name, ignore=dep.dvcignore, dry_run=True)
    digest = str(found.hash_info.value)
    if not isinstance(found, Tree):
        return digest, {"": digest}
    items: Any = found
    return digest, {"/".join(key): str(value.value) for key, (_, value) in items.iteritems()}
