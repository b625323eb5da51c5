"""A training that is killed and taken up again equals one that was not; more steps; one holder at a time."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from eridiff.core.errors import TrainError
from eridiff.family import Family, load_family
from eridiff.formats.safetensors import TensorFile, write_sealed_tensors, write_tensors
from eridiff.models.lora import read_checkpoint
from eridiff.params.train import TrainParams, kept_steps
from eridiff.training.checkpoint import put_out, train_key, write_losses
from eridiff.training.resume import EARLIER_STATE, checkpoint_path, hold, load_adapters, state_path, states
from eridiff.training.train import Table, train
from eridiff.versions import code_versions
from tests.support import processes, training
from tests.support.bases import FAMILIES, raised, source

# What each family is resumed with, so that each option is resumed with some family.
OPTIONS: dict[str, dict[str, Any]] = {
    "8bit": {"optimizer": {"name": "adamw8bit", "lr": 1e-2, "schedule": "cosine", "warmup_steps": 2}},
    "average": {"ema_decay": 0.8, "accumulation": 2, "batch_size": 1, "caption_dropout": 0.3},
    "plain": {},
}
CASES = [(family, list(OPTIONS)[number % len(OPTIONS)]) for number, family in enumerate(FAMILIES)]
LINEAGE = {"trigger": None}


class Killed(Exception):
    """What ends a training in the middle."""


def kill_at(last: int) -> Callable[[int], None]:
    def preview(step: int) -> None:
        if step == last:
            raise Killed

    return preview


def run_training(
    family: str, params: TrainParams, folder: Path, state: Path, preview: Callable[[int], None] | None = None
) -> tuple[Table, dict[str, torch.Tensor]]:
    """A whole training, from what the state's folder holds; its table and its adapters."""
    data = training.random_set(family, folder, params, ((64, 96), (64, 64)))
    run = training.start(family, params)
    table, _ = train(run, data, state, 2, preview)
    return table, run.adapters


def publish(family: str, params: TrainParams, state: Path, table: Table, out: Path) -> dict[str, bytes]:
    put_out(state, params, load_family(family), LINEAGE, table, out / "lora")
    write_losses(out / "loss.tsv", table)
    return {path.name: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("family", "option"), CASES)
@pytest.mark.slow
def test_resumed_equals_straight(family: str, option: str, tmp_path: Path) -> None:
    """Killed after step 4 of 6 (state: step 4), and again after step 5: adapters, table and files are equal."""
    # On a CPU bitsandbytes compiles its update: slow, and another matter.
    with torch.compiler.set_stance("force_eager") if option == "8bit" else nullcontext():
        check_resumed(family, option, tmp_path)


def check_resumed(family: str, option: str, tmp_path: Path) -> None:
    lora = {"rank": 128 if option == "8bit" else 4}  # tensors under 4096 numbers keep 32 bits
    params = training.params_of({"steps": 6, "save_every": 4, "keep": 3, "lora": lora, **OPTIONS[option]})
    table, adapters = run_training(family, params, tmp_path, tmp_path / "straight")
    for step in (3, 5):
        with pytest.raises(Killed):
            run_training(family, params, tmp_path, tmp_path / "killed", kill_at(step))
    again, resumed = run_training(family, params, tmp_path, tmp_path / "killed")
    assert again == table
    assert list(again) == list(table)
    assert len(table["loss"]) == 6
    state = TensorFile(states(tmp_path / "killed")[0])
    moments = {state.raw(name).dtype for name in state.names if name.endswith(("/state1", "/exp_avg"))}
    assert ("U8" in moments) == (option == "8bit")
    assert all(torch.equal(adapters[name], resumed[name]) for name in adapters)
    files = publish(family, params, tmp_path / "straight", table, tmp_path / "out")
    assert files == publish(family, params, tmp_path / "killed", again, tmp_path / "out-2")
    average = [f"ema-{step:06d}.safetensors" for step in (4, 6)] if option == "average" else []
    assert list(files) == [*average, "step-000004.safetensors", "step-000006.safetensors", "loss.tsv"]


