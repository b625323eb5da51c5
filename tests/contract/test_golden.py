"""What stages and families put out, against tests/golden/outs.json: results do not move while their version stays."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.goldens import Golden, fault, goldens, moved, plain, read_record

GOLDENS = [pytest.param(one, id=one.name, marks=[pytest.mark.slow] if one.slow else []) for one in goldens()]


@pytest.mark.parametrize("golden", GOLDENS)
def test_results_are_those_of_their_versions(golden: Golden, tmp_path: Path) -> None:
    assert fault(golden, read_record(), plain(golden.make(tmp_path))) is None


def test_every_stage_and_family_has_one_and_every_version_is_of_one() -> None:
    """And nothing is recorded that nobody makes."""
    assert set(read_record()) == {golden.name for golden in goldens()}
    named: dict[str | None, set[str]] = {}
    for golden in goldens():
        named.setdefault(golden.family, set()).update(golden.versions)
    every = set(goldens()[0].known())
    assert set.union(*named.values()) >= every
    for golden in goldens():
        if golden.family:
            assert named[golden.family] >= set(golden.known()) - every


def other(value: Any) -> Any:
    """The value with its last leaf moved by two percent, or made another."""
    if isinstance(value, dict | list) and value:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        value[keys[-1]] = other(value[keys[-1]])
        return value
    return value * 1.02 + 0.02 if isinstance(value, float) else f"{value}x"


@pytest.mark.parametrize("golden", goldens(), ids=lambda golden: golden.name)
def test_results_that_move_without_their_version_are_a_fault(golden: Golden) -> None:
    record = read_record()
    outs = record[golden.name]["outs"]
    assert fault(golden, record, outs) is None
    changed = other(copy.deepcopy(outs))
    said = fault(golden, record, changed)
    assert said and "results moved and no version did" in said and golden.versions[0] in said
    raised = {golden.name: {"versions": dict.fromkeys(golden.versions, 0), "outs": outs}}
    assert "run `python -m tests.goldens`" in (fault(golden, raised, changed) or "")
    assert "nothing is recorded" in (fault(golden, {}, outs) or "")


@pytest.mark.parametrize(
    ("before", "now", "rounding", "count"),
    [
        (1.0, 1.0009, 1e-3, 0),
        (1.0, 1.002, 1e-3, 1),
        (0.0, 0.00009, 1e-3, 0),
        (1.0, 1.0009, 0.0, 1),
        (1, 1.0, 1e-3, 1),
        (3, 4, 0.5, 1),
        ({"a": [1.0, "x"]}, {"a": [1.0, "y"]}, 1e-3, 1),
        ({"a": 1}, {"b": 1}, 1e-3, 2),
        ([1], [1, 1], 1e-3, 1),
        (float("nan"), 1.0, 1e-3, 1),
    ],
)
def test_what_counts_as_moved(before: Any, now: Any, rounding: float, count: int) -> None:
    assert len(moved(before, now, rounding)) == count


def test_the_record_of_cuda_names_every_family() -> None:
    """Goldens that only CUDA takes (tests/gpugoldens.py): when and on what they last passed, `never` where not."""
    record = json.loads((ROOT / "tests/golden/cuda.json").read_text("utf-8"))
    assert set(record) == {golden.family for golden in goldens() if golden.family}
    for entry in record.values():
        assert set(entry) == {"passed", "on", "versions", "outs"}
        assert (entry["passed"] == "never") == (entry["outs"] is None) == (entry["on"] is None)
