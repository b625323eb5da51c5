"""Several processes encode into one store: whole batches, of one list, whatever their number; nothing is left out."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eridiff.caching import processes as ranks
from eridiff.caching.processes import Ranks, encode_together, find_ranks
from eridiff.core.errors import ConfigError, EridiffError, StoreError
from eridiff.formats.tables import read_table
from eridiff.store.store import Store
from tests.e2e.harness import make_clone
from tests.support import processes
from tests.support.entries import ENTRIES
from tests.support.processes import begin


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A cache folder of its own, no launcher, and the environment as it was at the end."""
    before = dict(os.environ)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "ERIDIFF_LAUNCH", "ERIDIFF_PARENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ranks, "POLL_SECONDS", 0.05)
    yield
    os.environ.clear()
    os.environ.update(before)


@dataclass(frozen=True)
class Item:
    """What is to be encoded: an entry by its number."""

    number: int

    @property
    def key(self) -> str:
        return ENTRIES[self.number][0]


ITEMS = {Item(number).key: Item(number) for number in range(len(ENTRIES))}


def form(keys: set[str]) -> list[list[Item]]:
    """Batches of three, by key."""
    items = [ITEMS[key] for key in sorted(keys)]
    return [items[start : start + 3] for start in range(0, len(items), 3)]


class Encoder:
    """Puts entries, and remembers the batches."""

    def __init__(self, store: Store, seconds: float = 0.0) -> None:
        self.store, self.seconds = store, seconds
        self.batches: list[list[str]] = []

    def __call__(self, batches: Any) -> None:
        for batch in batches:
            time.sleep(self.seconds)
            for item in batch:
                self.store.put(*ENTRIES[item.number])
            self.batches.append([item.key for item in batch])


