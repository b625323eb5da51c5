"""Short rounds of the driver that flips bits in every kind of file; the long one is `python -m tests.flips`."""

from pathlib import Path

import pytest

from tests.flips import flips


@pytest.mark.parametrize(("seed", "count"), [(20, 30), pytest.param(21, 150, marks=pytest.mark.slow)])
def test_no_flipped_bit_is_used(seed: int, count: int, tmp_path: Path) -> None:
    planted = list(flips(count, seed, tmp_path))
    assert [flip.line() for flip in planted if flip.outcome == "used"] == []
    assert [flip.line() for flip in planted if flip.verified is False] == []
    found = {flip.kind for flip in planted if flip.outcome == "found"}
    assert found >= {"state", "checkpoint", "LoRA", "table", "pin", "drift check", "shard", "out", "pointer", "pixels"}


@pytest.mark.slow
def test_the_driver_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With readers that do not check, flips are used."""
    monkeypatch.setattr("eridiff.models.lora.check_out", lambda *_: None)
    planted = list(flips(150, 1, tmp_path))
    assert {flip.kind for flip in planted if flip.outcome == "used"} == {"LoRA"}