def key_of(changes: dict[str, Any], tmp_path: Path, content: str = "1", family: Family | None = None) -> str:
    (tmp_path / "input").write_text(content)
    pointer = source(FAMILIES[0]).pointers["denoiser"]
    return train_key(
        training.params_of(changes), pointer, {"captions": tmp_path / "input"}, family or load_family(FAMILIES[0])
    )


def test_what_the_states_key_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constant, cosine = {"schedule": "constant", "lr": 1e-3}, {"schedule": "cosine", "lr": 1e-3}
    same = key_of({"optimizer": constant}, tmp_path)
    assert key_of({"optimizer": constant, "steps": 99, "keep": 1}, tmp_path) == same
    others = [
        key_of({"optimizer": cosine}, tmp_path),
        key_of({"optimizer": cosine, "steps": 99}, tmp_path),
        key_of({"optimizer": constant, "seed": 8}, tmp_path),
        key_of({"optimizer": {**constant, "lr": 2e-3}}, tmp_path),
        key_of({"optimizer": constant, "save_every": 3}, tmp_path),
        key_of({"optimizer": constant}, tmp_path, content="2"),
        key_of({"optimizer": constant}, tmp_path, family=raised(load_family(FAMILIES[0]), "train")),
    ]
    assert len({same, *others}) == 8
    drawn = raised(load_family(FAMILIES[0]), "sample")
    assert key_of({"optimizer": constant}, tmp_path, family=drawn) == same
    stages = code_versions()
    later = stages.model_copy(update={"stages": stages.stages.model_copy(update={"train": 2})})
    monkeypatch.setattr("eridiff.training.checkpoint.code_versions", lambda: later)
    assert key_of({"optimizer": constant}, tmp_path) not in {same, *others}


@pytest.mark.slow
def test_more_steps_go_on_and_equal_a_straight_run(tmp_path: Path) -> None:
    family, seen = FAMILIES[0], list[int]()
    short, long = [training.params_of({"steps": steps, "keep": 9}) for steps in (3, 6)]
    run_training(family, short, tmp_path, tmp_path / "state")
    table, adapters = run_training(family, long, tmp_path, tmp_path / "state", seen.append)
    assert seen == [4, 5, 6]
    straight, expected = run_training(family, long, tmp_path, tmp_path / "straight")
    assert table == straight
    assert all(torch.equal(adapters[name], expected[name]) for name in expected)
    assert kept_steps(long) == [2, 4, 6]
    assert publish(family, long, tmp_path / "state", table, tmp_path / "a") == publish(
        family, long, tmp_path / "straight", straight, tmp_path / "b"
    )


def test_fewer_steps_begin_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family = FAMILIES[0]
    run_training(family, training.params_of({"steps": 4}), tmp_path, tmp_path / "state")
    table, adapters = run_training(family, training.params_of({"steps": 2}), tmp_path, tmp_path / "state")
    assert "the kept state is at step 4, past the 2 asked for: starting again" in capsys.readouterr().out
    straight, expected = run_training(family, training.params_of({"steps": 2}), tmp_path, tmp_path / "straight")
    assert table == straight
    assert all(torch.equal(adapters[name], expected[name]) for name in expected)


def test_a_finished_training_is_only_put_out(tmp_path: Path) -> None:
    family, params = FAMILIES[0], training.params_of({"steps": 2})
    table, adapters = run_training(family, params, tmp_path, tmp_path / "state")
    again, same = run_training(family, params, tmp_path, tmp_path / "state", kill_at(2))
    assert again == table
    assert all(torch.equal(adapters[name], same[name]) for name in adapters)


def test_what_is_put_out(tmp_path: Path) -> None:
    """The table's text, and each checkpoint's loss: the mean since the one before."""
    family, params = FAMILIES[0], training.params_of({"steps": 5, "save_every": 3, "keep": 2})
    table, _ = run_training(family, params, tmp_path, tmp_path / "state")
    files = publish(family, params, tmp_path / "state", table, tmp_path / "out")
    lines = files["loss.tsv"].decode().splitlines()
    assert lines[0] == "step\tloss\tgrad_norm\tlr"
    assert [line.split("\t")[0] for line in lines[1:]] == ["1", "2", "3", "4", "5"]
    assert lines[2].split("\t")[1] == f"{table['loss'][1]:.9g}"
    tensors, lineage, adapter = read_checkpoint(tmp_path / "out" / "lora" / "step-000005.safetensors")
    assert lineage == {"trigger": None, "step": 5, "loss": sum(table["loss"][3:5]) / 2, "ema": False}
    first = read_checkpoint(tmp_path / "out" / "lora" / "step-000003.safetensors")[1]
    assert first["loss"] == sum(table["loss"][:3]) / 3
    assert (adapter["r"], adapter["lora_alpha"]) == (4, 4.0)
    saved = load_adapters(tmp_path / "state", "adapters", 5)
    prefix = load_family(family).DENOISER
    assert {name: bytes(raw.data) for name, raw in tensors.items()} == {
        f"{prefix}.{name}": tensor.numpy().tobytes() for name, tensor in saved.items()
    }


