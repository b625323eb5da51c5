"""A user's pictures and captions are files of their own: none is a link into DVC's cache, which an edit would alter.

DVC has one kind of link a repository, for results and pictures alike, so projects use `cache.type reflink,copy`: DVC
copies where it cannot reflink, and leaves what it tracks as it was. Projects of before had hardlinks.
"""

import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from eridiff.core.files import MAX_LISTING_BYTES, inode
from eridiff.core.json_files import load_json
from eridiff.core.leftovers import temporary_path
from eridiff.core.progress import track
from eridiff.dvc.outs import all_objects, digest_md5, object_path

SAFE_TYPES = ("reflink", "copy")
OBJECT_NAME = re.compile(r"([0-9a-f]{2})/([0-9a-f]{30})(\.dir)?")


@dataclass(frozen=True, kw_only=True)
class Misnamed:
    """An object of DVC's cache whose bytes are others than its name says."""

    path: Path
    md5: str  # of its bytes, with `.dir` where its name has that
    files: tuple[str, ...]  # what DVC's folder objects call the bytes that are lost

    def line(self) -> str:
        """What is said of it."""
        names = f" ({', '.join(self.files)})" if self.files else ""
        return f"{self.path}{names} holds other bytes than its name says"


def unsafe_types(folder: Path) -> tuple[str, ...]:
    """The kinds of links in a project's `cache.type`, as DVC's configuration gives it, that an edit goes through."""
    from dvc.config import Config

    if not (folder / ".dvc").is_dir():
        return ()
    chosen = Config(str(folder / ".dvc"))["cache"].get("type") or SAFE_TYPES
    return tuple(kind for kind in chosen if kind not in SAFE_TYPES)


def describe_unsafe(folder: Path) -> str | None:
    """What is wrong with a project's kinds of links, in words; None where nothing is."""
    unsafe = unsafe_types(folder)
    return f"its cache.type has {' and '.join(unsafe)}: an edit of data/raw would alter DVC's cache" if unsafe else None


def set_safe_types(folder: Path) -> None:
    """Let DVC make no links but reflinks in a project, whatever its configuration said.

    In the local one too, which git does not track: a checkout of an earlier commit brings the other back as it was.
    """
    from dvc.config import Config

    for level in ("repo", "local"):
        with Config(str(folder / ".dvc")).edit(level) as values:
            values.setdefault("cache", {})["type"] = ",".join(SAFE_TYPES)


def cache_of(folder: Path) -> Path:
    """The cache of the project in a folder, as DVC's configuration gives it."""
    from dvc.config import Config

    return Path(Config(str(folder / ".dvc"))["cache"].get("dir") or folder / ".dvc" / "cache")


def make_own(pictures: Path, cache: Path) -> list[Path]:
    """Give each file below `pictures` that is a link into DVC's cache an inode of its own, and its owner the right to
    write all of them; returns the files that were changed. Their bytes stay.
    """
    objects = {inode(path) for path in all_objects(cache)}
    changed = []
    for path in _files(pictures):
        facts = path.stat()
        linked = (facts.st_dev, facts.st_ino) in objects
        if linked:
            _copy_over(path)
        if linked or not facts.st_mode & stat.S_IWUSR:
            path.chmod(stat.S_IMODE(facts.st_mode) | stat.S_IRUSR | stat.S_IWUSR)
            changed.append(path)
    return changed


def find_misnamed(cache: Path) -> list[Misnamed]:
    """Objects of a DVC cache, of whatever project, whose bytes are others than their names say. Reads every byte."""
    paths = [path for path in sorted(all_objects(cache)) if _name_of(path)]
    found = [
        (path, md5)
        for path in track(paths, what="DVC's cache", total=len(paths), unit="files")
        if (md5 := digest_md5(path) + ("" if path.suffix != ".dir" else ".dir")) != _name_of(path)
    ]
    names = _file_names(cache) if found else {}
    return [Misnamed(path=path, md5=md5, files=names.get(_name_of(path), ())) for path, md5 in found]


def rename_misnamed(cache: Path, misnamed: Iterable[Misnamed]) -> Iterator[str]:
    """Move each to the name that its bytes have, so that DVC no longer takes it for others; yields what became of it.

    DVC then says that the bytes are missing, where it gave wrong ones before.
    """
    for one in misnamed:
        target = object_path(cache, one.md5)
        try:
            if target.exists() and digest_md5(target) != one.md5.removesuffix(".dir"):
                yield f"{one.line()}; left, since {target} is another: run this again"
                continue
            target.parent.mkdir(exist_ok=True)
            if target.exists():  # the later version was committed too: often as a link to this very file
                one.path.unlink()
            else:
                os.replace(one.path, target)
        except OSError as error:
            yield f"{one.line()}; left ({error.strerror}): remove it, or DVC takes it for what it is not"
            continue
        yield (
            f"{one.line()}: an edit went into DVC's cache. Moved to {target}; the bytes of before are lost, unless a "
            "remote has them (`dvc fetch --all-commits`)"
        )


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder; links to nothing are left to `eridiff why`, which names them."""
    yield from (path for path in sorted(folder.rglob("*")) if path.is_file())


def _copy_over(path: Path) -> None:
    """Put a copy in place of a file, in one step."""
    temporary = temporary_path(path)
    try:
        shutil.copy2(path, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _name_of(path: Path) -> str:
    """The digest that an object is called by; empty where the file is no object."""
    found = OBJECT_NAME.fullmatch(f"{path.parent.name}/{path.name}")
    return f"{found[1]}{found[2]}{found[3] or ''}" if found else ""


def _file_names(cache: Path) -> Mapping[str, tuple[str, ...]]:
    """Digest -> the names that DVC's folder objects give it."""
    found: dict[str, set[str]] = {}
    for path in all_objects(cache):
        if path.suffix == ".dir":
            with suppress(ValueError, KeyError, TypeError):  # a damaged one
                for item in load_json(path, MAX_LISTING_BYTES):
                    found.setdefault(item["md5"], set()).add(item["relpath"])
    return {digest: tuple(sorted(names)) for digest, names in found.items()}
