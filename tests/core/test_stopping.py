"""What is told to stop puts its work in order, and what it says of the next run is the last line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eridiff.core.errors import run_main
from eridiff.core.stopping import (
    MAKE,
    NOTICE,
    STOPPED_WORDS,
    Stopped,
    end_with_make,
    last_words,
    say_last,
    stop_in_order,
)
from eridiff.training.resume import load_state
from eridiff.training.train import train
from tests.support import processes, training
from tests.support.bases import FAMILIES
from tests.support.processes import begin

ROOT = Path(__file__).parent.parent.parent
# Works in steps; each line of standard input is the end of one.
STEPS = """
import sys
from eridiff.core.errors import run_main
from eridiff.core.stopping import Stopped, stop_in_order
def main():
    with stop_in_order(lambda: "stopped at once: dvc repro goes on after step 50 of 60") as asked:
        print("works", flush=True)
        for step, line in enumerate(sys.stdin, 1):
            if signum := asked():
                raise Stopped(signum, f"stopped after step {step} of 60: dvc repro goes on from there")
run_main(main)
"""
SAID = "stopped after step 1 of 60: dvc repro goes on from there\n"


def stopped_by(*signals: int, step: bool = True) -> tuple[int, str, str]:
    """Exit code and output of steps that signals come in the middle of; then the step ends, if it does."""
    process = begin(
        [sys.executable, "-c", STEPS],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None and process.stdin is not None
    assert process.stdout.readline() == "works\n"
    for number, signum in enumerate(signals):
        process.send_signal(signum)
        if number == 0:
            assert process.stderr.readline() == NOTICE.decode()  # it has heard it
    out, errors = process.communicate("end of the step\n" if step else None, timeout=60)
    return process.returncode, out, errors


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ((signal.SIGINT,), 130),
        ((signal.SIGTERM,), 143),
        ((signal.SIGHUP,), 129),
        ((signal.SIGINT, signal.SIGTERM), 130),  # as a supervisor sends them
        ((signal.SIGTERM, signal.SIGINT), 143),  # as systemd and `make repro` do
        ((signal.SIGTERM, signal.SIGTERM), 143),
    ],
)
def test_a_step_ends_first(signals: tuple[int, ...], code: int) -> None:
    assert stopped_by(*signals) == (code, SAID, "")


AT_ONCE = "stopped at once: dvc repro goes on after step 50 of 60\n"


def test_a_second_ctrl_c_does_not_wait_and_says_where_it_goes_on() -> None:
    assert stopped_by(signal.SIGINT, signal.SIGINT, step=False) == (130, AT_ONCE, "")
    assert stopped_by(*[signal.SIGINT] * 5, step=False) == (130, AT_ONCE, "")


def test_what_is_ignored_stays_so_and_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stop_in_order(str) as asked:
            signal.raise_signal(signal.SIGHUP)
            assert asked() is None
            signal.raise_signal(signal.SIGTERM)
            assert asked() == signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, ignored)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_last_words_are_handed_to_who_started_dvc(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MAKELEVEL", raising=False)
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def main() -> None:
        raise Stopped(signal.SIGTERM, "stopped after step 57 of 60: dvc repro goes on from there")

    with last_words() as words:
        assert not words.say()
        monkeypatch.setenv(*next(iter(words.environment.items())))
        with pytest.raises(SystemExit) as ended:
            run_main(main)
        processes.run("from eridiff.core.stopping import say_last; say_last('of another process')")
        print("dvc says more")
        assert not words.say()  # no make to end
    assert ended.value.code == 143
    assert capfd.readouterr().out.splitlines()[1:] == [
        "dvc says more",
        "stopped after step 57 of 60: dvc repro goes on from there",
        "of another process",
    ]
    say_last("who started it is gone")  # its file with it


LAUNCH = """
import os, signal, subprocess, sys
from eridiff.core.stopping import last_words, say_last
signals = (signal.SIGINT, signal.SIGTERM)
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
with last_words() as words:
    os.environ |= words.environment
    print("works", flush=True)
    signal.sigwait(signals)
    say_last("stopped after step 57 of 60: dvc repro goes on from there")
    print("ERROR: failed to reproduce 'train'", flush=True)
    sys.exit(0 if words.say() else 143)
