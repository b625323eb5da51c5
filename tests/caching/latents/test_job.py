"""The job of the stage `latents`: plan, drift check, load and fill, as the stage and `why` use it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eridiff.caching.drift_records import NO_DRIFT, DriftRecords, library_versions
from eridiff.caching.job import Filled
from eridiff.caching.latents.job import LatentJob, latent_job
from eridiff.caching.latents.plan import common_key_fields, plan_samples
from eridiff.caching.processes import Ranks
from eridiff.core.files import digest_file
from eridiff.formats.tables import Row
from eridiff.params.latents import LatentParams
from eridiff.params.model import ModelParams
from eridiff.store.pixels import PixelDigests
from tests.support.bases import FAMILIES

FAMILY = FAMILIES[0]
PARAMS = LatentParams(batch_size=2, flip=True)
MODEL = ModelParams(family=FAMILY, base=f"tiny-{FAMILY}", allow_cpu=True)


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    """Three pictures, of one size, and their rows of buckets.parquet."""
    (tmp_path / "raw").mkdir()
    sides = {f"{name}_{side}": 64 for name in ("bucket", "resize", "original") for side in "wh"}
    found = []
    for number in range(3):
        path = tmp_path / "raw" / f"{number}.png"
        Image.fromarray(np.full((64, 64, 3), 40 * number + 10, np.uint8)).save(path)
        place = {"path": path.name, "file_digest": digest_file(path), "repeats": 1, "crop_left": 0, "crop_top": 0}
        found.append(place | sides)
    return found


def make_job(folder: Path, rows: list[Row], store: str = "store") -> LatentJob:
    return latent_job(MODEL, PARAMS, rows, folder / "raw", folder / store, folder / "out")


def fill(job: LatentJob) -> Filled:
    filled = job.fill(Ranks(), 0)
    assert filled is not None
    return filled


def test_a_second_run_loads_nothing_and_gives_the_same(tmp_path: Path, rows: list[Row]) -> None:
    job = make_job(tmp_path, rows)
    assert job.incomplete(NO_DRIFT)
    first = fill(job)
    assert (first.counts.samples, first.counts.encoded) == (6, 6)
    assert first.backend["device"] == "cpu"
    assert first.report[0].startswith("latents: 6 samples, 6 encoded, 0 reused, 1 shard written")
    assert first.facts.keys() == {"scaling_factor", "shift_factor", "probe"}
    again = make_job(tmp_path, rows)
    assert not again.incomplete(NO_DRIFT)
    second = fill(again)
    assert (second.counts.encoded, second.backend) == (0, {})
    assert again.part.load.seconds == 0.0
    assert (list(second.index), second.facts) == (list(first.index), first.facts)


def test_the_drift_check_is_recorded_for_this_encoder(tmp_path: Path, rows: list[Row]) -> None:
    job = make_job(tmp_path, rows)
    fill(job)
    memory = DriftRecords(job.root, job.encoder)
    assert memory.at(library_versions()) == NO_DRIFT
    assert memory.references[NO_DRIFT].values == job.drift_values()


def test_the_plan_is_that_of_the_bases_vae(tmp_path: Path, rows: list[Row]) -> None:
    """And a drift id of its numbers is in every key."""
    job = make_job(tmp_path, rows)
    vae = job.part.pointer.components["vae"].identity()
    common = common_key_fields(PARAMS, vae, job.part.family.VERSIONS.family.vae_encode)
    samples = plan_samples(rows, PARAMS, common, 8, job.pictures, PixelDigests(tmp_path / "other"))
    assert list(job.plan(NO_DRIFT).keys) == list(samples.keys)
    assert job.plan(NO_DRIFT) is job.plan(NO_DRIFT)
    assert not set(job.plan("later").keys) & set(samples.keys)
    assert {sample.key_fields["probe"] for sample in job.plan("later")} == {"later"}


def test_another_process_says_what_it_encoded_and_puts_nothing_out(
    tmp_path: Path, rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    """With nothing to share: the plan is empty."""
    fill(make_job(tmp_path, rows))
    shown: list[Any] = []
    with Ranks(module="m", size=2, launch=tmp_path.name) as first:
        first.announce_new([], 0)
        first.announce([], 0)
        other = Ranks(module="m", index=1, size=2, launch=tmp_path.name)
        shown.append(make_job(tmp_path, rows).fill(other, 0))
    assert shown == [None]
    assert "latents (process 2 of 2): 0 encoded" in capsys.readouterr().out
