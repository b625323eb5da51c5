"""Store shard, DVC's object and the project's file: one file on the disk, after DVC has made copies of them.

Projects use `cache.type reflink,copy`, since a link of DVC's cache in data/raw would be altered by an edit. So where
there are no reflinks DVC copies a stage's shards, into its cache and back into the folder. Once a stage is committed
these copies are put in place by links to the store's shard, whose bytes are compared with DVC's md5 before.
"""

import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from eridiff.core.errors import StoreError
from eridiff.core.files import link_kind
from eridiff.core.leftovers import temporary_path
from eridiff.dvc.outs import KIND_OF, OwnFile, OwnOut, digest_md5
from eridiff.store.entries import Location, open_shard, read_catalogue, shard_id

BLOCK_BYTES = 512  # of st_blocks
OBJECT_MODE = 0o444  # by which DVC knows an object that it need not read again
KINDS = ("latents", "texts")
TEMPORARY = Path(".dvc/tmp")  # of the project


@dataclass(kw_only=True)
class Deduped:
    """What came of it."""

    links: int = 0  # names that were files of their own
    freed: int = 0  # bytes on disk
    refused: dict[str, str] = field(default_factory=dict)  # a name that keeps its own file -> why


def store_shard(root: Path, stage: str, entries: Mapping[str, Location]) -> Path:
    """Where the store has the shard of a stage that holds these entries."""
    name = shard_id({key: entry.checksum for key, entry in entries.items()})
    return root / KIND_OF[stage] / "shards" / f"{name}.safetensors"


def dedupe_outs(root: Path, outs: Iterable[OwnOut]) -> Deduped:
    """Make one file of each shard of this project's outs: in the store, in DVC's cache and in the project's folder.

    A name that holds other bytes than its md5 says, and one that cannot be a link, keeps its own file: nothing is lost
    but space. What stands in the project's folder is read only where DVC does not know it.
    """
    done = Deduped()
    for out in (out for out in outs if out.stage in KIND_OF):
        shards = [file for file in out.files if file.path.suffix == ".safetensors" and file.object.exists()]
        apart = [file for file in shards if not _is_one(file)]
        sound: set[OwnFile] = set()
        if apart and _may_link(root, [file.object for file in apart], done):
            sound = {file for file in apart if _join_store(root, out.stage, file.object, done)}
        copies = [file for file in apart if file.path.exists() and not file.path.samefile(file.object)]
        if copies and _may_link(TEMPORARY, [file.path for file in copies], done):
            _join_folder(out.folder, copies, sound, done)
    return done


def dedupe_cache(root: Path, objects: Iterable[Path]) -> Deduped:
    """Put the store's shards in place of all objects of a DVC cache that hold the same, of whatever project or state.

    A shard is read only where an object of its size is a file of its own.
    """
    by_size: dict[int, list[Path]] = {}
    for path in objects:
        by_size.setdefault(path.stat().st_size, []).append(path)
    done = Deduped()
    for shard in (path for kind in KINDS for path in sorted((root / kind).glob("shards/*.safetensors"))):
        here = shard.stat()
        facts = [(path, path.stat()) for path in by_size.get(here.st_size, [])]
        others = [path for path, it in facts if it.st_dev == here.st_dev and it.st_ino != here.st_ino]
        if others:
            md5 = digest_md5(shard)
            for path in others:
                if _md5_of(path) == md5:
                    _link(shard, path, done, shard.parent)
    return done


def _is_one(file: OwnFile) -> bool:
    """Whether all three names are one file already, as far as it can be told without reading."""
    facts = file.object.stat()
    return facts.st_nlink > 2 and file.path.exists() and file.path.samefile(file.object)


def _may_link(folder: Path, names: Iterable[Path], done: Deduped) -> bool:
    """Whether links can be made from a folder, asked before anything is read; if not, the names keep their files."""
    try:
        if link_kind(folder) == "hardlink":
            return True
        why = "this file system has no hardlinks"
    except OSError as error:  # as a store that this user may only read
        why = error.strerror or str(error)
    done.refused |= {str(name): why for name in names}
    return False


def _join_store(root: Path, stage: str, target: Path, done: Deduped) -> bool:
    """Put the store's shard in place of DVC's object, where its md5 is the object's name; whether they are one now."""
    with suppress(StoreError, FileNotFoundError):  # the object is damaged, or the shard was collected meanwhile
        shard = store_shard(root, stage, read_catalogue(open_shard(target)))
        if shard.samefile(target):
            return True
        if shard.stat().st_dev != target.stat().st_dev:
            done.refused[str(target)] = f"{root} is another file system"
            return False
        if digest_md5(shard) == _md5_of(target):
            return _link(shard, target, done, shard.parent)
    return False


def _join_folder(folder: Path, copies: list[OwnFile], sound: set[OwnFile], done: Deduped) -> None:
    """Put DVC's objects in place of the project's files that hold the same, and let DVC know what stands there.

    Else DVC would read each of them again: it knows a file by inode, size and time. sound: objects that were compared.
    """
    from dvc.repo import Repo
    from dvc_data.hashfile.hash_info import HashInfo

    told = []
    with Repo() as repo:
        for file in copies:
            path = os.path.join(repo.root_dir, file.path)
            with suppress(FileNotFoundError):  # the stage or `dvc gc` runs meanwhile
                if file not in sound and digest_md5(file.object) != file.md5:
                    continue
                facts = file.path.stat()
                _, known = repo.state.get(path, repo.fs)
                found = known.value if known and known.name == "md5" else digest_md5(file.path)
                if found == file.md5 and _link(file.object, file.path, done, TEMPORARY, facts):
                    told.append((path, HashInfo("md5", file.md5), None))
        repo.state.save_many(told, repo.fs)
        repo.state.save_link(os.path.join(repo.root_dir, folder), repo.fs)


def _md5_of(target: Path) -> str:
    """The md5 that an object of DVC's cache is named after."""
    return target.parent.name + target.name


def _link(source: Path, target: Path, done: Deduped, beside: Path, compared: os.stat_result | None = None) -> bool:
    """Make `target` a link to `source`, in one step, read-only as DVC's objects are; False where that cannot be.

    beside: where the link stands first. Not in DVC's cache nor in an out, where a kill would leave a foreign file.
    compared: the target as it was when its bytes were compared; another one by now is left.
    """
    temporary = temporary_path(beside / source.name)
    facts = target.stat()
    if compared and (facts.st_ino, facts.st_mtime_ns) != (compared.st_ino, compared.st_mtime_ns):
        return False
    try:
        if stat.S_IMODE(source.stat().st_mode) != OBJECT_MODE:
            source.chmod(OBJECT_MODE)
        os.link(source, temporary)
        os.replace(temporary, target)
    except OSError as error:
        done.refused[str(target)] = error.strerror or str(error)
        return False
    finally:
        temporary.unlink(missing_ok=True)
    done.links += 1
    done.freed += facts.st_blocks * BLOCK_BYTES if facts.st_nlink == 1 else 0
    return True
