"""Outcomes of stages, read from what DVC prints."""

from typing import Any

import pytest

from eridiff.flow.outcomes import CACHED, announced, read_outcome, worth_showing


@pytest.mark.parametrize(
    ("code", "lines", "expected"),
    [
        (0, ["Stage 'a' didn't change, skipping", "Data and pipelines are up to date."], CACHED),
        (0, ["Stage 'a' is cached - skipping run, checking out outputs"], "Restored"),
        (0, ["Running stage 'a':", "> python -m a", "a: 3 samples", "Updating lock file 'dvc.lock'"], "a: 3 samples"),
        (0, ["Verifying data sources in stage: 'data/raw.dvc'"], "done"),
        (0, ["'data/raw.dvc' didn't change, skipping"], CACHED),
        (0, ["Running stage 'a':", "a: 3", "WARNING: The following untracked files were present in", "\ta/.x"], "a: 3"),
        (255, ["Running stage 'a':", "error: no b", "       or c", "ERROR: failed to reproduce 'a'"], "no b\nor c"),
        (
            255,
            ["Running stage 'a':", "Killed", "ERROR: failed to reproduce 'a'"],
            "Killed\nERROR: failed to reproduce 'a'",
        ),
        (255, [], "it failed without a word"),
    ],
)
def test_an_outcome_is_read_from_what_dvc_says(code: int, lines: list[str], expected: Any) -> None:
    outcome = read_outcome(code, lines)
    assert expected in (outcome, outcome.state, outcome.message)
    assert outcome.well == (code == 0)


def test_dvcs_lines_tell_whose_turn_it_is_and_its_advice_is_not_shown() -> None:
    turns = {
        "Running stage 'a':": "a",
        "Stage 'a' didn't change, skipping": "a",
        "Stage 'a' is cached - skipping run, checking out outputs": "a",
        "Verifying data sources in stage: 'data/raw.dvc'": "data/raw.dvc",
        "'data/raw.dvc' didn't change, skipping": "data/raw.dvc",
        "'a' is a word": None,
        "said: 'a'": None,
    }
    assert {line: announced(line) for line in turns} == turns
    assert not any(map(worth_showing, ("", "\tgit add dvc.lock", "To track the changes with git, run:")))
    assert all(map(worth_showing, (*turns, "> python -m a", "ERROR: b", "To be or not")))
