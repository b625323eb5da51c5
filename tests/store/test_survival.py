"""The store survives: SIGKILL at any point, a full disk, a read-only one, thousands of files, a store that vanishes.

And whatever its history: the out is a function of its keys, byte for byte.
"""

import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from eridiff.caching.fill import fill
from eridiff.core.errors import StoreError
from eridiff.dvc.outs import OwnFile, OwnOut
from eridiff.store import sharding as module
from eridiff.store.gc import plan_gc, remove
from eridiff.store.repair import repair
from eridiff.store.store import Store
from eridiff.store.usage import project_size
from eridiff.store.verify import verify
from tests.support import processes
from tests.support.entries import ENTRIES, KEYS, contents, entry, filled

# A driver forks one process a round. Each fills a store and is killed at one of its calls to the file system, or after
# some time; the next goes on. SIGKILL runs no handler and flushes nothing.
ROUNDS = """
import json, os, random, signal, sys, threading, time
from pathlib import Path
import pyarrow, pyarrow.parquet
from eridiff.store import sharding as module
from eridiff.caching.fill import fill
from eridiff.store.store import Store
from tests.support.entries import ENTRIES, KEYS, contents

folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
module.SHARD_BYTES = 100
os.chdir(folder)
count, limit = 0, None

def kill_at(event, arguments):
    global count
    if limit is not None and event in ("open", "os.rename", "os.link", "os.remove", "os.scandir", "os.mkdir"):
        count += 1
        if count >= limit:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill_at)

def work(root, out, numbers, seed):
    store = Store(root, "latents")
    keys = [KEYS[number] for number in numbers]
    def encode():
        lost = set(store.missing(keys))
        order = [ENTRIES[number] for number in numbers if KEYS[number] in lost]
        random.Random(seed).shuffle(order)
        for entry in order:
            store.put(*entry)
        return len(order)
    _, counts = fill(store, keys, list, encode, out, what="latents")
    return counts.encoded

def killed(chance, root, out, numbers):
    global limit
    child = os.fork()
    if child == 0:
        if chance.random() < 0.3:
            signal.setitimer(signal.ITIMER_REAL, chance.random() * 0.05)  # SIGALRM is not handled: it kills
        else:
            limit = chance.randrange(1, 260)
        work(root, out, numbers, chance.random())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or status == 0, status
    return os.WIFSIGNALED(status)

results = []
for seed in range(rounds):
    chance = random.Random(seed)
    root, out = folder / f"store-{seed}", folder / f"out-{seed}"
    died = killed(chance, root, out, range(0, 20)) + killed(chance, root, out, range(5, 25))
    before = len(Store(root, "latents").catalogue)
    encoded = work(root, out, range(5, 25), 0)
    results.append([died, before, encoded, sorted(contents(out)) == sorted(contents(folder / "expected"))
        and contents(out) == contents(folder / "expected")])
print(json.dumps(results))
"""


