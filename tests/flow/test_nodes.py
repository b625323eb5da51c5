"""Stages as the flow runs them: their order, and what a change may run."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from eridiff.core.config import read_yaml
from eridiff.core.errors import ConfigError
from eridiff.flow.nodes import Node, may_run, read_nodes, up_to
from tests.conftest import ROOT

OF_DVC = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # pygtrie, under DVC's graph
NODES = (
    Node(name="a", upstream=()),
    Node(name="b", upstream=()),
    Node(name="c", upstream=("a",)),
    Node(name="d", upstream=("b", "c")),
)


@OF_DVC
def test_nodes_are_the_stages_of_dvc_yaml_with_producers_first() -> None:
    nodes = read_nodes(ROOT)
    record = read_yaml(ROOT / "dvc.yaml")["stages"]
    assert {node.name: node.gpu for node in nodes} == {n: s["meta"]["resource"] == "gpu" for n, s in record.items()}
    place = {node.name: number for number, node in enumerate(nodes)}
    assert all(place[name] < place[node.name] for node in nodes for name in node.upstream)
    assert next(node for node in nodes if node.name == "train").upstream == ("buckets", "captions", "latents", "text")


def test_what_reads_from_a_changed_stage_may_run() -> None:
    assert may_run(NODES, {}) == set()
    assert may_run(NODES, {"a": []}) == {"a", "c", "d"}
    assert may_run(NODES, {"b": []}) == {"b", "d"}
    assert [node.name for node in up_to(NODES, "c")] == ["a", "c"]
    assert up_to(NODES, None) == NODES
    with pytest.raises(ConfigError, match="no stage 'e'"):
        up_to(NODES, "e")


def make_stage(folder: Path, meta: dict[str, Any]) -> None:
    """A DVC repository of one stage."""
    from dvc.repo import Repo

    Repo.init(str(folder), no_scm=True).close()
    with (folder / "dvc.yaml").open("w") as file:
        YAML().dump({"stages": {"one": {"cmd": "true", "meta": meta}}}, file)


@OF_DVC
def test_meta_says_what_a_stage_needs(tmp_path: Path) -> None:
    make_stage(tmp_path, {"resource": "gpu", "network": True, "timeout": 7200})
    assert read_nodes(tmp_path) == (Node(name="one", upstream=(), gpu=True, network=True, timeout=7200),)


@OF_DVC
@pytest.mark.parametrize("meta", [{"resource": "tpu"}, {"network": "yes"}, {"timeout": -1}, {"timeout": "1h"}])
def test_meta_that_is_not_known_is_refused(tmp_path: Path, meta: dict[str, Any]) -> None:
    make_stage(tmp_path, meta)
    with pytest.raises(ConfigError, match=f"meta.{next(iter(meta))} of stage 'one'"):
        read_nodes(tmp_path)
