"""Commands that end with their starter: a supervisor beside each holds a pipe from it.

`python -m eridiff.flow.supervise [--release LEASE | --watch FILE] COMMAND...` runs a command and watches its own
standard input, or the open file of that number. End of file there means that the starter is gone, even by SIGKILL, or
wants the command stopped. Then, and at the command's own end, what is left of all that it started is interrupted as by
Ctrl-C, terminated, and killed; the lease's slot is freed.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import psutil

from eridiff.flow.gpu_slots import release

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
# Seconds given after each signal. Interrupted first: DVC then undoes its own half-done work, as after Ctrl-C.
STEPS = ((signal.SIGINT, 2.5), (signal.SIGTERM, 3.5), (signal.SIGKILL, 2.0))
PATIENCE = 30.0  # seconds in all for those that hear SIGTERM: a training ends its step and saves its state
WATCH = "--watch"
STOPPED = 125  # the supervisor's exit code where it stopped the command


class Supervised:
    """A running command with its supervisor; its output comes line by line."""

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str], *, keep: int = -1) -> None:
        """keep: an open file that the supervisor keeps open until everything has ended, such as a lock."""
        kept = () if keep < 0 else (keep,)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "eridiff.flow.supervise", *command],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=kept,
        )
        self.timed_out = False

    @property
    def pid(self) -> int:
        """The supervisor's process."""
        return self._process.pid

    def lines(self) -> Iterator[str]:
        """Output as it comes, standard error with it, until everything that the command started has ended."""
        with _file(self._process.stdout) as stdout:
            for line in stdout:
                yield line.rstrip()

    def running(self) -> bool:
        """Whether the supervisor still runs."""
        return self._process.poll() is None

    def wait(self) -> int:
        """The command's exit code; 128 + N where signal N ended it, STOPPED where the supervisor did. After lines()."""
        code = self._process.wait()
        self.stop()  # closes the pipe
        return code if code >= 0 else 128 - code

    def stop(self) -> None:
        """Ask the supervisor to end the command; returns at once."""
        stdin = _file(self._process.stdin)
        if not stdin.closed:
            stdin.close()

    @contextmanager
    def limit(self, seconds: float | None) -> Iterator[None]:
        """Stop the command if this block lasts longer than so many seconds; `timed_out` says so then."""

        def expire() -> None:
            self.timed_out = True
            self.stop()

        timer = threading.Timer(seconds, expire) if seconds else None
        if timer:
            timer.daemon = True
            timer.start()
        try:
            yield
        finally:
            if timer:
                timer.cancel()


class Crew:
    """The supervised commands of one run, stopped together at the end of its context; none starts after that."""

    def __init__(self) -> None:
        self._members: set[Supervised] = set()
        self._guard = threading.RLock()  # a signal's handler may stop the crew while it starts a command
        self.stopped = threading.Event()

    def start(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str], *, keep: int = -1
    ) -> Supervised:
        """Start a command. Raises: InterruptedError where the crew was stopped."""
        with self._guard:
            if self.stopped.is_set():
                raise InterruptedError("the run was stopped")
            member = Supervised(command, folder, environment, keep=keep)
            self._members.add(member)
            return member

    def stop(self) -> None:
        """Stop all commands; returns at once."""
        self.stopped.set()
        with self._guard:
            for member in self._members:
                member.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@contextmanager
def stopped_by_signals(crew: Crew) -> Iterator[None]:
    """SIGTERM, SIGHUP and Ctrl-C stop the crew and nothing else; the block then goes on to its own end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    for number in before:
        signal.signal(number, lambda *_: crew.stop())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_guarded(command: Sequence[str], environment: Mapping[str, str], *, group: int | None) -> int:
    """Run a command in front, with this process's input and output; its exit code, below 0 where a signal ended it.

    Its supervisor ends it should this process be killed; all signals else are this process's to pass on. group: the
    process group to start it in, as of Popen.
    """
    reading, writing = os.pipe()  # nothing is written: the kernel closes it at our end
    guard = [sys.executable, "-m", "eridiff.flow.supervise", WATCH, str(reading)]
    try:
        code = subprocess.Popen(
            [*guard, *command], env=dict(environment), process_group=group, pass_fds=(reading,)
        ).wait()
    finally:
        os.close(reading)
        os.close(writing)
    return code


def _file(stream: IO[str] | None) -> IO[str]:
    assert stream is not None  # asked for in the constructor
    return stream


def main() -> None:
    """The supervisor."""
    command, lease, watched = sys.argv[1:], None, 0
    if command[0] == "--release":
        lease, command = command[1], command[2:]
    elif command[0] == WATCH:
        watched, command = int(command[1]), command[2:]
    adopt_orphans()
    heard: list[int] = []
    # Handlers of our own, not SIG_IGN: that one would pass on to the command.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda signum, _: heard.append(signum))
    child = subprocess.Popen(command, stdin=None if watched else subprocess.DEVNULL)
    stopped = _wait(child, watched)
    end_descendants(STEPS[1:] if signal.SIGINT in heard else STEPS)  # one interrupt is enough
    if lease:
        release(lease)
    code = child.wait()
    _reap()
    code = STOPPED if stopped else code
    sys.exit(code if code >= 0 else 128 - code)


def _wait(child: "subprocess.Popen[bytes]", watched: int) -> bool:
    """Return at the command's end (False) or at the end of the watched file (True)."""
    ended = os.pidfd_open(child.pid)
    while True:
        ready = select.select([ended, watched], [], [])[0]
        if ended in ready:
            return False
        if not os.read(watched, 4096):
            return True


def adopt_orphans() -> None:
    """Become the parent of all descendants whose parents end before them."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants(steps: Sequence[tuple[signal.Signals, float]] = STEPS, patience: float = PATIENCE) -> None:
    """End what is left of the command, gently first; what has heard SIGTERM and puts its work in order has its time."""
    begun = time.monotonic()
    for number, seconds in steps:
        if not _living():
            return
        send_descendants(number)
        deadline = time.monotonic() + seconds
        while (now := time.monotonic()) < deadline or (
            number == signal.SIGTERM and now < begun + patience and _hears_sigterm()
        ):
            if not _living():
                return
            time.sleep(0.1)


def send_descendants(number: signal.Signals) -> None:
    """Send a signal to all descendants; those that another supervisor ends get SIGKILL alone."""
    me = psutil.Process()
    for process in me.children(recursive=True) if number == signal.SIGKILL else list(_own(me)):
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _hears_sigterm() -> bool:
    """Whether a living descendant has a handler of its own for SIGTERM, as a stage has while it trains."""
    for process in psutil.Process().children(recursive=True):
        try:
            status = Path(f"/proc/{process.pid}/status").read_text("utf-8")
        except (FileNotFoundError, ProcessLookupError):
            continue
        caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
        if int(caught, 16) >> (signal.SIGTERM - 1) & 1:
            return True
    return False


def _own(process: Any) -> Iterator[Any]:
    """Descendants, less those of other supervisors: signals that came twice would disturb DVC's tidying up.

    One that watches another file than its input leaves signals to its starter while that lives.
    """
    for child in process.children():
        try:
            words = child.cmdline()[1:4]
            if words[:2] == ["-m", "eridiff.flow.supervise"] and WATCH not in words:
                continue
            yield child
            yield from _own(child)
        except psutil.NoSuchProcess:
            continue


def _reap() -> None:
    """Take note of the ends of adopted processes, so that none stays as a zombie where nobody else does."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _living() -> bool:
    """Whether any descendant still runs."""
    found = False
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found = True
        except psutil.NoSuchProcess:
            continue
    return found


if __name__ == "__main__":
    main()
