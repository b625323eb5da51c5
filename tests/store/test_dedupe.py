"""Copies of a shard that DVC made become one file again, only where their bytes are equal."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from eridiff.dvc.outs import OwnFile, OwnOut, all_objects, digest_md5, object_path
from eridiff.store import dedupe
from eridiff.store.dedupe import Deduped, dedupe_cache, dedupe_outs
from tests.support.entries import ENTRIES, KEYS, filled

BLOCKS = dedupe.BLOCK_BYTES


class Placed:
    """A project whose one shard lies three times: in the store, in DVC's cache, in the folder."""

    def __init__(self, folder: Path) -> None:
        from dvc.repo import Repo

        Repo.init(no_scm=True).close()
        self.root, self.cache = folder / "store", folder / ".dvc" / "cache"
        filled(self.root, ENTRIES[:6]).publish(KEYS[:6], Path("data/latents"))
        (self.shard,) = self.root.glob("latents/shards/*")
        out, md5 = Path("data/latents/shard-all.safetensors"), digest_md5(self.shard)
        self.file = OwnFile(path=out, md5=md5, object=object_path(self.cache, md5))
        self.names = (self.shard, self.file.object, self.file.path)
        self.bytes = self.shard.read_bytes()
        self.file.object.parent.mkdir(parents=True)
        for copy in self.names[1:]:
            copy.unlink(missing_ok=True)
            copy.write_bytes(self.bytes)
        self.folder = OwnOut(
            stage="latents", folder=out.parent, md5="0.dir", listing=self.cache / "none", files=(self.file,)
        )

    def run(self) -> Deduped:
        return dedupe_outs(self.root, [self.folder])

    def inodes(self) -> list[int]:
        """Which of the three names are one file: equal numbers."""
        found = [path.stat().st_ino for path in self.names]
        return [found.index(inode) for inode in found]


@pytest.fixture
def placed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Placed:
    monkeypatch.chdir(tmp_path)
    return Placed(tmp_path)


def known_to_dvc(path: Path) -> str | None:
    """What DVC takes a file's md5 for without reading it."""
    from dvc.repo import Repo

    with Repo() as repo:
        found = repo.state.get(str(path.absolute()), repo.fs)[1]
        return found.value if found else None


