"""What store, DVC's cache and the project take together, after a real `dvc repro`: by inode and by `du`."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.toy import LENGTH, Toy, make_toy

pytestmark = pytest.mark.e2e


def on_disk(*folders: Path) -> int:
    """Bytes as `du` counts them, each inode once."""
    done = subprocess.run(["du", "-scB1", *map(str, folders)], check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1].split()[0])


def factor(toy: Toy) -> float:
    found = re.search(r"([\d.]+) x the payload", toy.eridiff("du"))
    assert found
    return float(found[1])


def test_store_cache_and_project_are_one_inode(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "project", tmp_path / "store")
    toy.numbers(*range(60))
    assert toy.repro() == 60
    facts = [path.stat() for path in (toy.shard, toy.object, toy.out)]
    assert len({(fact.st_dev, fact.st_ino) for fact in facts}) == 1
    assert {(fact.st_nlink, fact.st_mode & 0o777) for fact in facts} == {(3, 0o444)}
    folders = (toy.store / "latents", toy.folder / ".dvc/cache/files", toy.folder / "data")
    assert 1.0 <= on_disk(*folders) / (60 * LENGTH) <= 1.1
    assert 1.0 <= factor(toy) <= 1.1
    assert "no fault" in toy.eridiff("verify")
    assert toy.repro() is None


def test_older_states_go_with_dvc_gc_and_gc(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "project", tmp_path / "store")
    toy.numbers(*range(60))
    toy.repro()
    first = toy.shard
    toy.numbers(*range(61))
    assert toy.repro() == 1
    folders = (toy.store / "latents", toy.folder / ".dvc/cache/files", toy.folder / "data")
    assert on_disk(*folders) > 2 * 60 * LENGTH
    assert "nothing to remove" in toy.eridiff("gc")
    said = toy.eridiff("gc", "--days", "0", "--yes")
    assert f"of {toy.folder}: 0 B freed" in said
    assert "`dvc gc` in the project frees it" in said
    assert not first.exists()
    toy.run("dvc", "gc", "-w", "-f")
    assert on_disk(*folders) / (61 * LENGTH) <= 1.1
    assert f"needed by {toy.folder}: 1 shard of latents" in toy.eridiff("ls")


def test_copies_are_linked_again(tmp_path: Path) -> None:
    """As in a project that DVC's order of links was not set for, or after `dvc pull` beside a full store."""
    toy = make_toy(tmp_path / "project", tmp_path / "store", cache_type="copy")
    toy.repro()
    assert len({path.stat().st_ino for path in (toy.shard, toy.object, toy.out)}) == 3
    said = toy.eridiff("du")
    assert "`eridiff store link` makes them one file" in said
    assert "`dvc checkout --relink` makes them links" in said
    assert 3.0 <= factor(toy) <= 3.1
    before = toy.shard.read_bytes()
    assert toy.eridiff("link").startswith("freed 980.0 KiB")
    assert toy.shard.samefile(toy.object)
    assert toy.shard.read_bytes() == before
    assert toy.eridiff("link") == "freed 0 B\n"
    toy.run("dvc", "config", "cache.type", "hardlink,reflink,copy")
    toy.run("dvc", "checkout", "--relink")
    assert toy.out.samefile(toy.object)
    assert factor(toy) <= 1.1
    assert "no fault" in toy.eridiff("verify")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system."""
    place = Path("/dev/shm")
    if not place.is_dir() or place.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no file system of its own")
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder)


def test_a_store_on_another_file_system_is_a_second_copy(tmp_path: Path, elsewhere: Path) -> None:
    toy = make_toy(tmp_path / "project", elsewhere / "store")
    toy.numbers(*range(60))
    assert toy.repro() == 60
    assert toy.out.samefile(toy.object)
    folders = (toy.folder / ".dvc/cache/files", toy.folder / "data")
    assert 2.0 <= (on_disk(elsewhere) + on_disk(*folders)) / (60 * LENGTH) <= 2.1
    assert 2.0 <= factor(toy) <= 2.1
    assert "on two file systems" in toy.eridiff("link", code=1)
    toy.numbers(*range(61))
    assert toy.repro() == 1


def test_without_hardlinks_anywhere_the_project_may_link_symbolically(tmp_path: Path, elsewhere: Path) -> None:
    toy = make_toy(tmp_path / "project", elsewhere / "store", cache_type="symlink")
    toy.numbers(*range(60))
    assert toy.repro() == 60
    assert toy.out.is_symlink()
    assert 2.0 <= factor(toy) <= 2.1
    assert toy.repro() is None
    toy.numbers(*range(61))
    assert toy.repro() == 1
    assert "no fault" in toy.eridiff("verify")


def test_a_store_on_vfat(tmp_path: Path) -> None:
    """No hardlinks, no rights, no inodes that stay."""
    image, place = tmp_path / "image", tmp_path / "vfat"
    place.mkdir()
    image.write_bytes(b"")
    with image.open("r+b") as file:
        file.truncate(16 << 20)
    for command in (["mkfs.vfat", str(image)], ["mount", "-o", "loop", str(image), str(place)]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip(f"{command[0]} is not installed")
        if done.returncode:
            pytest.skip(f"{command[0]}: {done.stderr.strip()}")
    try:
        toy = make_toy(tmp_path / "project", place / "store")
        assert toy.repro() == 5
        toy.numbers(*range(6))
        assert toy.repro() == 1
        assert "no fault" in toy.eridiff("verify")
    finally:
        subprocess.run(["umount", str(place)], check=True)
