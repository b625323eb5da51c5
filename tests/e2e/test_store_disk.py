"""What store, DVC's cache and the project take together, after a real `dvc repro`: by inode and by `du`."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.toy import LENGTH, Toy, make_toy

pytestmark = pytest.mark.e2e


def on_disk(*folders: Path) -> int:
    """Bytes as `du` counts them, each inode once."""
    done = subprocess.run(["du", "-scB1", *map(str, folders)], check=True, capture_output=True, text=True, timeout=300)
    return int(done.stdout.splitlines()[-1].split()[0])


def factor(toy: Toy) -> float:
    found = re.search(r"([\d.]+) x the payload", toy.eridiff("du"))
    assert found
    return float(found[1])


def test_store_cache_and_project_are_one_inode(tmp_path: Path) -> None:
    """DVC copies what a stage put out, into its cache and back; `dedupe`, or the training, makes one file of it."""
    toy = make_toy(tmp_path / "project", tmp_path / "store")
    toy.numbers(*range(60))
    assert toy.repro() == 60
    folders = (toy.store / "latents", toy.folder / ".dvc/cache/files", toy.folder / "data")
    assert 3.0 <= on_disk(*folders) / (60 * LENGTH) <= 3.1 and 3.0 <= factor(toy) <= 3.1
    assert toy.eridiff("dedupe").startswith("2 files made links, freed 22.9 MiB")
    facts = [path.stat() for path in (toy.shard, toy.object, toy.out)]
    assert len({(fact.st_dev, fact.st_ino) for fact in facts}) == 1
    assert {(fact.st_nlink, fact.st_mode & 0o777) for fact in facts} == {(3, 0o444)}
    assert 1.0 <= on_disk(*folders) / (60 * LENGTH) <= 1.1
    assert 1.0 <= factor(toy) <= 1.1
    assert "no fault" in toy.eridiff("verify")
    assert toy.repro() is None
    assert toy.eridiff("dedupe") == "0 files made links, freed 0 B\n"
    toy.run("dvc", "checkout")
    assert toy.out.samefile(toy.shard)
    toy.run("dvc", "checkout", "--relink")
    assert not toy.out.samefile(toy.object) and toy.object.samefile(toy.shard)


def test_older_states_go_with_dvc_gc_and_gc(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "project", tmp_path / "store")
    toy.numbers(*range(60))
    toy.repro()
    first = toy.shard
    toy.eridiff("dedupe")
    toy.numbers(*range(61))
    assert toy.repro() == 1
    toy.eridiff("dedupe")
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


def test_copies_of_earlier_states_and_of_other_projects_are_one_file(tmp_path: Path) -> None:
    one, two = (make_toy(tmp_path / name, tmp_path / "store") for name in ("one", "two"))
    one.repro()
    first = one.shard
    said = one.eridiff("du")
    assert "The store and DVC's cache have a copy each: `eridiff store dedupe` makes them one file." in said
    assert "The project's files are copies of DVC's: `eridiff store dedupe` makes them one file." in said
    two.repro()
    assert two.eridiff("dedupe").startswith("2 files made links")
    assert two.object.samefile(first) and two.out.samefile(first)
    old = one.object
    one.numbers(*range(6))
    one.repro()
    assert one.eridiff("dedupe").startswith("3 files made links")
    assert old.samefile(first) and old.stat().st_nlink == 4
    assert one.out.samefile(one.object) and factor(one) <= 1.1
    assert "no fault" in one.eridiff("verify") and "no fault" in two.eridiff("verify")


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
    said = toy.eridiff("dedupe")
    assert said.startswith("1 file made links")
    assert f"{toy.object} keeps its own copy: {toy.store} is another file system" in said
    assert toy.out.samefile(toy.object)
    folders = (toy.folder / ".dvc/cache/files", toy.folder / "data")
    assert 2.0 <= (on_disk(elsewhere) + on_disk(*folders)) / (60 * LENGTH) <= 2.1
    assert 2.0 <= factor(toy) <= 2.1
    toy.numbers(*range(61))
    assert toy.repro() == 1


NO_HARDLINKS = """
import errno, os
def refuse(*arguments, **options):
    raise PermissionError(errno.EPERM, "Operation not permitted")
os.link = refuse
"""
NO_LOCKS = """
import errno, fcntl, sys
def refuse(*arguments, **options):
    raise OSError(errno.ENOLCK, "No locks available")
if not any(name.endswith("/dvc") for name in sys.orig_argv):  # DVC locks its own folder, which lies elsewhere
    fcntl.flock = fcntl.lockf = refuse