Training = tuple[TrainParams, Table, dict[str, torch.Tensor], dict[str, bytes]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Training]:
    """A folder with the state of a training that was killed after step 5 of 6; and what a straight one gives."""
    folder = tmp_path_factory.mktemp("trained")
    params = training.params_of({"steps": 6, "ema_decay": 0.8, "keep": 3})
    table, adapters = run_training(FAMILIES[0], params, folder, folder / "straight")
    with pytest.raises(Killed):
        run_training(FAMILIES[0], params, folder, folder / "state", kill_at(5))
    return folder, (params, table, adapters, publish(FAMILIES[0], params, folder / "straight", table, folder / "b"))


@pytest.fixture
def killed(trained: tuple[Path, Training], tmp_path: Path) -> Training:
    """That state in tmp_path/state, after steps 2 and 4."""
    shutil.copytree(trained[0] / "state", tmp_path / "state")
    assert [path.name for path in states(tmp_path / "state")] == [
        "state-000004.sealed.safetensors",
        "state-000002.sealed.safetensors",
    ]
    return trained[1]


def check_goes_on(straight: Training, tmp_path: Path, steps: list[int]) -> None:
    """It does these steps, and ends as the straight one: table, adapters and what is put out."""
    params, table, adapters, files = straight
    seen = list[int]()
    again, resumed = run_training(FAMILIES[0], params, tmp_path, tmp_path / "state", seen.append)
    assert seen == steps
    assert again == table
    assert all(torch.equal(adapters[name], resumed[name]) for name in adapters)
    assert publish(FAMILIES[0], params, tmp_path / "state", again, tmp_path / "a") == files


def flip(path: Path, place: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])


