"""Each leaf of params.yaml reruns the stages that tests/leaves.txt lists, as `dvc status` itself says."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.e2e.harness import Clone, make_clone
from tests.leaves import listed_leaves, mutate, schema_leaves

pytestmark = pytest.mark.e2e


def test_every_leaf_is_listed() -> None:
    assert sorted(listed_leaves()) == schema_leaves()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone whose outs are recorded as they would be after a run: no stage needs to be started for it."""
    made = make_clone(tmp_path_factory.mktemp("leaves"), "clone", quick=False)
    made.repro("captions", "buckets")
    made.run("dvc", "commit", "-f", "-q", "captions", "buckets")
    for out in ("data/latents", "data/text", "data/lora", "data/samples/images", "data/export"):
        (made.root / out).mkdir(parents=True)
        (made.root / out / "file").write_text("something")
    for out in ("data/loss.tsv", "data/samples/grid.png", "data/samples/metrics.json"):
        (made.root / out).write_text("{}")
    made.run("dvc", "commit", "-f", "-q")
    return made


def leaves_of(value: Any, path: str = "") -> Iterator[tuple[str, tuple[Any, ...]]]:
    """(dotted path, keys) of every leaf that stands in params.yaml."""
    for key, item in value.items():
        name = f"{path}.{key}" if path else key
        if isinstance(item, dict):
            yield from ((n, (key, *keys)) for n, keys in leaves_of(item, name))
        else:
            yield name, (key,)


def with_leaf(params: dict[str, Any], leaf: str) -> dict[str, Any]:
    """params with one leaf changed, or added where it stands for its default."""
    changed = copy.deepcopy(params)
    section: Any = changed
    *parents, last = leaf.replace("[]", ".0").split(".")
    for parent in parents:
        if isinstance(section, dict) and not isinstance(section.get(parent), dict | list):
            section[parent] = {}
        section = section[int(parent)] if isinstance(section, list) else section[parent]
    if isinstance(section.get(last), list) and section[last] and isinstance(section[last][0], dict):
        section[last] = section[last] * 2
    else:
        section[last] = mutate(section.get(last))
    return changed


# The two keys that dvc.yaml interpolates: another value is another path, so it must be one that exists.
OTHER = {"model.family": {"family": "flux"}, "model.base": {"base": "tiny-flux"}}


def test_each_leaf_reruns_what_is_listed(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc.repo import Repo

    path: Path = clone.root / "params.yaml"
    yaml = YAML()
    original = YAML(typ="safe").load(path.read_text("utf-8"))
    monkeypatch.chdir(clone.root)

    def stale() -> set[str]:
        with Repo(str(clone.root)) as repo:
            return {name.split(":")[-1] for name in repo.status()}

    assert stale() == set()
    wrong = {}
    for leaf, stages in listed_leaves().items():
        params = with_leaf(original, leaf)
        if leaf in OTHER:
            params = {**original, "model": {**original["model"], **OTHER[leaf]}}
        with path.open("w", encoding="utf-8") as file:
            yaml.dump(params, file)
        if (found := stale()) != stages | {"check"}:
            wrong[leaf] = found
    assert wrong == {}
