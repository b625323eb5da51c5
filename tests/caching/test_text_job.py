"""The job of the stage `text`: plan, drift check, load and fill, as the stage and `why` use it."""

from pathlib import Path

import pytest

from eridiff.caching.drift_records import NO_DRIFT, DriftRecords, library_versions
from eridiff.caching.job import Filled
from eridiff.caching.processes import Ranks
from eridiff.caching.text import plan_captions
from eridiff.caching.text_job import TextJob
from eridiff.formats.tables import Row
from eridiff.params.model import ModelParams
from eridiff.params.text import TextParams
from tests.support.bases import FAMILIES

FAMILY = FAMILIES[0]
PARAMS = TextParams(batch_size=2)
MODEL = ModelParams(family=FAMILY, base=f"tiny-{FAMILY}", allow_cpu=True)
LONG = "a very long caption " * 60
ROWS: list[Row] = [{"path": "1.png", "variants": ["a red fox", LONG]}, {"path": "2.png", "variants": ["a red fox"]}]


def make_job(folder: Path, rows: list[Row] = ROWS) -> TextJob:
    return TextJob(model=MODEL, params=PARAMS, rows=rows, root=folder / "store", out=folder / "out")


def fill(job: TextJob) -> Filled:
    filled = job.fill(Ranks())
    assert filled is not None
    return filled


def test_a_second_run_loads_nothing_and_gives_the_same(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    assert job.incomplete(NO_DRIFT)
    first = fill(job)
    assert (first.counts.samples, first.counts.encoded) == (3, 3)
    assert first.backend["device"] == "cpu"
    assert first.facts.keys() == {"probe"}
    again = make_job(tmp_path)
    assert not again.incomplete(NO_DRIFT)
    second = fill(again)
    assert (second.counts.encoded, second.backend) == (0, {})
    assert again.part.load.seconds == 0.0
    assert (list(second.index), second.facts) == (list(first.index), first.facts)


def test_what_is_cut_off_is_said_before_the_closing_line(tmp_path: Path) -> None:
    """Of entries that are reused, too."""
    for _ in range(2):
        lost, closing = fill(make_job(tmp_path)).report
        assert lost.endswith(f"tokens beyond the limit are lost of {LONG!r}")
        assert closing.startswith("text: 3 samples, ")


def test_the_drift_check_is_recorded_for_this_encoder(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    fill(job)
    memory = DriftRecords(job.root, job.encoder)
    assert memory.at(library_versions()) == NO_DRIFT
    assert memory.references[NO_DRIFT].values == job.drift_values()


def test_the_plan_is_that_of_the_bases_encoders(tmp_path: Path) -> None:
    """And a drift id of their numbers is in every key."""
    job = make_job(tmp_path)
    captions = plan_captions(ROWS, PARAMS, job.part.family, job.part.pointer.identity())
    assert [caption.key for caption in job.plan(NO_DRIFT)] == [caption.key for caption in captions]
    assert {caption.key_fields["probe"] for caption in job.plan("later")} == {"later"}


def test_another_process_says_what_it_encoded_and_puts_nothing_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With nothing to share: the plan is empty."""
    fill(make_job(tmp_path))
    with Ranks(module="m", size=2, launch=tmp_path.name) as first:
        first.announce([], 0)
        other = Ranks(module="m", index=1, size=2, launch=tmp_path.name)
        assert make_job(tmp_path).fill(other) is None
    assert "text (process 2 of 2): 0 encoded" in capsys.readouterr().out
