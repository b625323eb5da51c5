"""The state from which a training resumes: adapters, optimizer, average, losses, in the store's runs/TRAIN_KEY/.

It is no DVC out, since DVC empties outs before a stage runs. The key is a digest of everything that the
training depends on, so another config never resumes from it; a lock refuses a second holder.
"""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eridiff.errors import DataError, TrainError
from eridiff.files import canonical_json, write_text
from eridiff.tensorfile import TensorFile, load_tensors, raw_tensors, write_tensors

STATE = "state.safetensors"


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
        name = holder.read_text("utf-8") if holder.exists() else "another process"
        raise TrainError(f"this training is already running ({name}): wait for it, or stop it first.") from None
    try:
        write_text(holder, f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        lock.release()


def save_state(
    folder: Path,
    step: int,
    groups: Mapping[str, Mapping[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    table: Mapping[str, list[float]],
) -> None:
    """Write the state after a step, atomically. groups: name -> tensors (adapters, average)."""
    tensors = {f"{group}/{name}": t for group, named in groups.items() for name, t in named.items()}
    scalars: dict[str, Any] = {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in _unwrapped(values).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                scalars[f"{index}/{name}"] = value
    tensors |= {f"table/{name}": torch.tensor(column, dtype=torch.float64) for name, column in table.items()}
    facts = {"step": step, "scalars": scalars, "columns": list(table)}
    write_tensors(folder / STATE, raw_tensors(tensors), {"eridiff": canonical_json(facts)})


def load_state(
    folder: Path,
    groups: Mapping[str, Mapping[str, Tensor]],
    optimizer: torch.optim.Optimizer,
) -> tuple[int, dict[str, list[float]]]:
    """Fill groups and optimizer from the state; returns the step that it stands after and the table so far.

    (0, {}) where there is no state. A damaged state is an error that says to remove it.
    """
    path = folder / STATE
    if not path.exists():
        return 0, {}
    try:
        facts = json.loads(TensorFile(path).metadata["eridiff"])
        tensors = load_tensors(path)
    except (DataError, KeyError, ValueError) as error:
        raise TrainError(f"the state {path} is damaged ({error}): remove it, training then starts again.") from None
    for group, named in groups.items():
        for name, tensor in named.items():
            tensor.data.copy_(tensors[f"{group}/{name}"])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": _optimizer_state(tensors, facts["scalars"])})
    table = {name: [float(value) for value in tensors[f"table/{name}"]] for name in facts["columns"]}
    return int(facts["step"]), table


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