"""


@pytest.mark.parametrize("shell", ["", "exec "], ids=["direct", "by a shell"])  # ARGS may have quotes
@pytest.mark.parametrize("whom", ["all", "make", "command"])
def test_nothing_comes_after_it_under_make(tmp_path: Path, whom: str, shell: str) -> None:
    (tmp_path / "launch.py").write_text(LAUNCH)
    (tmp_path / "Makefile").write_text(f"repro:\n\t@{shell}{sys.executable} launch.py 'a b'\n")
    process = begin(
        ["make", "repro"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "works\n"
    if whom == "all":
        os.killpg(process.pid, signal.SIGINT)
    else:
        import psutil

        found = psutil.Process(process.pid)
        wanted = found if whom == "make" else found.children()[0]
        wanted.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert out.splitlines()[-1] == "stopped after step 57 of 60: dvc repro goes on from there"
    assert process.returncode != 0


# In place of DVC: it ends at SIGINT, or misses it.
DVC = """
import signal, time
{}
try:
    print("works", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    raise SystemExit(3)
"""
MISSES = "signal.signal(signal.SIGINT, lambda *_: print('missed', flush=True))"
REPRODUCE = "from eridiff import reproduce as r; r.AGAIN_SECONDS = 0; r.sys.exit(r.reproduce([]))"


@pytest.mark.slow
@pytest.mark.parametrize(("misses", "said"), [("", "interrupted\n"), (MISSES, "missed\n")])
@pytest.mark.parametrize("ignored", ["", "trap '' INT; "], ids=["in front", "by a script's &"])
def test_a_run_ends_where_sigint_is_ignored_or_missed(tmp_path: Path, ignored: str, misses: str, said: str) -> None:
    (tmp_path / "dvc").mkdir()
    (tmp_path / "dvc/__init__.py").touch()
    (tmp_path / "dvc/__main__.py").write_text(DVC.format(misses))
    process = begin(
        ["sh", "-c", f'{ignored}exec {sys.executable} -c "{REPRODUCE}"'],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "works\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == said
    if misses:
        process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == f"{STOPPED_WORDS}\n"  # no stage said anything
    assert process.returncode == 143


# In place of DVC and its stage, which leaves the process group, and ends its step when it is told to stop.
TREE = """
import os, subprocess, sys, time
stage = "import signal, sys, time\\nfrom eridiff.core.stopping import stop_in_order\\n"
stage += "with stop_in_order(str) as asked:\\n"
stage += " print('works', flush=True)\\n while not asked(): time.sleep(0.05)\\n print('saved', flush=True)"
child = subprocess.Popen([sys.executable, "-c", stage], start_new_session=True)
print(os.getpid(), child.pid, os.getppid(), flush=True)
sys.exit(child.wait())
"""


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["make", "make repro's own process", "its supervisor", "dvc"])
def test_killed_alone_it_takes_dvc_and_the_stage_with_it(tmp_path: Path, whom: str) -> None:
    import psutil

    (tmp_path / "dvc").mkdir()
    (tmp_path / "dvc/__init__.py").touch()
    (tmp_path / "dvc/__main__.py").write_text(TREE)
    (tmp_path / "Makefile").write_text(f"repro:\n\t@exec {sys.executable} -m eridiff.reproduce\n")
    process = begin(
        ["make", "repro"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(2)]
    (pids,) = (line for line in said if line != "works\n")
    dvc, stage, guard = map(psutil.Process, map(int, pids.split()))
    own = guard.parent()
    assert own is not None and own.ppid() == process.pid
    killed = {"make": psutil.Process(process.pid), "dvc": dvc, "its supervisor": guard}.get(whom, own)
    killed.kill()
    rest = process.communicate(timeout=60)[0]  # at its end nobody can write any more
    assert "saved\n" in rest, rest
    _, living = psutil.wait_procs([dvc, stage, guard, own], timeout=20)
    assert living == []
    assert process.returncode != 0


# In place of DVC, which is deaf to Ctrl-C while its stage runs; the stage's step has no end.
DEAF = """
import signal, subprocess, sys
stage = "import time\\nfrom eridiff.core.errors import run_main\\nfrom eridiff.core.stopping import stop_in_order\\n"
stage += "def main():\\n with stop_in_order(lambda: 'stopped at once: dvc repro goes on after step 50 of 60'):\\n"
stage += "  print('works', flush=True)\\n  while True: time.sleep(0.05)\\nrun_main(main)"
child = subprocess.Popen([sys.executable, "-c", stage if not sys.argv[2:] else sys.argv[2]])
signal.signal(signal.SIGINT, signal.SIG_IGN)
child.wait()
print("ERROR: failed to reproduce 'train'", flush=True)
sys.exit(255)
"""
OTHER = "\"print('works', flush=True); import time; time.sleep(60)\""  # a stage that does not train


@pytest.mark.slow
@pytest.mark.parametrize("starter", ["make", ""], ids=["make", "without make"])
@pytest.mark.parametrize(
    ("stage", "last"), [("", AT_ONCE), (OTHER, f"{STOPPED_WORDS}\n")], ids=["a training, twice", "another stage, once"]
)
def test_ctrl_c_has_the_last_line(tmp_path: Path, stage: str, last: str, starter: str) -> None:
    (tmp_path / "dvc").mkdir()
    (tmp_path / "dvc/__init__.py").touch()
    (tmp_path / "dvc/__main__.py").write_text(DEAF)
    command = f"exec {sys.executable} -m eridiff.reproduce {stage}"
    (tmp_path / "Makefile").write_text(f"repro:\n\t@{command}\n")
    process = begin(
        ["make", "repro"] if starter else ["sh", "-c", command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "works\n"
    os.killpg(process.pid, signal.SIGINT)
    if not stage:
        assert process.stdout.readline() == NOTICE.decode()
        os.killpg(process.pid, signal.SIGINT)
    out = process.communicate(timeout=60)[0]
    assert out.splitlines(keepends=True)[-1] == last
    assert process.returncode != 0


def test_a_make_that_has_ended_already_is_noticed() -> None:
    code = (
        "import os, types\nfrom eridiff.core import stopping\n"
        "stopping._make = lambda: types.SimpleNamespace(pid=os.getppid() + 1)\nstopping.end_with_make()"
    )
    process = processes.start(code)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM


# In place of a Python that takes its time to start: it is still at it when make is killed.
LATE = """
import os
from eridiff.core.stopping import end_with_make
make = os.getppid()
print("starts", flush=True)
while os.getppid() == make:
    os.sched_yield()
end_with_make()
print("goes on", flush=True)
"""


def test_a_make_that_was_killed_while_python_started_is_noticed(tmp_path: Path) -> None:
    recipe = (ROOT / "Makefile").read_text().splitlines()[-1].split("$(PYTHON)")[0]  # a tab, @ and what is before it
    (tmp_path / "late.py").write_text(LATE)
    (tmp_path / "Makefile").write_text(f"repro:\n{recipe}{sys.executable} late.py\n")
    process = begin(
        ["make", "repro"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "starts\n"
    process.kill()
    assert process.communicate(timeout=60)[0] == ""


def test_what_make_said_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MAKE, str(os.getppid()))
    monkeypatch.delenv("MAKELEVEL", raising=False)
    end_with_make()
    assert MAKE not in os.environ


def test_a_make_that_ignores_ctrl_c_is_told_that_it_failed(tmp_path: Path) -> None:
    (tmp_path / "launch.py").write_text(LAUNCH)
    (tmp_path / "Makefile").write_text(f"repro:\n\t@exec {sys.executable} launch.py\n")
    process = begin(
        ["sh", "-c", "trap '' INT; exec make repro"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "works\n"
    process.send_signal(signal.SIGTERM)
    assert "stopped after step 57 of 60" in process.communicate(timeout=60)[0]
    assert process.returncode != 0


@pytest.mark.slow
def test_a_training_saves_its_state_at_the_end_of_its_step(tmp_path: Path) -> None:
    """At a step where none is due; what follows is what a straight run gives."""
    family = FAMILIES[0]
    params = training.params_of({"steps": 6, "save_every": 6})
    data = training.random_set(family, tmp_path, params)
    steps: list[int] = []

    def asked() -> int | None:
        steps.append(1)
        return signal.SIGTERM if len(steps) == 3 else None

    with pytest.raises(Stopped, match=r"^stopped after step 3 of 6: dvc repro goes on from there$") as stopped:
        train(training.start(family, params), data, tmp_path / "state", 50, None, asked)
    assert stopped.value.signum == signal.SIGTERM
    run = training.start(family, params)
    optimizer = torch.optim.AdamW(run.adapters.values())
    done, table = load_state(tmp_path / "state", {"adapters": run.adapters}, optimizer)
    assert (done, len(table["loss"])) == (3, 3)
    resumed = training.start(family, params)
    train(resumed, data, tmp_path / "state", 50)
    straight = training.start(family, params)
    train(straight, data, tmp_path / "other", 50)
    assert all(torch.equal(resumed.adapters[name], straight.adapters[name]) for name in straight.adapters)