def test_a_damaged_state_is_put_aside_and_the_one_before_taken(
    killed: Training, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latest = states(tmp_path / "state")[0]
    flip(latest, latest.stat().st_size - 40)
    check_goes_on(killed, tmp_path, [3, 4, 5, 6])
    told = capsys.readouterr()
    assert f"warning: the state {latest} is damaged: its bytes do not give the checksum" in told.err
    assert f"put aside as {latest.name}.damaged" in told.err
    assert "resuming after step 2 of 6" in told.out
    assert latest.with_name(f"{latest.name}.damaged").exists()
    assert [path.name for path in states(tmp_path / "state")] == [state_path(Path(), n).name for n in (6, 4)]


def test_without_a_sound_state_training_starts_again(
    killed: Training, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latest, before = states(tmp_path / "state")
    latest.write_bytes(b"")
    flip(before, 3)  # the header's length
    check_goes_on(killed, tmp_path, [1, 2, 3, 4, 5, 6])
    assert capsys.readouterr().err.count("It is put aside") == 2


@pytest.mark.slow
@pytest.mark.parametrize("place", ["adapters", "average", "optimizer", "table"])
def test_a_state_that_lacks_a_tensor_is_put_aside(place: str, killed: Training, tmp_path: Path) -> None:
    """Though its checksum is right."""
    latest = states(tmp_path / "state")[0]
    file = TensorFile(latest)
    lost = next(name for name in file.names if name.startswith(f"{place}/"))
    if place == "optimizer":
        left = [name for name in file.names if not name.startswith("optimizer/0/")]
    else:
        left = [name for name in file.names if name != lost]
    facts = {"eridiff": file.metadata["eridiff"]}
    write_sealed_tensors(latest, {name: file.raw(name) for name in left}, facts)
    check_goes_on(killed, tmp_path, [3, 4, 5, 6])


def test_a_state_of_before_is_taken_and_told(
    killed: Training, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """state.safetensors and checkpoints/adapters-N.safetensors, without checksums."""
    latest, before = states(tmp_path / "state")
    before.unlink()
    for path in (latest, *(tmp_path / "state" / "checkpoints").iterdir()):
        file = TensorFile(path)
        name = EARLIER_STATE if path == latest else path.name.replace(".sealed", "")
        metadata = {key: text for key, text in file.metadata.items() if key != "seal"}
        write_tensors(path.with_name(name), {name: file.raw(name) for name in file.names}, metadata)
        path.unlink()
    check_goes_on(killed, tmp_path, [5, 6])
    assert f"{tmp_path / 'state' / EARLIER_STATE} carries no checksum, as files of before" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("harm", [Path.unlink, lambda path: flip(path, 900)], ids=["gone", "damaged"])
def test_a_checkpoint_that_is_gone_or_damaged_is_named(
    harm: Callable[[Path], None], killed: Training, tmp_path: Path
) -> None:
    """Before training goes on; that of the state's own step is written again from it."""
    harm(checkpoint_path(tmp_path / "state", "adapters", 4))
    check_goes_on(killed, tmp_path, [5, 6])
    path = checkpoint_path(tmp_path / "state", "average", 2)
    harm(path)
    words = rf"the checkpoint {path} is .*Lower train\.keep, so that step 2 is not put out, or remove"
    with pytest.raises(TrainError, match=words):
        run_training(FAMILIES[0], killed[0], tmp_path, tmp_path / "state")
    with pytest.raises(TrainError, match=words):
        publish(FAMILIES[0], killed[0], tmp_path / "state", killed[1], tmp_path / "c")
    run_training(
        FAMILIES[0], training.params_of({"steps": 6, "ema_decay": 0.8, "keep": 2}), tmp_path, tmp_path / "state"
    )


HOLD_AND_TRAIN = """
import os, sys, time
from pathlib import Path
from eridiff.training.resume import hold
from tests.support import training
from tests.support.bases import FAMILIES
from tests.training.test_resume import run_training
def wait(step):
    if step == 3:
        print("step 3", flush=True)
        while os.getppid() == parent:  # not after the tests
            time.sleep(0.1)
folder, parent = Path(sys.argv[1]), os.getppid()
with hold(folder / "state"):
    run_training(FAMILIES[0], training.params_of({"steps": 5}), folder, folder / "state", wait)
"""


@pytest.fixture(scope="module")
def holder(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[tuple[Path, subprocess.Popen[str]]]":
    """A process that trains three steps and waits; started before this module's other tests."""
    folder = tmp_path_factory.mktemp("held")
    process = processes.start(HOLD_AND_TRAIN, folder)
    yield folder, process
    process.kill()
    process.communicate()


@pytest.fixture(autouse=True, scope="module")
def start_early(request: pytest.FixtureRequest) -> None:
    """The process imports torch while the tests above run; not where no test that is run asks for it."""
    if any("holder" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("holder")


@pytest.mark.slow
def test_second_holder_is_refused_and_a_killed_one_resumed(
    holder: "tuple[Path, subprocess.Popen[str]]", tmp_path: Path
) -> None:
    folder, process = holder
    try:
        assert process.stdout is not None
        assert "step 3\n" in iter(process.stdout.readline, "")  # a slow machine prints progress before it
        with (
            pytest.raises(
                TrainError, match=rf"already running \(process {process.pid} on .+\): wait for it, or stop it"
            ),
            hold(folder / "state"),
        ):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    family, params = FAMILIES[0], training.params_of({"steps": 5})
    with hold(folder / "state"):
        assert (folder / "state" / "holder").read_text().startswith(f"process {os.getpid()} on ")
        table, adapters = run_training(family, params, folder, folder / "state")
    straight, expected = run_training(family, params, tmp_path, tmp_path / "straight")
    assert table == straight
    assert all(torch.equal(adapters[name], expected[name]) for name in expected)
    assert publish(family, params, folder / "state", table, tmp_path / "a") == publish(
        family, params, tmp_path / "straight", straight, tmp_path / "b"
    )
