"""Pins and gc: what a project needs stays, what is younger than the lease stays, the rest is shown, then removed."""

import json
import os
import shutil
import socket
import time
from pathlib import Path

import pytest
from filelock import FileLock

from eridiff.core.errors import StoreError
from eridiff.formats.seals import sealed_json
from eridiff.store.gc import plan_gc, remove
from eridiff.store.pins import DAY_SECONDS, pin, read_pins
from eridiff.store.pixels import PixelDigests
from eridiff.store.store import Store
from tests.support.entries import ENTRIES, KEYS, contents, filled

LATER = 15 * DAY_SECONDS


def later() -> float:
    return time.time() + LATER


def make_project(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "dvc.yaml").write_text("")
    return folder


def published(root: Path, project: Path, first: int, last: int) -> str:
    """A project's stage: puts, publishes and pins; returns the shard's name."""
    store = filled(root, ENTRIES[first:last])
    store.publish(KEYS[first:last], project / "data/latents")
    pin(root, "latents", project, store.published)
    (name,) = store.published
    return name


def test_a_pin_says_who_needs_what(tmp_path: Path) -> None:
    project = make_project(tmp_path / "cats")
    first = published(tmp_path / "store", project, 0, 3)
    second = published(tmp_path / "store", project, 0, 4)
    (found,) = read_pins(tmp_path / "store")
    assert (found.host, found.project, found.kind) == (socket.gethostname(), project, "latents")
    assert (found.names, found.earlier) == ((second,), (first,))
    pin(tmp_path / "store", "texts", project, [])
    os.symlink(project, tmp_path / "link")
    pin(tmp_path / "store", "texts", tmp_path / "link", ["x"])  # the same project by another way
    assert [(pin.kind, pin.names) for pin in read_pins(tmp_path / "store")] == [
        ("latents", (second,)),
        ("texts", ("x",)),
    ]


def test_gc_takes_what_nobody_needs_and_is_old(tmp_path: Path) -> None:
    root = tmp_path / "store"
    cats, dogs = make_project(tmp_path / "cats"), make_project(tmp_path / "dogs")
    old = published(root, cats, 0, 3)
    new, other = published(root, cats, 0, 4), published(root, dogs, 10, 12)
    store = filled(root, ENTRIES[20:21])  # left by a fill that was killed
    (root / "latents/shards/.x.tmp").write_bytes(b"123")
    (root / "roots/.y.tmp").write_bytes(b"1")
    assert plan_gc(root).garbage == ()  # all younger than the lease
    plan = plan_gc(root, now=later())
    assert {(item.path.name, item.what, item.projects) for item in plan.garbage} == {
        (f"{old}.safetensors", "shard", (str(cats),)),
        (f"{KEYS[20]}.safetensors", "entry", ()),
        (".x.tmp", "temporary", ()),
        (".y.tmp", "temporary", ()),
    }
    sizes = {item.path.name: (item.size, item.frees) for item in plan.garbage}
    assert sizes[".x.tmp"] == (3, 3)
    assert sizes[f"{old}.safetensors"][0] == sizes[f"{old}.safetensors"][1] > 100
    assert len(plan.pins) == 2
    assert remove(root, plan) == []  # by the clock of now nothing is old
    assert {item.path for item in remove(root, plan, now=later())} == {item.path for item in plan.garbage}
    assert {path.stem for path in root.glob("latents/shards/*.safetensors")} == {new, other}
    store = Store(root, "latents")
    assert store.missing(KEYS) == sorted(KEYS[4:10] + KEYS[12:])
    assert next(pin for pin in read_pins(root) if pin.project == cats).earlier == ()
    assert plan_gc(root, now=later()).garbage == ()


def test_a_shard_in_dvcs_cache_frees_nothing(tmp_path: Path) -> None:
    root, project = tmp_path / "store", make_project(tmp_path / "cats")
    old = published(root, project, 0, 3)
    os.link(root / "latents/shards" / f"{old}.safetensors", tmp_path / "object")
    published(root, project, 0, 4)
    (item,) = plan_gc(root, now=later()).garbage
    assert item.size > 100
    assert item.frees == 0


def test_a_project_that_is_gone_keeps_its_pins_for_the_lease(tmp_path: Path) -> None:
    """As the workspaces of `dvc exp run --temp`."""
    root, project = tmp_path / "store", make_project(tmp_path / "exp")
    name = published(root, project, 0, 3)
    shutil.rmtree(project)
    assert plan_gc(root).garbage == ()
    assert {
        (item.what, item.path.stem.split(".")[0], item.projects) for item in plan_gc(root, now=later()).garbage
    } == {
        ("pin", read_pins(root)[0].path.stem.split(".")[0], (str(project),)),
        ("shard", name, (str(project),)),
    }


