"""The state from which a training resumes: adapters, optimizer, average, losses, in the store's runs/TRAIN_KEY/.

It is no DVC out, since DVC empties outs before a stage runs. The key is a digest of everything that the
training depends on, so another config never resumes from it; a lock refuses a second holder.

    state-000057.sealed.safetensors               after step 57, with a checksum of all bytes; the last two are kept
    checkpoints/adapters-000050.sealed.safetensors    the adapters (or `average`) after step 50

A damaged state is put aside, and the one before it taken: the steps between are done again, to the same numbers.
"""

import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eridiff.core.errors import DataError, TrainError
from eridiff.core.files import canonical_json, read_text, write_text
from eridiff.core.json_files import parse_json
from eridiff.core.progress import warn
from eridiff.formats.safetensors import open_sealed, raw_tensors, write_sealed_tensors
from eridiff.formats.seals import SEALED_NAME

EARLIER_STATE = "state.safetensors"  # of before, without a checksum
STATES = "state-*.sealed.safetensors"
STATE_NAME = re.compile(r"state-(\d+)\.sealed\.safetensors")
KEPT = 2  # states


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a training's folder.

    Raises: TrainError where another process holds it, naming that process.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / "holder"
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        name = read_text(holder) if holder.exists() else "another process"
        raise TrainError(f"this training is already running ({name}): wait for it, or stop it first.") from None
    try:
        write_text(holder, f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        lock.release()


def state_path(folder: Path, step: int) -> Path:
    """Where the state after a step lies."""
    return folder / f"state-{step:06d}.sealed.safetensors"


def states(folder: Path) -> list[Path]:
    """The states there are, the latest first."""
    found = {path: match for path in folder.glob(STATES) if (match := STATE_NAME.fullmatch(path.name))}
    earlier = folder / EARLIER_STATE
    return [*sorted(found, key=lambda path: -int(found[path][1])), *([earlier] if earlier.exists() else [])]


def stopped_at_once(folder: Path, steps: int) -> str:
    """What is to be said of the next run where a training did not end its step: the latest state that there is."""
    there = states(folder)
    if not there:
        return "stopped at once: no state was saved yet, so dvc repro starts this training again"
    match = STATE_NAME.fullmatch(there[0].name)
    place = f"after step {int(match[1])} of {steps}" if match else "where the kept state stands"
    return f"stopped at once: dvc repro goes on {place}"


def save_state(
    folder: Path,
    step: int,
    groups: Mapping[str, Mapping[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    table: Mapping[str, list[float]],
) -> None:
    """Write the state after a step, atomically, and keep the one before it.

    groups: name -> tensors (adapters, average). States of later steps go: they are of a training to more steps, which
    was begun again.
    """
    tensors = {f"{group}/{name}": t for group, named in groups.items() for name, t in named.items()}
    scalars: dict[str, Any] = {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in _unwrapped(values).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                scalars[f"{index}/{name}"] = value
    tensors |= {f"table/{name}": torch.tensor(column, dtype=torch.float64) for name, column in table.items()}
    facts = {"step": step, "scalars": scalars, "columns": list(table), "tensors": len(tensors)}
    path = state_path(folder, step)
    write_sealed_tensors(path, raw_tensors(tensors), {"eridiff": canonical_json(facts)})
    there = states(folder)
    for other in (*there[: there.index(path)], *there[there.index(path) + KEPT :]):
        other.unlink(missing_ok=True)


def load_state(
    folder: Path,
    groups: Mapping[str, Mapping[str, Tensor]],
    optimizer: torch.optim.Optimizer,
) -> tuple[int, dict[str, list[float]]]:
    """Fill groups and optimizer from the latest sound state; returns the step that it stands after and the table.

    (0, {}) where there is none. Damaged states are named and put aside.
    """
    for path in states(folder):
        try:
            facts, tensors = _read(path, groups)
        except DataError as error:
            aside = path.with_name(f"{path.name}.damaged")
            os.replace(path, aside)
            warn(f"the state {error} It is put aside as {aside.name}: training goes on from the one before it, if any.")
            continue
        for group, named in groups.items():
            for name, tensor in named.items():
                tensor.data.copy_(tensors[f"{group}/{name}"])
        optimizer.load_state_dict({**optimizer.state_dict(), "state": _optimizer_state(tensors, facts["scalars"])})
        table = {name: [float(value) for value in tensors[f"table/{name}"]] for name in facts["columns"]}
        return int(facts["step"]), table
    return 0, {}


def _read(path: Path, groups: Mapping[str, Mapping[str, Tensor]]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and tensors of a state, all that will be asked for.

    Raises: DataError where it is damaged, or is missing something.
    """
    file = open_sealed(path, "")
    wanted = {f"{group}/{name}": tuple(t.shape) for group, named in groups.items() for name, t in named.items()}
    try:
        facts: dict[str, Any] = parse_json(file.metadata["eridiff"])
        wanted |= {f"table/{name}": (int(facts["step"]),) for name in facts["columns"]}
        count = facts.get("tensors", len(file.names))  # states of before do not say
        dict(facts["scalars"])
    except (KeyError, ValueError, TypeError, AttributeError):
        raise DataError(f"{path} is damaged: it does not say what it holds.") from None
    lost = [name for name, shape in wanted.items() if name not in file or tuple(file.header[name]["shape"]) != shape]
    if lost or count != len(file.names):
        raise DataError(f"{path} is damaged: it is missing {lost[0] if lost else 'tensors of the optimizer'}.")
    return facts, {name: file.raw(name).torch() for name in file.names}


def checkpoint_path(state: Path, group: str, step: int) -> Path:
    """Where the adapters (or their average) of a step lie in the state's folder."""
    return state / "checkpoints" / f"{group}-{step:06d}.sealed.safetensors"


def save_adapters(state: Path, step: int, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write the checkpoint of a step."""
    for group, tensors in groups.items():
        write_sealed_tensors(checkpoint_path(state, group, step), raw_tensors(tensors), {})


def load_adapters(state: Path, group: str, step: int) -> dict[str, Tensor]:
    """The adapters (or their average) of a saved step.

    Raises: TrainError where the checkpoint is gone or damaged.
    """
    path = checkpoint_path(state, group, step)
    earlier = path.with_name(path.name.replace(SEALED_NAME, "."))  # of before, without a checksum
    way_out = f"Lower train.keep, so that step {step} is not put out, or remove {state}: training then starts again."
    try:
        file = open_sealed(earlier if earlier.exists() and not path.exists() else path, way_out)
    except FileNotFoundError:
        raise TrainError(f"the checkpoint {path} is gone. {way_out}") from None
    except DataError as error:
        raise TrainError(f"the checkpoint {error}") from None
    return {name: file.raw(name).torch() for name in file.names}


def _unwrapped(values: Mapping[str, Any]) -> dict[str, Any]:
    """One tensor's optimizer state without dicts inside: bitsandbytes wraps its 8-bit moments, and takes them flat."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


def _optimizer_state(tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Back to the nested form of an optimizer's state_dict."""
    state: dict[int, dict[str, Any]] = {}
    found = {key.removeprefix("optimizer/"): value for key, value in tensors.items() if key.startswith("optimizer/")}
    for key, value in {**found, **scalars}.items():
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = value
    return state
