"""A committed shard is damaged, verified, repaired and made again, to the same bytes."""

import shutil
from pathlib import Path

import pytest

from eridiff.formats.safetensors import TensorFile
from tests.e2e.toy import LENGTH, Toy, make_toy
from tests.store.test_verify import alter

pytestmark = pytest.mark.e2e


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    made = make_toy(tmp_path / "project", tmp_path / "store")
    made.run("dvc", "remote", "add", "-q", "-d", "there", str(tmp_path / "remote"))
    assert made.repro() == 5
    made.eridiff("dedupe")  # as a training does
    return made


def damage_one_entry(path: Path) -> str:
    """Flip a bit in the data of one entry; returns its key."""
    file = TensorFile(path)
    name = file.names[2]
    alter(path, len(file.first_bytes) + int(file.header[name]["data_offsets"][0]) + LENGTH // 2, 0x02)
    return name.split(".")[0]


def test_a_flipped_bit_in_the_inode_that_all_three_share(toy: Toy) -> None:
    before, lock = toy.out.read_bytes(), toy.lock()
    key = damage_one_entry(toy.shard)
    assert "up to date" in toy.run("dvc", "status")  # DVC trusts a read-only object
    said = toy.eridiff("verify", code=1)
    for path in (toy.shard, toy.out.relative_to(toy.folder), toy.object):
        assert f"{path}: entry {key[:12]}: does not match its checksum" in said
    assert "3 faults: `eridiff store repair` removes what is damaged" in said
    shard, object_ = toy.shard, toy.object
    said = toy.eridiff("repair")
    assert not shard.exists() and not object_.exists() and not toy.out.exists()
    assert "4 sound entries of damaged shards kept" in said
    assert "now run `dvc repro latents`" in said
    assert toy.repro() == 1
    assert toy.lock() == lock
    assert toy.out.read_bytes() == before
    toy.eridiff("dedupe")
    assert toy.shard == shard and shard.samefile(toy.out) and shard.samefile(object_)
    said = toy.eridiff("verify")
    assert "data/latents: the same bytes as before the repair" in said
    assert "no fault" in said
    assert toy.eridiff("verify").strip() == "no fault"


@pytest.mark.parametrize("place", [2, 200])
def test_a_damaged_header(toy: Toy, place: int) -> None:
    """Nothing in the shard can be found again: all of it is encoded, to the same bytes."""
    before, lock = toy.out.read_bytes(), toy.lock()
    alter(toy.shard, place, 0x80)
    assert "is damaged" in toy.eridiff("verify", code=1)
    toy.eridiff("repair")
    assert toy.repro() == 5
    assert (toy.out.read_bytes(), toy.lock()) == (before, lock)
    assert "the same bytes as before" in toy.eridiff("verify")


def test_a_damaged_listing_encodes_nothing(toy: Toy) -> None:
    lock = toy.lock()
    (listing,) = (toy.folder / ".dvc/cache/files/md5").glob("??/*.dir")
    listing.chmod(0o644)
    listing.write_text("[]")
    assert f"{listing}: its md5 is" in toy.eridiff("verify", code=1)
    toy.eridiff("repair")
    assert toy.repro() == 0
    assert toy.lock() == lock


def test_damage_after_a_push_is_pulled_again(toy: Toy) -> None:
    toy.run("dvc", "push", "-q")
    before = toy.out.read_bytes()
    damage_one_entry(toy.shard)
    assert "`dvc pull` brings the same bytes" in toy.eridiff("repair")
    toy.run("dvc", "pull", "-q")
    assert toy.out.read_bytes() == before
    assert toy.repro() is None
    assert "the same bytes as before" in toy.eridiff("verify")


def test_damage_that_was_pushed_is_found_by_who_pulls_it(toy: Toy, tmp_path: Path) -> None:
    """The remote's file is damaged: the clone finds it, encodes what is damaged, and has the bytes of dvc.lock."""
    toy.run("dvc", "push", "-q")
    before, lock = toy.out.read_bytes(), toy.lock()
    toy.run("git", "add", "-A")
    toy.run("git", "commit", "-qm", "ran")
    far = tmp_path / "remote/files/md5" / Path(*toy.object.parts[-2:])
    far.chmod(0o644)
    key = damage_one_entry(far)
    toy.run("git", "clone", "-q", str(toy.folder), str(tmp_path / "clone"))
    clone = Toy(tmp_path / "clone", tmp_path / "clone-store")
    clone.run("dvc", "pull", "-q")
    assert clone.repro() is None
    clone.numbers(*range(6))
    said = clone.run("dvc", "repro", code=255)  # the import reads what it takes
    assert f"entry {key[:12]} does not match its checksum. Run `eridiff store repair`" in said
    assert "4 sound entries of damaged shards kept" in clone.eridiff("repair")
    assert clone.repro() == 2  # the damaged one and the new one
    clone.numbers(*range(5))
    assert clone.repro() == 0
    assert (clone.out.read_bytes(), clone.lock()) == (before, lock)
    assert "no fault" in clone.eridiff("verify")


def test_an_empty_store_and_a_vanished_cache(toy: Toy) -> None:
    """The store goes between two runs: DVC's object is imported. Both go: everything is encoded, to the same bytes."""
    lock = toy.lock()
    shutil.rmtree(toy.store)
    toy.numbers(*range(6))
    assert toy.repro() == 1
    toy.numbers(*range(5))
    shutil.rmtree(toy.store)
    shutil.rmtree(toy.folder / ".dvc/cache")
    assert toy.repro() == 5
    assert toy.lock() == lock


def test_two_projects_share_one_store(toy: Toy, tmp_path: Path) -> None:
    other = make_toy(tmp_path / "other", toy.store)
    other.numbers(3, 4, 5, 6)
    assert other.repro() == 2
    said = other.eridiff("ls")
    assert "latents  7 entries in 2 shards and 0 single files" in said
    for project in (toy, other):
        assert f"needed by {project.folder}: 1 shard of latents" in said
    assert "nothing to remove" in toy.eridiff("gc", "--days", "0", "--yes")
    shutil.rmtree(other.folder)
    said = toy.eridiff("gc", "--days", "0", "--yes")
    assert f"of {other.folder}: " in said
    assert "latents  5 entries in 1 shard and 0 single files" in toy.eridiff("ls")


def test_an_experiment_pins_its_own_and_vanishes(toy: Toy) -> None:
    toy.run("git", "add", "-A")
    toy.run("git", "commit", "-qm", "ran")
    toy.numbers(*range(7))
    toy.run("dvc", "exp", "run", "--temp")
    pins = list(toy.store.glob("roots/*"))
    assert len(pins) == 2
    assert "not to be seen from here" in toy.eridiff("ls")
    assert "nothing to remove" in toy.eridiff("gc")
    toy.eridiff("gc", "--days", "0", "--yes")
    assert len(list(toy.store.glob("roots/*"))) == 1
