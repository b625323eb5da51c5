"""Commands end with whoever started them, by whatever end."""

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from eridiff.flow.supervise import STOPPED, Crew
from tests.support import processes

# A child in a session of its own, which a signal to the process group would miss, and that ignores the gentle signals.
STUBBORN = (
    "import signal, subprocess, sys, time\n"
    "code = 'import signal, time; [signal.signal(s, signal.SIG_IGN) for s in (2, 15)]; '\n"
    "code += 'print(1, flush=True); time.sleep(99)'\n"
    "child = subprocess.Popen([sys.executable, '-c', code], start_new_session=True)\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(99)\n"
)


def test_lines_and_exit_codes_come_through(tmp_path: Path) -> None:
    with Crew() as crew:
        for code, expected in (("print('a'); raise SystemExit(7)", 7), ("import os; print('a'); os.abort()", 134)):
            job = crew.start([sys.executable, "-u", "-c", code], tmp_path, os.environ)
            assert list(job.lines()) == ["a"]
            assert job.wait() == expected


@pytest.mark.slow
def test_stop_ends_what_left_the_group_and_ignores_gentle_signals(tmp_path: Path) -> None:
    with Crew() as crew:
        job = crew.start([sys.executable, "-c", STUBBORN], tmp_path, os.environ)
        lines = job.lines()
        child = max(int(next(lines)), int(next(lines)))
        start = time.monotonic()
        crew.stop()
        assert list(lines)[-1] == "KeyboardInterrupt"  # the gentlest signal came first
        assert job.wait() == STOPPED
        assert time.monotonic() - start < 12
        assert not psutil.pid_exists(child)
        with pytest.raises(InterruptedError):
            crew.start(["true"], tmp_path, os.environ)


def test_a_limit_stops_and_says_so(tmp_path: Path) -> None:
    with Crew() as crew:
        job = crew.start(["sleep", "60"], tmp_path, os.environ)
        with job.limit(0.2):
            assert list(job.lines()) == []
        assert job.wait() == STOPPED
        assert job.timed_out
        job = crew.start(["true"], tmp_path, os.environ)
        with job.limit(60):
            assert list(job.lines()) == []
        assert job.wait() == 0
        assert not job.timed_out


def test_what_a_command_leaves_behind_is_ended(tmp_path: Path) -> None:
    with Crew() as crew:
        code = "import subprocess; print(subprocess.Popen(['sleep', '97'], start_new_session=True).pid)"
        job = crew.start([sys.executable, "-c", code], tmp_path, os.environ)
        (child,) = job.lines()
        assert job.wait() == 0
        assert not psutil.pid_exists(int(child))


def test_a_starter_killed_with_9_takes_the_command_with_it(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib\n"
        "from eridiff.flow.supervise import Crew\n"
        "job = Crew().start(['sh', '-c', 'echo $$; sleep 96'], pathlib.Path(sys.argv[1]), os.environ)\n"
        "print(next(job.lines()), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    starter = processes.start(code, tmp_path)
    out, _ = starter.communicate(timeout=30)
    assert starter.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while psutil.pid_exists(int(out)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(int(out))


# Ends what it started with steps and patience of its own; the child does with SIGTERM what the argument says.
ENDING = """
import signal, subprocess, sys, time
from eridiff.flow.supervise import end_descendants
child = 'import signal, time; ' + sys.argv[1] + '; print("ready", flush=True); [time.sleep(0.1) for _ in range(600)]'
process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True)
process.stdout.readline()
end_descendants(((signal.SIGTERM, 0.1), (signal.SIGKILL, 2.0)), patience=20)
print(process.stdout.read().strip(), process.wait())
"""
SAVES = (
    "signal.signal(15, lambda *_: [time.sleep(1), print('saved', flush=True), signal.signal(15, signal.SIG_DFL), "
    "signal.raise_signal(15)])"
)


def test_what_hears_sigterm_has_the_time_to_save_and_what_ignores_it_has_not() -> None:
    assert processes.run(ENDING, SAVES) == "saved -15\n"
    assert processes.run(ENDING, "signal.signal(15, signal.SIG_IGN)") == " -9\n"
