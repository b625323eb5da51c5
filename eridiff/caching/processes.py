"""Several processes of one machine that fill one store together, with no coordinator.

Process 0 plans: it lists the missing keys and writes them into one small file. Batches are made of this list
alone, whatever the number of processes, and process r of n encodes batches r, r + n, r + 2n... Process 0 then looks
into the store until it holds all, encodes itself what nobody brings, and is the only one to publish.

Before that come pictures whose keys nobody knows, in a list of their own: process r reads and encodes pictures r,
r + n, r + 2n... and notes the keys that it encoded.

They are started by a launcher (torchrun, accelerate launch: RANK, WORLD_SIZE) or by the stage itself, where
local.yaml asks for `processes`.
"""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from eridiff.core.errors import ConfigError, StoreError
from eridiff.core.files import digest_json, read_file, write_text
from eridiff.core.json_files import parse_json
from eridiff.core.progress import say
from eridiff.formats.seals import check_seal, sealed_json
from eridiff.machine.local import user_cache
from eridiff.store.sharding import Keys
from eridiff.store.store import Store

STALLED_SECONDS = 600.0  # with nothing new in the store, after which process 0 encodes the rest itself
AGAIN = "Run `dvc repro` again: it is written again."
POLL_SECONDS = 0.1
ENDING_SECONDS = 10.0  # that the others have to end by themselves
OLD_SECONDS = 24 * 3600.0  # after which the plan of another launch is removed


class HasKey(Protocol):
    """A sample or caption to encode."""

    @property
    def key(self) -> str:
        """Its key in the store."""


SampleT = TypeVar("SampleT", bound=HasKey)
Batches = Sequence[Sequence[SampleT]]