@pytest.mark.slow
def test_killed_at_any_point_nothing_is_lost_and_the_out_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 100)
    filled(tmp_path / "alone", ENTRIES[5:25]).publish(KEYS[5:25], tmp_path / "expected")
    results = json.loads(processes.run(ROUNDS, tmp_path, 30))
    assert len(results) == 30
    assert all(same for _, _, _, same in results)
    assert sum(died for died, _, _, _ in results) > 30  # of 60
    for _, before, encoded, _ in results:
        assert encoded <= 20 - max(0, before - 5)  # what was there is not encoded again
    for seed in range(30):
        root = tmp_path / f"store-{seed}"
        assert verify(root, []) == []
        wanted = Store(root, "latents").missing(KEYS[5:25])
        assert wanted == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_the_out_is_a_function_of_its_keys_whatever_came_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random adds, outs of other sets, imports, damage and its repair, gc, a failing disk; then the same set."""
    monkeypatch.setattr(module, "SHARD_BYTES", 150)
    chance = random.Random(seed)
    wanted = sorted(chance.sample(KEYS, 25))
    filled(tmp_path / "alone", ENTRIES).publish(wanted, tmp_path / "expected")
    filled(tmp_path / "elsewhere", ENTRIES[::2]).publish(KEYS[::2], tmp_path / "foreign")
    root = tmp_path / "store"

    def put() -> None:
        filled(root, chance.sample(ENTRIES, 12))

    def publish() -> None:
        store = Store(root, "latents")
        there = sorted(set(KEYS) - set(store.missing(KEYS)))
        store.publish(chance.sample(there, len(there) * 2 // 3), tmp_path / "other")

    def adopt() -> None:
        Store(root, "latents").adopt(sorted((tmp_path / "foreign").iterdir()))

    def damage() -> None:
        files = sorted(root.glob("latents/*/*.safetensors")) + sorted(root.glob("latents/*/*/*.safetensors"))
        for path in chance.sample(files, min(2, len(files))):
            data = bytearray(path.read_bytes())
            data[chance.randrange(len(data))] ^= 0x04
            path.write_bytes(data)
        repair(root, verify(root, []), [], None)

    def collect() -> None:
        remove(root, plan_gc(root, 0), 0)

    def fail() -> None:
        left = chance.randrange(6)

        def full(*_: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(StoreError):
                put()
                publish()
                put()

    for _ in range(12):
        chance.choice([put, put, publish, publish, adopt, damage, collect, fail])()
    store = filled(root, ENTRIES)
    store.publish(wanted[::-1], tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    assert verify(root, []) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 KiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False, timeout=300).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True, timeout=300)


def test_a_full_disk_loses_the_entry_in_flight_alone(small_disk: Path, tmp_path: Path) -> None:
    store, root = Store(small_disk / "store", "latents"), small_disk / "store"
    items = [entry(number, 40_000) for number in range(20)]
    with pytest.raises(StoreError, match=r"cannot write to the store .*: No space left on device. What was written is"):
        for item in items:
            store.put(*item)
    there = len(list(root.glob("latents/entries/*/*")))
    assert there >= 8
    assert verify(root, []) == []
    assert list(root.rglob("*.tmp")) == []
    keys = [key for key, _, _ in items]
    assert len(Store(root, "latents").missing(keys)) == 20 - there
    with pytest.raises(StoreError, match=r"cannot write shards to .*: No space left on device"):
        Store(root, "latents").publish(store.catalogue, tmp_path / "out")  # a shard beside its entries: no room
    assert len(Store(root, "latents").missing(keys)) == 20 - there
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True, timeout=300)
    more = Store(root, "latents")
    for item in items:
        more.put(*item)
    more.publish(keys, tmp_path / "out")
    filled(tmp_path / "alone", items).publish(keys, tmp_path / "expected")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_a_read_only_store_serves_and_says_what_it_cannot(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = small_disk / "store"
    filled(root, ENTRIES[:5]).publish(KEYS[:5], tmp_path / "first")
    filled(root, ENTRIES[5:6])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True, timeout=300)
    _, counts = fill(Store(root, "latents"), KEYS[:5], list, lambda: 1 // 0, tmp_path / "out", what="latents")
    assert counts.encoded == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "first")
    assert "is not pinned in" in capsys.readouterr().err
    with pytest.raises(StoreError, match=r"cannot write shards to .*: Read-only file system"):
        Store(root, "latents").publish(KEYS[:6], tmp_path / "more")
    with pytest.raises(StoreError, match=r"cannot write to the store .*: Read-only file system.*ERIDIFF_STORE"):
        Store(root, "latents").put(*ENTRIES[7])
    assert verify(root, []) == []


def test_on_another_file_system_the_factor_is_two(small_disk: Path, tmp_path: Path) -> None:
    """Store there; DVC's object and the project's file here, one inode: two copies."""
    items = [entry(number, 30_000) for number in range(5)]
    root, keys = small_disk / "store", [key for key, _, _ in items]
    filled(root, items).publish(keys, tmp_path / "out")
    file = tmp_path / "out/shard-all.safetensors"
    os.link(file, tmp_path / "object")
    own = OwnFile(path=file, md5="", object=tmp_path / "object")
    out = OwnOut(stage="latents", folder=tmp_path / "out", md5="", listing=tmp_path / "none", files=(own,))
    size = project_size(root, [out])
    assert size.payload == 5 * 30_001
    assert (size.store > 150_000, size.cache > 150_000, size.folder) == (True, True, 0)
    assert 2.0 <= size.factor <= 2.1


def test_a_store_that_vanishes_is_filled_again(tmp_path: Path) -> None:
    store = filled(tmp_path / "store", ENTRIES[:4])
    store.publish(KEYS[:4], tmp_path / "expected")
    assert store.missing(KEYS[:4]) == []
    shutil.rmtree(tmp_path / "store")

    def encode() -> int:
        lost = store.missing(KEYS[:4])
        for item in ENTRIES[:4]:
            store.put(*item)
        return len(lost)

    _, counts = fill(store, KEYS[:4], list, encode, tmp_path / "out", what="latents")
    assert counts.encoded == 4
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    assert Store(tmp_path / "store", "latents").missing(KEYS[:4]) == []


MANY_FILES = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (40, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from eridiff.store.store import Store
from eridiff.formats.safetensors import TensorFile
from tests.support.entries import entry
store, items = Store(Path(sys.argv[1]), "latents"), [entry(number) for number in range(100)]
for item in items:
    store.put(*item)
keys = [key for key, _, _ in items]
store.publish(keys, Path(sys.argv[2]))  # one shard out of more entries than files may be open
assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 40
for number, key in enumerate(keys):
    store.publish([key], Path(sys.argv[2]) / str(number))
files = [TensorFile(path) for path in sorted(Path(sys.argv[2]).glob("*/*.safetensors"))]
print(len(files), sum(len(file.raw(file.names[0]).data) for file in files))
"""


@pytest.mark.slow
def test_more_files_than_a_process_may_open(tmp_path: Path) -> None:
    assert processes.run(MANY_FILES, tmp_path / "store", tmp_path / "out") == "100 1600\n"
