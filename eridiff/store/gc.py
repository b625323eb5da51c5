"""What of a store no project needs any more: found, shown, removed. Nothing younger than the lease is touched.

A shard or state stays while a pin names it. A loose entry stays while it is young: the stage that encoded it moves it
into a shard when it ends. A quantised base stays while it has been used within the lease. An entry that is removed and
wanted again is encoded again, or taken from DVC's cache.
"""

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from eridiff.core.files import MAX_LISTING_BYTES, read_text, write_text
from eridiff.store.pins import BASES, DAY_SECONDS, PINS, Pin, forget_earlier, read_pins
from eridiff.store.pixels import PixelDigests

KINDS = ("latents", "texts")
LEASE_DAYS = 14.0


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """One file or folder that nobody needs."""

    path: Path
    what: str  # shard, entry, state, base, temporary, pin
    size: int  # bytes
    frees: int  # bytes on disk: none where DVC's cache still has a link
    projects: tuple[str, ...]  # that had it before


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What gc would remove, and the pins by which it went."""

    garbage: tuple[Garbage, ...]
    pins: tuple[Pin, ...]  # that hold


def plan_gc(root: Path, days: float = LEASE_DAYS, now: float | None = None) -> Plan:
    """What no pin names and what is older than the lease of `days`."""
    now = time.time() if now is None else now
    pins = read_pins(root)
    holding = [pin for pin in pins if pin.holds(days, now)]
    owners = _owners(pins)
    expired = [pin for pin in pins if pin not in holding]
    found = [_garbage(pin.path, "pin", (str(pin.project),)) for pin in expired]
    limit = now - days * DAY_SECONDS
    for path, what in _unpinned(root, holding):
        if max(_touched(path), _used(path)) < limit:
            found.append(_garbage(path, what, owners.get(path.stem, ())))
    return Plan(garbage=tuple(found), pins=tuple(holding))


def _unpinned(root: Path, pins: Iterable[Pin]) -> Iterator[tuple[Path, str]]:
    """Files and folders of the store that no pin names, whatever their age."""
    needed = {(pin.kind, name) for pin in pins for name in pin.names}
    for kind in KINDS:
        for path in sorted((root / kind).glob("shards/*.safetensors")):
            if not path.name.startswith(".") and (kind, path.stem) not in needed:
                yield path, "shard"
        for path in sorted((root / kind).glob("entries/*/*.safetensors")):
            if not path.name.startswith("."):
                yield path, "entry"
    for path in sorted((root / "runs").glob("*")):
        if path.is_dir() and ("runs", path.name) not in needed:
            yield path, "state"
    for path in sorted((root / BASES).glob("*.safetensors")):
        yield path, "base"
    for place in (
        ".*.tmp",
        f"{PINS}/.*.tmp",
        "pixels/.*.tmp",
        f"{BASES}/.*.tmp",
        "kernels/.*.tmp",
        *(f"{k}/**/.*.tmp" for k in KINDS),
    ):
        yield from ((path, "temporary") for path in sorted(root.glob(place)))


def remove(root: Path, plan: Plan, days: float = LEASE_DAYS, now: float | None = None) -> list[Garbage]:
    """Remove what a plan names and what is garbage still; returns what was removed."""
    still = {item.path for item in plan_gc(root, days, now).garbage}
    removed = []
    for item in plan.garbage:
        if item.path in still and _remove_one(item):
            removed.append(item)
    forget_earlier(plan.pins, {item.path.stem for item in removed})
    join_pixels(root, days, now)
    return removed


def _remove_one(item: Garbage) -> bool:
    """Whether it could be removed: a state whose training runs, or where no lock can tell, stays."""
    if item.what != "state":
        item.path.unlink(missing_ok=True)
        if item.what == "base":
            item.path.with_suffix(".used").unlink(missing_ok=True)
        return True
    from filelock import FileLock, Timeout

    lock = FileLock(item.path / "lock")
    try:
        with lock.acquire(timeout=0):
            shutil.rmtree(item.path)
    except (Timeout, OSError):
        return False
    return True


def join_pixels(root: Path, days: float = LEASE_DAYS, now: float | None = None) -> int:
    """Join the small files of remembered pixel digests that are older than the lease; returns how many it joined."""
    limit = (time.time() if now is None else now) - days * DAY_SECONDS
    old = [path for path in sorted((root / "pixels").glob("*.tsv")) if _touched(path) < limit]
    if len(old) < 2:
        return 0
    lines = sorted({line for path in old for line in read_text(path, MAX_LISTING_BYTES).splitlines()})
    target = root / "pixels" / PixelDigests.file_name("".join(f"{line}\n" for line in lines))
    write_text(target, "".join(f"{line}\n" for line in lines))
    for path in old:
        if path != target:
            path.unlink(missing_ok=True)
    return len(old)


def _owners(pins: Iterable[Pin]) -> dict[str, tuple[str, ...]]:
    """Shard or state -> the projects that have it or had it."""
    found: dict[str, set[str]] = {}
    for pin in pins:
        for name in (*pin.names, *pin.earlier):
            found.setdefault(name, set()).add(str(pin.project))
    return {name: tuple(sorted(projects)) for name, projects in found.items()}


def _files(path: Path) -> Iterator[os.stat_result]:
    """Facts of a file, or of all files of a folder; of none where it is gone."""
    with suppress(FileNotFoundError):
        if path.is_dir():
            for inner in path.rglob("*"):
                if inner.is_file():
                    yield inner.stat()
        else:
            yield path.stat()


def _touched(path: Path) -> float:
    """When a file was written, or linked, last; of a folder the latest of its files. A file that is gone: never old."""
    times = [max(facts.st_mtime, facts.st_ctime) for facts in _files(path)]
    if path.is_dir():
        times.append(path.stat().st_mtime)
    return max(times, default=float("inf"))


def _used(path: Path) -> float:
    """When a quantised base was read last, as the file beside it says."""
    try:
        return path.with_suffix(".used").stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _garbage(path: Path, what: str, projects: tuple[str, ...]) -> Garbage:
    facts = list(_files(path))
    return Garbage(
        path=path,
        what=what,
        size=sum(fact.st_size for fact in facts),
        frees=sum(fact.st_size for fact in facts if fact.st_nlink == 1),
        projects=projects,
    )
