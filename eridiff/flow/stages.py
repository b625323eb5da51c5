"""What a run of a project is made of: its stages as DVC's graph has them, what may have to run, what came of each."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eridiff.core.errors import ConfigError, did_you_mean
from eridiff.dvc.graph import Graph

# What DVC prints before a stage's own output, and instead of it.
ANNOUNCED = re.compile(
    r"(?:Running stage|Stage|Verifying data sources in stage:) '([^']+)'|'([^']+\.dvc)' didn't change, skipping$"
)
ADVICE = re.compile(
    r"(Generating|Updating) lock file |Use `dvc |Ran experiment|To (track|enable|apply|promote) |\t"
    r"|WARNING: The following untracked files were present in the experiment"
)
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


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a stage: Cached, Restored, Completed, Failed or TimedOut, and a sentence."""

    state: str
    message: str

    @property
    def well(self) -> bool:
        """Whether what reads its outs may run."""
        return self.state not in ("Failed", "TimedOut")


CACHED = Outcome(state="Cached", message="nothing that it depends on changed")


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


def announced(line: str) -> str | None:
    """The stage whose turn a line of DVC's output says it is."""
    match = ANNOUNCED.match(line)
    return match[1] or match[2] if match else None


def read_outcome(code: int, lines: Sequence[str]) -> Outcome:
    """What came of a stage, from DVC's exit code and the lines since its turn came."""
    if code:
        return Outcome(state="Failed", message=own_message(lines))
    first = next((line for line in lines if announced(line)), "")
    if first.endswith("didn't change, skipping"):
        return CACHED
    if "is cached - skipping run" in first:
        return Outcome(state="Restored", message="taken from the run-cache: it ran with these inputs before")
    ours = [line for line in lines if line and not _is_of_dvc(line)]
    return Outcome(state="Completed", message=ours[-1] if ours else "done")


def own_message(lines: Sequence[str]) -> str:
    """What a failed stage says itself (`error: ...` and the lines indented under it), else what DVC says."""
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if starts:
        block = [lines[starts[-1]].removeprefix("error: ")]
        for line in lines[starts[-1] + 1 :]:
            if not line.startswith("  "):
                break
            block.append(line.strip())
        return "\n".join(block)
    said = [line for line in lines if line]
    theirs = [line for line in said if not _is_of_dvc(line)]
    of_dvc = [line for line in said if line.startswith("ERROR: ")]
    parts = [*theirs[-1:], *of_dvc[-1:]]
    return "\n".join(parts) or "it failed without a word"


def worth_showing(line: str) -> bool:
    """Whether a line is more than DVC's advice on what to type next, or nothing."""
    return bool(line) and not ADVICE.match(line)


def _is_of_dvc(line: str) -> bool:
    starts = ("> ", "ERROR: ", "WARNING: ")
    return bool(announced(line) or ADVICE.match(line)) or line.startswith(starts) or "up to date." in line
