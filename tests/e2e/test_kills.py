"""A short round of the driver that kills (tests/kills.py)."""

from pathlib import Path

import pytest

from tests.kills import attack

pytestmark = pytest.mark.e2e


def test_killed_anywhere_the_next_run_goes_on(tmp_path: Path) -> None:
    done = attack(tmp_path, 3, seed=16, latest=12.0, cold=False)
    assert sum(done.values()) >= 3
