"""`eridiff store ls | du | dedupe | gc | verify | repair`: the care of the store."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from eridiff.core.files import link_kind
from eridiff.core.progress import say
from eridiff.dvc.outs import OwnOut, all_objects, cache_folder, read_originals, read_outs
from eridiff.machine.local import store_root
from eridiff.store.dedupe import dedupe_cache, dedupe_outs
from eridiff.store.faults import Fault
from eridiff.store.gc import LEASE_DAYS, Garbage, Plan, plan_gc, remove
from eridiff.store.pins import read_pins
from eridiff.store.repair import compare, repair
from eridiff.store.usage import disk_of, kind_sizes, project_size
from eridiff.store.verify import verify

store_app = typer.Typer(no_args_is_help=True, help="The store: what it holds, its size, its health.")
Days = Annotated[
    float,
    typer.Option(min=0, max=36500, help="Lease: what is younger stays. Less than a day only if nothing runs."),
]


@store_app.command("ls")
def ls() -> None:
    """Say what the store holds, and which projects need what of it."""
    root = _existing_store()
    for size in kind_sizes(root):
        say(
            f"{size.kind:8} {_count(size.entries, 'entry', 'entries')} in {_count(size.shards, 'shard')} and "
            f"{_count(size.loose, 'single file')}, {_bytes(size.bytes)}"
        )
    states = [path for path in (root / "runs").glob("*") if path.is_dir()]
    say(f"{'runs':8} {_count(len(states), 'state')}, {_bytes(disk_of(root / 'runs'))}")
    for pin in sorted(read_pins(root), key=lambda pin: (str(pin.project), pin.kind)):
        gone = "" if pin.is_present else f" (not to be seen from here; last run on {pin.host})"
        noun = "state" if pin.kind == "runs" else "shard"
        say(f"needed by {pin.project}: {_count(len(pin.names), noun)} of {pin.kind}{gone}")


@store_app.command("du")
def du() -> None:
    """Say what this project's caches take on disk, and the whole store."""
    root, outs = _existing_store(), read_outs()
    if outs:
        size = project_size(root, outs)
        say(f"payload of this project   {_bytes(size.payload):>10}")
        say(f"in the store              {_bytes(size.store):>10}")
        say(f"in DVC's cache, more      {_bytes(size.cache):>10}")
        say(f"in the project, more      {_bytes(size.folder):>10}")
        say(f"on disk in all            {_bytes(size.disk):>10}   {size.factor:.2f} x the payload")
        one = (
            "makes them one file"
            if link_kind(Path.cwd()) == "hardlink"
            else "cannot: this file system has no hardlinks"
        )
        if size.store and size.cache > size.payload / 2:
            say(f"The store and DVC's cache have a copy each: `eridiff store dedupe` {one}.")
        if size.folder > size.payload / 2:
            say(f"The project's files are copies of DVC's: `eridiff store dedupe` {one}.")
    say(f"the whole store           {_bytes(disk_of(root)):>10}   {root}")


@store_app.command("dedupe")
def dedupe() -> None:
    """Make one file of a shard's copies in the store, in DVC's cache and in this project, where their bytes are equal.

    Training does so with the shards that it reads. This also takes the objects of earlier states and other projects.
    """
    root = _existing_store()
    outs = dedupe_outs(root, read_outs())
    rest = dedupe_cache(root, all_objects(cache_folder()))
    say(f"{_count(outs.links + rest.links, 'file')} made links, freed {_bytes(outs.freed + rest.freed)}")
    for name, why in (outs.refused | rest.refused).items():
        say(f"{name} keeps its own copy: {why}")