def refuse(*arguments: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def never(path: Path) -> str:
    raise AssertionError(f"{path} was read")


def test_three_copies_become_one_file_that_dvc_knows(placed: Placed, monkeypatch: pytest.MonkeyPatch) -> None:
    assert placed.inodes() == [0, 1, 2]
    assert known_to_dvc(placed.file.path) is None
    size = placed.shard.stat().st_blocks * BLOCKS
    assert placed.run() == Deduped(links=2, freed=2 * size)
    assert placed.inodes() == [0, 0, 0]
    assert placed.shard.stat().st_mode & 0o777 == 0o444  # as DVC's own objects: else it would read them again
    assert placed.shard.read_bytes() == placed.bytes
    assert known_to_dvc(placed.file.path) == placed.file.md5
    assert not list(Path().rglob(".*.tmp"))
    monkeypatch.setattr(dedupe, "digest_md5", never)
    assert placed.run() == Deduped()
    # After a run of the stage DVC copies the object into the folder again, and knows it.
    placed.file.path.unlink()
    placed.file.path.write_bytes(placed.bytes)
    remember(placed.file)
    assert placed.run() == Deduped(links=1, freed=size)
    assert placed.inodes() == [0, 0, 0]


def remember(file: OwnFile) -> None:
    """Let DVC know a file, as after its own checkout."""
    from dvc.repo import Repo
    from dvc_data.hashfile.hash_info import HashInfo

    with Repo() as repo:
        repo.state.save(str(file.path.absolute()), repo.fs, HashInfo("md5", file.md5))


def damage(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize(
    ("what", "after", "sound"),
    [
        (lambda it: damage(it.shard), [0, 1, 1], (False, True, True)),  # the store's keeps its own, for `verify`
        (lambda it: damage(it.file.object), [0, 0, 0], (True, True, True)),  # a sound one is put in its place
        (lambda it: damage(it.file.path), [0, 0, 2], (True, True, False)),  # an edit of somebody: left
        (lambda it: it.file.path.unlink(), None, ()),
        (lambda it: it.shard.unlink(), None, ()),
        (lambda it: it.file.object.unlink(), None, ()),
    ],
)
def test_only_equal_bytes_become_one(
    placed: Placed, what: Callable[[Placed], None], after: list[int] | None, sound: tuple[bool, ...]
) -> None:
    what(placed)
    placed.run()
    there = [path for path in placed.names if path.exists()]
    if after is None:
        assert len(there) == 2  # what is gone stays gone
        assert {path.read_bytes() for path in there} == {placed.bytes}
        return
    assert placed.inodes() == after
    assert tuple(path.read_bytes() == placed.bytes for path in placed.names) == sound


def test_outs_of_other_stages_are_left_alone(placed: Placed) -> None:
    """A tool may write into an exported file."""
    assert dedupe_outs(placed.root, [replace(placed.folder, stage="export")]) == Deduped()
    assert placed.inodes() == [0, 1, 2]


def test_a_file_that_a_stage_writes_meanwhile_is_left(placed: Placed, monkeypatch: pytest.MonkeyPatch) -> None:
    """`eridiff why` beside a run: the out is written anew, or is gone, while its old bytes are compared."""

    def write_meanwhile(path: Path) -> str:
        md5 = digest_md5(path)
        if path == placed.file.path:
            path.unlink()
            path.write_bytes(b"new")
        return md5

    monkeypatch.setattr(dedupe, "digest_md5", write_meanwhile)
    assert placed.run().links == 1  # of the store and DVC's cache
    assert placed.file.path.read_bytes() == b"new"

    def lose_meanwhile(path: Path) -> str:
        path.unlink()
        raise FileNotFoundError(path)

    monkeypatch.setattr(dedupe, "digest_md5", lose_meanwhile)
    placed.run()
    assert not placed.file.path.exists() and placed.shard.samefile(placed.file.object)


def test_a_sound_file_is_no_link_to_a_damaged_object(placed: Placed) -> None:
    """Where the store has lost the shard, and DVC's object is damaged."""
    placed.shard.unlink()
    damage(placed.file.object)
    assert placed.run() == Deduped()
    assert placed.file.path.read_bytes() == placed.bytes


def test_without_hardlinks_each_keeps_its_copy(placed: Placed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(dedupe, "digest_md5", never)  # it would read all for nothing, at each training
    why = "this file system has no hardlinks"
    assert placed.run().refused == {str(path): why for path in placed.names[1:]}
    assert placed.inodes() == [0, 1, 2]
    assert {path.read_bytes() for path in placed.names} == {placed.bytes}
    assert not list(Path().rglob(".*.tmp"))


def test_a_store_that_may_only_be_read_keeps_its_file(placed: Placed, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so for one who is not root, which the tests may be: the right to write there is refused by hand."""

    def touch(path: Path) -> None:
        if path.is_relative_to(placed.root):
            raise PermissionError(13, "Permission denied")
        path.open("x").close()

    monkeypatch.setattr(Path, "touch", touch)
    assert placed.run().refused == {str(placed.file.object): "Permission denied"}
    assert placed.inodes() == [0, 1, 1]


def test_objects_of_earlier_states_and_other_projects(placed: Placed, monkeypatch: pytest.MonkeyPatch) -> None:
    """dvc.lock names them no more. An object that only has the same size is another, and stays."""
    other = object_path(placed.cache, "ab" + "0" * 30)
    other.parent.mkdir(parents=True)
    other.write_bytes(placed.bytes[:-1] + b"?")
    size = placed.shard.stat().st_blocks * BLOCKS
    assert dedupe_cache(placed.root, all_objects(placed.cache)) == Deduped(links=1, freed=size)
    assert placed.inodes() == [0, 0, 2]
    assert other.read_bytes() == placed.bytes[:-1] + b"?"
    other.unlink()
    monkeypatch.setattr(dedupe, "digest_md5", never)
    assert dedupe_cache(placed.root, all_objects(placed.cache)) == Deduped()