def test_pins_of_another_machine_hold(tmp_path: Path) -> None:
    root, project = tmp_path / "store", make_project(tmp_path / "exp")
    published(root, project, 0, 3)
    shutil.rmtree(project)
    (path,) = root.glob("roots/*.json")
    record = {**json.loads(path.read_text()), "host": "another"}
    path.write_text(sealed_json({key: value for key, value in record.items() if key != "seal"}))
    assert plan_gc(root, now=later()).garbage == ()


def test_a_damaged_pin_stops_gc(tmp_path: Path) -> None:
    root, project = tmp_path / "store", make_project(tmp_path / "cats")
    published(root, project, 0, 3)
    (path,) = root.glob("roots/*.json")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(StoreError, match=rf"{path.name} is damaged: .*Remove it, and run"):
        plan_gc(root)
    published(root, project, 0, 3)  # the project's next run mends it
    assert plan_gc(root, now=later()).garbage == ()


def test_states_of_trainings(tmp_path: Path) -> None:
    """Kept while pinned, while young, while a training holds the lock."""
    root, project = tmp_path / "store", make_project(tmp_path / "cats")
    Store(root, "latents")
    for name in ("pinned", "held", "old"):
        (root / "runs" / name / "checkpoints").mkdir(parents=True)
        (root / "runs" / name / "checkpoints" / "x.safetensors").write_bytes(b"12345")
    pin(root, "runs", project, ["pinned"])
    assert plan_gc(root).garbage == ()
    plan = plan_gc(root, now=later())
    assert {(item.path.name, item.what, item.size) for item in plan.garbage} == {
        ("held", "state", 5),
        ("old", "state", 5),
    }
    with FileLock(root / "runs/held/lock"):
        assert [item.path.name for item in remove(root, plan, now=later())] == ["old"]
    assert sorted(path.name for path in (root / "runs").iterdir()) == ["held", "pinned"]


def test_pixel_digests_are_joined_and_none_is_lost(tmp_path: Path) -> None:
    root = tmp_path / "store"
    Store(root, "latents")
    for number in range(5):
        PixelDigests(root).learn({f"file{number}": f"pixels{number}"})
    remove(root, plan_gc(root))
    assert len(list(root.glob("pixels/*"))) == 5
    remove(root, plan_gc(root, now=later()), now=later())
    assert len(list(root.glob("pixels/*"))) == 1
    assert PixelDigests(root).known == {f"file{number}": f"pixels{number}" for number in range(5)}


def test_a_shard_that_gc_took_from_under_a_fill_is_made_again(tmp_path: Path) -> None:
    """The shard was there when it was looked up, and is gone when it is linked."""
    from eridiff.caching.fill import fill

    root = tmp_path / "store"
    filled(root, ENTRIES[:3]).publish(KEYS[:3], tmp_path / "first")
    expected = contents(tmp_path / "first")
    store = Store(root, "latents")
    assert store.missing(KEYS[:3]) == []
    remove(root, plan_gc(root, now=later()), now=later())
    assert list(root.glob("latents/shards/*.safetensors")) == []

    def encode() -> int:
        lost = store.missing(KEYS[:3])
        for item in ENTRIES[:3]:
            store.put(*item)
        return len(lost)

    _, counts = fill(store, KEYS[:3], list, encode, tmp_path / "out", what="latents")
    assert counts.encoded == 3
    assert contents(tmp_path / "out") == expected


def test_a_store_that_cannot_be_written_is_not_pinned_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/roots").write_text("in the way")
    pin(tmp_path / "store", "latents", tmp_path, ["x"])
    assert "is not pinned in" in capsys.readouterr().err


def test_a_flipped_bit_of_a_pin_is_found(tmp_path: Path) -> None:
    project = make_project(tmp_path / "cats")
    published(tmp_path / "store", project, 0, 3)
    (path,) = (tmp_path / "store/roots").iterdir()
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(StoreError, match=f"{path.name} is damaged: it says which entries a project needs"):
            read_pins(tmp_path / "store")
    pin(tmp_path / "store", "latents", project, ["a"])  # the next run pins again
    assert [found.names for found in read_pins(tmp_path / "store")] == [("a",)]


def test_a_pin_of_before_holds_until_the_project_pins_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project, root = make_project(tmp_path / "cats"), tmp_path / "store"
    name = published(root, project, 0, 3)
    (path,) = (root / "roots").iterdir()
    before = path.with_name(path.name.replace(".sealed", ""))
    record = {key: value for key, value in json.loads(path.read_text()).items() if key != "seal"}
    before.write_text(json.dumps(record))
    path.unlink()
    assert [found.names for found in read_pins(root)] == [(name,)]
    assert f"{before} carries no checksum, as files of before" in capsys.readouterr().out
    pin(root, "latents", project, ["x"])
    assert [(found.names, found.earlier) for found in read_pins(root)] == [(("x",), (name,))]
    assert not before.exists()