"""


def make_shim(folder: Path, code: str) -> Path:
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    return folder


def test_without_hardlinks_there_are_three_copies(tmp_path: Path) -> None:
    """Also where there are symbolic links: a picture that is one would be altered in DVC's cache by an edit."""
    toy = make_toy(tmp_path / "project", tmp_path / "store", shim=make_shim(tmp_path / "shim", NO_HARDLINKS))
    toy.numbers(*range(60))
    assert toy.repro() == 60
    assert 3.0 <= factor(toy) <= 3.1
    assert "have a copy each: `eridiff store dedupe` cannot: this file system has no hardlinks" in toy.eridiff("du")
    said = toy.eridiff("dedupe")
    assert (
        said.startswith("0 files made links, freed 0 B")
        and "keeps its own copy: this file system has no hardlinks" in said
    )
    toy.numbers(*range(61))
    assert toy.repro() == 1
    assert "no fault" in toy.eridiff("verify")


@pytest.fixture
def no_links(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system without links of any kind, without rights: vfat, or exFAT by FUSE."""
    if shutil.which("losetup") is None:
        pytest.skip("losetup is not installed")
    image, place, why = tmp_path / "image", tmp_path / "mounted", []
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(128 << 20)
    done = subprocess.run(
        ["losetup", "-f", "--show", str(image)], capture_output=True, text=True, check=False, timeout=300
    )
    if done.returncode:
        pytest.skip(f"losetup: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        for make, mount in ((["mkfs.vfat"], ["mount", "-t", "vfat"]), (["mkfs.exfat"], ["mount.exfat-fuse"])):
            try:
                for command in ([*make, device], [*mount, device, str(place)]):
                    subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
            except (FileNotFoundError, subprocess.CalledProcessError) as error:
                why.append(f"{error} {getattr(error, 'stderr', '')}".strip())
                continue
            try:
                yield place
            finally:
                subprocess.run(["umount", str(place)], check=True, timeout=300)
            return
    finally:
        subprocess.run(["losetup", "-d", device], check=True, timeout=300)
    pytest.skip("; ".join(why))


def test_a_store_without_links_and_locks(tmp_path: Path, no_links: Path) -> None:
    """As on a NAS over SMB: the store on a mount without hardlinks, and locks fail wherever the stage would ask."""
    toy = make_toy(tmp_path / "project", no_links / "store", shim=make_shim(tmp_path / "shim", NO_LOCKS))
    toy.numbers(*range(60))
    assert toy.repro() == 60
    with pytest.raises(OSError):
        (no_links / "link").hardlink_to(toy.shard)
    toy.eridiff("dedupe")
    folders = (no_links / "store/latents", toy.folder / ".dvc/cache/files", toy.folder / "data")
    assert 2.0 <= on_disk(*folders) / (60 * LENGTH) <= 2.1
    assert 2.0 <= factor(toy) <= 2.1
    toy.numbers(*range(61))
    assert toy.repro() == 1
    assert "no fault" in toy.eridiff("verify")
    assert "1 shard" in toy.eridiff("ls")
    toy.eridiff("gc", "--days", "0", "--yes")
    assert len(list(no_links.glob("store/latents/shards/*.safetensors"))) == 1
    assert "no fault" in toy.eridiff("verify")


def test_all_of_it_without_links_is_three_copies(tmp_path: Path, no_links: Path) -> None:
    """The store's, DVC's and the project's: no file system without links can hold less, and `du` says so."""
    toy = make_toy(no_links / "project", no_links / "store")
    toy.numbers(*range(60))
    assert toy.repro() == 60
    assert 3.0 <= factor(toy) <= 3.1
    assert "this file system has no hardlinks" in toy.eridiff("du")
    toy.numbers(*range(61))
    assert toy.repro() == 1
    assert "no fault" in toy.eridiff("verify")


def test_no_lock_is_taken_and_no_link_needed_to_share_a_store(tmp_path: Path) -> None:
    """Everywhere, without a mount: two projects fill one store while locks and hardlinks fail in every stage."""
    shim = make_shim(tmp_path / "shim", NO_HARDLINKS + NO_LOCKS)
    one, two = (make_toy(tmp_path / name, tmp_path / "store", shim=shim) for name in ("one", "two"))
    assert one.repro() == 5
    two.numbers(*range(3, 8))
    assert two.repro() == 3
    one.numbers(*range(8))
    assert one.repro() == 0
    assert "no fault" in one.eridiff("verify")
