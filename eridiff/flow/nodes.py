"""The stages of a project as the flow runs them: the nodes of DVC's graph, and which of them may have to run."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eridiff.core.errors import ConfigError, did_you_mean
from eridiff.dvc.graph import Graph

META = {"resource": ("cpu", "gpu"), "network": (True, False)}  # and timeout, in seconds


@dataclass(frozen=True, kw_only=True)
class Node:
    """One stage of a project, or a `.dvc` file whose data it reads."""

    name: str
    """As `dvc repro -s` takes it."""
    upstream: tuple[str, ...]
    """Names of the nodes whose outs it reads."""
    gpu: bool = False
    """meta.resource is gpu: it takes a slot of a GPU."""
    network: bool = False
    """meta.network: it is tried again where it fails."""
    timeout: float | None = None
    """meta.timeout, in seconds."""


def read_nodes(folder: Path) -> tuple[Node, ...]:
    """The nodes of the project in a folder, producers first.

    Raises: ConfigError where DVC cannot read the project, or a stage's `meta` is not what this module knows.
    """
    import networkx

    graph = Graph(folder)
    try:
        index = graph.repo.index.graph
        if not index:
            raise ConfigError(f"DVC finds no stages in {folder}: is its dvc.yaml ignored by git?")
        return tuple(
            _node(_name(stage, folder), stage.meta or {}, tuple(_name(other, folder) for other in index[stage]))
            for stage in networkx.dfs_postorder_nodes(index)
        )
    finally:
        graph.close()


def _name(stage: Any, folder: Path) -> str:
    """A stage's name for `dvc repro` in the folder: DVC's own depends on where this process stands."""
    file = os.path.relpath(stage.path, folder)
    if not stage.cmd:
        return file
    return str(stage.name) if file == "dvc.yaml" else f"{file}:{stage.name}"


def _node(name: str, meta: Mapping[str, Any], upstream: tuple[str, ...]) -> Node:
    for key, choices in META.items():
        if key in meta and meta[key] not in choices:
            raise ConfigError(f"dvc.yaml: meta.{key} of stage '{name}' is {meta[key]!r}. Known: {choices}.")
    timeout = meta.get("timeout")
    if timeout is not None and not (type(timeout) in (int, float) and timeout > 0):
        raise ConfigError(f"dvc.yaml: meta.timeout of stage '{name}' is {timeout!r}: it is a number of seconds.")
    gpu, network = meta.get("resource") == "gpu", bool(meta.get("network"))
    return Node(name=name, upstream=tuple(sorted(upstream)), gpu=gpu, network=network, timeout=timeout)


def up_to(nodes: Sequence[Node], last: str | None) -> tuple[Node, ...]:
    """The nodes that one of them needs, itself included; all where none is named."""
    if last is None:
        return tuple(nodes)
    if last not in {node.name for node in nodes}:
        raise ConfigError(f"stop_at: this project has no stage '{last}'.{did_you_mean(last, [n.name for n in nodes])}")
    wanted = {last}
    for node in reversed(nodes):
        if node.name in wanted:
            wanted |= set(node.upstream)
    return tuple(node for node in nodes if node.name in wanted)


def may_run(nodes: Sequence[Node], status: Mapping[str, Any]) -> set[str]:
    """Names of the nodes that `dvc status --json` calls changed, and of all that read from them, directly or not."""
    found: set[str] = set()
    for node in nodes:
        if node.name in status or found & set(node.upstream):
            found.add(node.name)
    return found