@store_app.command("gc")
def gc(
    days: Days = LEASE_DAYS,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
    forget: Annotated[list[Path] | None, typer.Option(help="Folder of a project whose pins no longer count.")] = None,
) -> None:
    """Show what no project needs and is older than the lease, and remove it once you agree."""
    root = _existing_store()
    for project in forget or []:
        forgotten = [pin for pin in read_pins(root) if pin.project in (project, project.resolve())]
        for pin in forgotten:
            pin.path.unlink(missing_ok=True)
        say(f"{project}: {_count(len(forgotten), 'pin')} forgotten")
    plan = plan_gc(root, days)
    _show(plan)
    if plan.garbage and (yes or typer.confirm("Remove it?")):
        removed = remove(root, plan, days)
        say(f"removed {_count(len(removed), 'file')}, {_bytes(_frees(removed))} freed")


@store_app.command("verify")
def verify_store() -> None:
    """Read every byte of the store and of this project's caches, and name each fault; exit code 1 if there is one."""
    root, outs = _existing_store(), read_outs()
    faults = verify(root, outs, read_originals())
    for fault in faults:
        say(fault.line())
    _say_compared(outs)
    if faults:
        say(f"{_count(len(faults), 'fault')}: `eridiff store repair` removes what is damaged")
        raise typer.Exit(1)
    say("no fault")


@store_app.command("repair")
def repair_store() -> None:
    """Remove what is damaged, in the store and in this project and its DVC cache; keep every sound entry."""
    root, outs = _existing_store(), read_outs()
    faults: list[Fault] = verify(root, outs, read_originals())
    for fault in faults:
        say(fault.line())
    done = repair(root, faults, outs, cache_folder() if Path("dvc.yaml").exists() else None)
    for path in done.removed:
        say(f"removed {path}")
    if done.kept:
        say(f"{_count(done.kept, 'sound entry', 'sound entries')} of damaged shards kept")
    for fault in done.left:
        say(f"left: {fault.line()}")
    if done.stages:
        say(f"now run `dvc repro {' '.join(done.stages)}`, then `eridiff store verify`: it compares with before")
        say(
            "If a remote has these files: `dvc pull` brings the same bytes without encoding, unless they were pushed "
            "damaged. A damaged file of a remote must be removed there: `dvc push` does not replace it."
        )
    elif faults:
        say("nothing to run: what is needed again is encoded by the next `dvc repro`")
    else:
        _say_compared(outs)
        say("no fault")


def _say_compared(outs: list[OwnOut]) -> None:
    for out, same in compare(outs):
        changed = "other bytes than before the repair, as from another device: what depends on it runs again"
        say(f"{out}: {'the same bytes as before the repair' if same else changed}")


def _show(plan: Plan) -> None:
    by_project: Counter[str] = Counter()
    for item in plan.garbage:
        by_project.update(dict.fromkeys(item.projects or ("(no project)",), item.frees))
    for what in ("shard", "entry", "state", "temporary", "pin"):
        items = [item for item in plan.garbage if item.what == what]
        if items:
            size = sum(item.size for item in items)
            say(f"{what:10} {len(items):7}  {_bytes(size)}, {_bytes(_frees(items))} freed")
    for project, size in sorted(by_project.items()):
        say(f"  of {project}: {_bytes(size)} freed")
    if any(item.frees < item.size for item in plan.garbage if item.what == "shard"):
        say("  the rest stands in DVC's cache too: `dvc gc` in the project frees it (docs/store.md: name the others)")
    say(f"{_count(len({pin.project for pin in plan.pins}), 'project')} keep what they need")
    if not plan.garbage:
        say("nothing to remove")


def _frees(items: "list[Garbage] | tuple[Garbage, ...]") -> int:
    return sum(item.frees for item in items)


def _existing_store() -> Path:
    root = store_root()
    if not (root / "FORMAT").exists() and not Path("dvc.lock").exists():  # a new clone has none yet
        raise typer.BadParameter(f"there is no store at {root}; ERIDIFF_STORE or `store:` in local.yaml names another.")
    return root


def _count(number: int, noun: str, plural: str | None = None) -> str:
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def _bytes(size: float) -> str:
    """A size in bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