@dataclass
class Ranks:
    """This process among those that run the stage `module` together: number `index` of `size`, all of one `launch`.

    starts: whether process 0 starts the others; else a launcher has started them. parent: the process that started this
    one, as found at once, since it may be gone by the first wait.
    """

    module: str = ""
    index: int = 0
    size: int = 1
    launch: str = ""
    starts: bool = False
    started: "list[subprocess.Popen[bytes]]" = field(default_factory=list)
    planned: bool = False
    parent: int = field(default_factory=lambda: int(os.environ.get("ERIDIFF_PARENT") or os.getppid()))

    def __enter__(self) -> Self:
        """Return the place itself. As process 0: forget an earlier run, where a launcher's name comes again."""
        if self.size > 1 and not self.index:
            done = [self.done_path(index) for index in range(1, self.size)]
            for path in (self.plan_path, self.new_path, *done):
                path.unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """As process 0: let the others go, those that it started also where the block failed."""
        try:
            if error is None and not self.index:
                if not self.planned:
                    self.announce([], 0)
                end = time.monotonic() + ENDING_SECONDS
                while self.started and not self.all_ended() and time.monotonic() < end:
                    time.sleep(POLL_SECONDS)
        finally:
            self.stop()

    @property
    def label(self) -> str:
        """For progress lines."""
        return f" (process {self.index + 1} of {self.size})" if self.size > 1 else ""

    @property
    def plan_path(self) -> Path:
        """The file by which process 0 tells the others what is to be encoded."""
        return user_cache() / "ranks" / f"{self.launch}-{self.module}.json"

    @property
    def new_path(self) -> Path:
        """The file by which process 0 tells the others which pictures are new."""
        return self.plan_path.with_suffix(".new.json")

    def done_path(self, index: int) -> Path:
        """The file by which another process tells that it is done with its share of the new pictures."""
        return self.plan_path.with_suffix(f".{index}.json")

    def announce(self, keys: Sequence[str], batches: int) -> None:
        """As process 0: write the plan, and start the others where that is this process's task and not done."""
        if self.size > 1:
            self._remove_old()
            self._write(self.plan_path, keys)
            self.planned = True
            self._start_others(batches)

    def announce_new(self, files: Sequence[str], batches: int) -> bool:
        """As process 0: write the list of new pictures; False where they are too few to be shared."""
        if self.size == 1:
            return False
        shared = batches >= self.size
        self._remove_old()
        self._write(self.new_path, files if shared else [])
        if shared:
            self._start_others(batches)
        return shared

    @staticmethod
    def _write(path: Path, names: Sequence[str]) -> None:
        write_text(path, sealed_json({"names": list(names)}))

    def _remove_old(self) -> None:
        """Remove what other launches have left."""
        for path in self.plan_path.parent.glob("*.json"):
            with suppress(FileNotFoundError):  # other processes do the same
                if time.time() - path.stat().st_mtime > OLD_SECONDS and not path.name.startswith(self.launch):
                    path.unlink()

    def _start_others(self, batches: int) -> None:
        if self.starts and not self.started:
            self.size = max(1, min(self.size, batches))
            os.environ |= {"LOCAL_WORLD_SIZE": str(self.size), "LOCAL_RANK": "0"}
            for index in range(1, self.size):  # one by one: all that run are to be stopped where the next cannot start
                self.started.append(self._start(index))

    def _start(self, index: int) -> "subprocess.Popen[bytes]":
        place = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": self.size, "LOCAL_WORLD_SIZE": self.size}
        environment = {**os.environ, **{name: str(value) for name, value in place.items()}}
        environment |= {"ERIDIFF_LAUNCH": self.launch, "ERIDIFF_PARENT": str(os.getpid())}
        return subprocess.Popen([sys.executable, "-m", self.module], env=environment)

    def read(self, path: Path) -> list[str]:
        """As another process than 0: what process 0 has written to `new_path` or `plan_path`, once it is there.

        Raises: as `wait_for`; DataError, StoreError where it is damaged.
        """
        self.wait_for(path)
        data = read_file(path)
        if not check_seal(data, path, AGAIN):
            raise StoreError(f"{path} is damaged: it carries no checksum. {AGAIN}")
        names: list[str] = parse_json(data)["names"]
        return names

    def wait_for(self, path: Path) -> None:
        """As another process than 0: wait until that one has looked at everything and written a file.

        Raises: StoreError where who started this process is gone meanwhile.
        """
        while self.index and not path.exists():
            if os.getppid() != self.parent:
                raise StoreError(f"process {self.index} of {self.size}: the program that started it is gone.")
            time.sleep(POLL_SECONDS)

    def tell_done(self, keys: Iterable[str]) -> None:
        """As another process than 0: the share of new pictures is read, and these keys were encoded."""
        self._write(self.done_path(self.index), sorted(keys))

    def wait_for_shares(self, entries: Callable[[], int]) -> set[str]:
        """As process 0: wait until the others are done with their new pictures; the keys that they encoded.

        entries(): changes while they work. Those that ended without a word, or have brought nothing for
        STALLED_SECONDS, are waited for no more: what nobody has read is read later.
        """
        waiting, seen, last, keys = set(range(1, self.size)), -1, time.monotonic(), set[str]()
        while True:
            ended = {index for index in waiting if self._has_ended(index)}  # before the look: what it told last is seen
            done = {index for index in waiting if self.done_path(index).exists()}
            keys.update(*(self.read(self.done_path(index)) for index in done))
            waiting -= done
            if waiting <= ended:
                reason = "they ended"
                break
            began, now = time.monotonic(), entries()
            if now != seen:
                seen, last = now, began
            elif began - last > STALLED_SECONDS:
                reason = f"nothing came for {STALLED_SECONDS:.0f} s"
                break
            time.sleep(max(POLL_SECONDS, 5 * (time.monotonic() - began)))
        if waiting:
            who = "1 other process has not done its" if len(waiting) == 1 else f"{len(waiting)} have not done their"
            say(f"new pictures: {who} share ({reason}): it is done here")
        return keys

    def _has_ended(self, index: int) -> bool:
        """Whether a process that this one started is gone; of others nobody knows."""
        return bool(self.started) and self.started[index - 1].poll() is not None

    def all_ended(self) -> bool:
        """Whether the processes that this one started have all ended."""
        return bool(self.started) and all(self._has_ended(index) for index in range(1, 1 + len(self.started)))

    def stop(self) -> None:
        """End the processes that this one started, where they still run; those that hang are killed."""
        for process in self.started:
            process.terminate()
        end = time.monotonic() + ENDING_SECONDS
        for process in self.started:
            try:
                process.wait(timeout=max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.started = []


def find_ranks(module: str, processes: int) -> Ranks:
    """This process's place, from RANK and WORLD_SIZE; without them, the first of `processes` that it starts itself.

    Raises: ConfigError where the two variables contradict each other.
    """
    given = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE") if name in os.environ}
    if not given:
        return Ranks(module=module, size=processes, launch=uuid.uuid4().hex, starts=True)
    try:
        index, size = int(given["RANK"]), int(given["WORLD_SIZE"])
        if not 0 <= index < size:
            raise ValueError
    except (KeyError, ValueError):
        raise ConfigError(
            f"the environment says {given}: a launcher sets RANK (from 0) and WORLD_SIZE (above RANK). Unset both to "
            "run one process."
        ) from None
    return Ranks(module=module, index=index, size=size, launch=_launch())


def _launch() -> str:
    """A name that all processes of one launch share, and no other launch has."""
    if "ERIDIFF_LAUNCH" in os.environ:
        return os.environ["ERIDIFF_LAUNCH"]
    parent = os.getppid()
    stat = Path(f"/proc/{parent}/stat")  # its start time, since process numbers come again
    began = stat.read_text("utf-8").rsplit(")", 1)[1].split()[19] if stat.exists() else ""
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
    return digest_json([parent, began, *(os.environ.get(name, "") for name in names)])[:32]


def encode_together(
    ranks: Ranks,
    store: Store,
    keys: Iterable[str] | Keys,
    form: Callable[[set[str]], Batches[SampleT]],
    encode: Callable[[Batches[SampleT]], None],
    what: str,
) -> int:
    """Encode the missing keys, shared among processes by whole batches; returns how many were missing.

    form(keys) makes the batches; encode(batches) encodes and puts them.
    """
    if ranks.index:
        batches = form(set(ranks.read(ranks.plan_path)))[ranks.index :: ranks.size]
        wanted = set(store.missing(sample.key for batch in batches for sample in batch))
        encode(_lacking(batches, wanted))
        return len(wanted)
    missing = set(store.missing(keys))
    batches = form(missing)
    if ranks.size == 1 or ranks.planned:  # a second time, since entries vanished: the others are gone
        encode(batches)
        return len(missing)
    ranks.announce(sorted(missing), len(batches))
    encode(batches[0 :: ranks.size])
    encode(_lacking(batches, wait_for_others(ranks, store, missing, what)))
    return len(missing)


def _lacking(batches: Batches[SampleT], keys: set[str]) -> Batches[SampleT]:
    """Those batches of which a key is still missing, whole."""
    return [batch for batch in batches if any(sample.key in keys for sample in batch)]


def wait_for_others(ranks: Ranks, store: Store, keys: set[str], what: str) -> set[str]:
    """As process 0: wait until the store holds all keys; returns those that nobody brings.

    Nobody does where all processes that were started have ended, or nothing came for STALLED_SECONDS.
    """
    left, last = set(store.missing(keys)), time.monotonic()
    while left:
        ended = ranks.all_ended()  # before the look: what they put last is seen
        began = time.monotonic()
        store.look_again()
        now_left = set(store.missing(left))
        if now_left and (ended or began - last > STALLED_SECONDS):
            reason = "they ended" if ended else f"nothing came for {STALLED_SECONDS:.0f} s"
            say(f"{what}: {len(now_left)} entries of other processes are missing ({reason}): encoded here")
            return now_left
        if len(now_left) < len(left):
            last = began
            say(f"{what}: waiting for other processes, {len(now_left)} entries left")
        left = now_left
        if left:
            time.sleep(max(POLL_SECONDS, 5 * (time.monotonic() - began)))  # a large store takes a while to list
    return left