def test_the_environment_says_who_is_who(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = find_ranks("stages.latents", 1)
    assert (alone.index, alone.size, alone.label) == (0, 1, "")
    three = find_ranks("stages.latents", 3)
    assert (three.index, three.size, three.starts) == (0, 3, True)
    assert three.launch != find_ranks("stages.latents", 3).launch
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ConfigError, match=r"\{'RANK': '1'\}: a launcher sets RANK \(from 0\) and WORLD_SIZE"):
        find_ranks("stages.latents", 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(ConfigError, match="a launcher sets RANK"):
        find_ranks("stages.latents", 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    second = find_ranks("stages.latents", 5)
    assert (second.index, second.size, second.starts) == (1, 2, False)
    assert second.label == " (process 2 of 2)"
    assert second.launch == find_ranks("stages.latents", 1).launch  # the same for all that one program starts
    assert find_ranks("stages.text", 1).plan_path != second.plan_path
    monkeypatch.setenv("MASTER_PORT", "29501")
    assert find_ranks("stages.latents", 5).launch != second.launch


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_batches_are_the_same_for_any_number_of_processes(tmp_path: Path, size: int) -> None:
    """Each process in its own turn: the batches of all are those of one, and each is encoded once."""
    one = Encoder(Store(tmp_path / "one", "latents"))
    encode_together(Ranks(), one.store, ITEMS, form, one, "latents")
    helpers = [Encoder(Store(tmp_path / "many", "latents")) for _ in range(size)]

    def encode(batches: Any) -> None:
        """What process 0 does once its plan is there: here the others come first."""
        for index in range(1, size if not helpers[0].batches else 0):
            own = Ranks(module="m", index=index, size=size, launch="test")
            encoded = encode_together(own, helpers[index].store, ITEMS, form, helpers[index], "latents")
            assert encoded == sum(map(len, helpers[index].batches))
        helpers[0](batches)

    first = Ranks(module="m", size=size, launch="test")
    assert encode_together(first, helpers[0].store, ITEMS, form, encode, "latents") == len(ITEMS)
    together = [batch for helper in helpers for batch in helper.batches]
    assert sorted(together) == sorted(one.batches)
    for encoder in (one, helpers[0]):
        encoder.store.look_again()
        encoder.store.publish(list(ITEMS), tmp_path / f"out-{encoder is one}")
    name = "shard-all.safetensors"
    assert (tmp_path / "out-True" / name).read_bytes() == (tmp_path / "out-False" / name).read_bytes()


def test_what_nobody_brings_is_encoded_by_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A launcher's other process never comes: after the time limit process 0 takes its batches over, whole."""
    monkeypatch.setattr(ranks, "STALLED_SECONDS", 0.3)
    encoder = Encoder(Store(tmp_path / "store", "latents"))
    start = time.monotonic()
    assert encode_together(Ranks(module="m", size=2, launch="x"), encoder.store, ITEMS, form, encoder, "latents") == 40
    assert 0.3 <= time.monotonic() - start < 3
    assert sorted(encoder.batches) == sorted([[item.key for item in batch] for batch in form(set(ITEMS))])
    assert "latents: 19 entries of other processes are missing (nothing came for 0 s): encoded here" in (
        capsys.readouterr().out
    )


def test_nothing_to_encode_lets_the_others_go(tmp_path: Path) -> None:
    first = Ranks(module="m", size=2, launch="x")
    first.announce([], 0)
    second, store = Ranks(module="m", index=1, size=2, launch="x"), Store(tmp_path / "store", "latents")
    assert encode_together(second, store, ITEMS, form, Encoder(store), "latents") == 0


def test_a_helper_whose_launcher_is_gone_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = iter([7, 7, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    second = Ranks(module="m", index=1, size=2, launch="x")
    with pytest.raises(StoreError, match="process 1 of 2: the program that started it is gone"):
        second.wait_for(second.plan_path)


def test_a_helper_whose_launcher_ended_while_it_worked_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = iter([7, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    second = Ranks(module="m", index=1, size=2, launch="x")
    with pytest.raises(StoreError, match="process 1 of 2: the program that started it is gone"):
        second.wait_for(second.plan_path)


def test_a_helper_that_is_gone_is_not_waited_for_where_another_lives(capsys: pytest.CaptureFixture[str]) -> None:
    """One died without a word; another is done with its share and waits for the plan; a third still works."""
    died = begin([sys.executable, "-c", "raise SystemExit(1)"])
    lives = [begin([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range(2)]
    died.wait(timeout=30)
    polls = iter(range(1000))

    def entries() -> int:
        if (poll := next(polls)) == 3:
            Ranks(module="m", index=3, size=4, launch="x").tell_done(["c"])
        return poll

    with Ranks(module="m", size=4, launch="x", started=[died, *lives]) as first:
        assert first.announce_new(["a", "b", "c", "d"], 4)
        Ranks(module="m", index=2, size=4, launch="x").tell_done(["b"])
        assert first.wait_for_shares(entries) == {"b", "c"}
        assert next(polls) >= 4
        first.stop()
    assert [process.poll() is not None for process in (died, *lives)] == [True, True, True]
    assert "1 other process has not done its share (they ended)" in capsys.readouterr().out


def test_the_words_of_an_earlier_run_under_the_same_name_do_not_count() -> None:
    with Ranks(module="m", size=2, launch="x") as first:
        first.announce_new(["a", "b"], 2)
        Ranks(module="m", index=1, size=2, launch="x").tell_done(["old"])
    paths = (first.plan_path, first.new_path, first.done_path(1))
    assert [path.exists() for path in paths] == [True, True, True]
    with Ranks(module="m", size=2, launch="x"):
        assert [path.exists() for path in paths] == [False, False, False]


def test_one_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "ENDING_SECONDS", 0.2)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    hanging = begin([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert hanging.stdout is not None
    hanging.stdout.readline()
    with Ranks(module="m", size=2, launch="x", started=[hanging]):
        pass
    hanging.stdout.close()
    assert hanging.returncode == -9


def test_those_that_run_are_stopped_where_another_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[subprocess.Popen[bytes]] = []

    def start(self: Ranks, index: int) -> "subprocess.Popen[bytes]":
        if index == 2:
            raise BlockingIOError("no more processes")
        begun.append(begin([sys.executable, "-c", "import time; time.sleep(60)"]))
        return begun[-1]

    monkeypatch.setattr(Ranks, "_start", start)
    with pytest.raises(BlockingIOError), Ranks(module="m", size=3, launch="x", starts=True) as first:
        first.announce(["a", "b", "c"], 3)
    assert begun[0].returncode is not None


def test_old_plans_are_removed(tmp_path: Path) -> None:
    first = Ranks(module="m", size=2, launch="new")
    first.plan_path.parent.mkdir(parents=True)
    old, young = (first.plan_path.with_name(f"{name}.json") for name in ("old", "young"))
    for path in (old, young):
        path.write_text("[]")
    os.utime(old, (time.time() - 2 * ranks.OLD_SECONDS,) * 2)
    first.announce(["a"], 1)
    assert {path.name for path in first.plan_path.parent.iterdir()} == {"young.json", "new-m.json"}
    assert json.loads(first.plan_path.read_text())["names"] == ["a"]


def test_every_flipped_bit_of_a_plan_is_found() -> None:
    """It says what another process encodes."""
    first = Ranks(module="m", size=2, launch="new")
    first.announce(["a", "b"], 1)
    data = first.plan_path.read_bytes()
    assert first.read(first.plan_path) == ["a", "b"]
    for place in range(len(data)):
        first.plan_path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        with pytest.raises(EridiffError, match=r"new-m\.json is damaged: .*Run `dvc repro` again"):
            first.read(first.plan_path)


HELPER = """
import sys
from pathlib import Path
from eridiff.caching.processes import encode_together, find_ranks
from eridiff.store.store import Store
from tests.caching.test_processes import ITEMS, Encoder, form
ranks = find_ranks("tests.caching.test_processes", 3)
store = Store(Path(sys.argv[1]), "latents")
encoder = Encoder(store, 0.02)
print(encode_together(ranks, store, ITEMS, form, encoder, "latents"), len(encoder.batches))
"""


@pytest.mark.slow
def test_two_processes_of_a_launcher_share_the_work(tmp_path: Path) -> None:
    """Started together with RANK and WORLD_SIZE, in any order; process 0 waits for what the other has."""
    started = []
    for rank in (1, 0):
        code = f"import os; os.environ.update(RANK='{rank}', WORLD_SIZE='2')\n{HELPER}"
        started.append(processes.start(code, tmp_path / "store"))
    (second, _), (first, _) = (process.communicate(timeout=60) for process in started)
    assert [process.returncode for process in started] == [0, 0]
    assert second == "19 7\n"
    assert first.splitlines()[-1] == "40 7"
    assert set(Store(tmp_path / "store", "latents").catalogue) == set(ITEMS)


THREADS = """
import torch
from eridiff.models.precision import CPU_THREADS, fix_threads
before = torch.get_num_threads()
fix_threads(torch.device("cpu"))
print(before, torch.get_num_threads() == CPU_THREADS > 1)
"""


@pytest.mark.slow
def test_a_launchers_thread_count_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun sets it to 1, and the number of threads changes last bits."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert processes.run(THREADS) == "1 True\n"


@pytest.mark.e2e
def test_the_stage_gives_the_same_bytes_with_two_processes(tmp_path: Path) -> None:
    """By itself, under both launchers, and with `processes: 2` in local.yaml; from an empty store each time."""
    clone = make_clone(tmp_path, "clone")
    clone.repro("buckets")
    place = clone.root
    count = len(read_table(place / "data/buckets/buckets.parquet")[0])

    def run(*launcher: str, shared: bool = True) -> dict[str, bytes]:
        for folder in (place / "data/latents", clone.store, clone.cache):
            shutil.rmtree(folder, ignore_errors=True)
        command = ["python", *launcher, "-m", "stages.latents"]
        environment = clone.launching()
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert f"latents: {count} samples, {count} encoded, 0 reused, 1 shard written" in done.stdout
        told = [
            json.loads(path.read_text())["names"] for path in clone.cache.rglob("*.1.json")
        ]  # by the second process
        assert [0 < len(names) < count for names in told] == [True] * shared, done.stdout
        if launcher:  # else the first, which is done, may end it before it says so
            assert re.search(rf"^latents \(process 2 of 2\): {len(told[0])} encoded$", done.stdout, re.M), done.stdout
        return {path.name: path.read_bytes() for path in (place / "data/latents").iterdir()}

    one = run(shared=False)
    assert set(one) == {"index.parquet", "shard-all.safetensors"}
    assert run("-m", "torch.distributed.run", "--nproc-per-node", "2") == one
    # --multi_gpu is what has it start several processes, here as on GPUs; with --cpu it starts one
    accelerate = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    assert run(*accelerate, "--mixed_precision", "no", "--dynamo_backend", "no") == one
    (place / "local.yaml").write_text("processes: 2\n")
    assert run() == one
