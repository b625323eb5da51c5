"""What the closing line says that reuse saved."""

import time
from pathlib import Path

import pytest

from eridiff.caching.fill import CacheCounts
from eridiff.caching.savings import TimedLoad, count_saving

VAE = {"vae": "a"}


def counts(samples: int, encoded: int, encode_seconds: float = 0.0) -> CacheCounts:
    return CacheCounts(
        what="latents",
        samples=samples,
        encoded=encoded,
        shards_written=2,
        seconds=0.81,
        encode_seconds=encode_seconds,
    )


def test_a_first_run_saves_nothing_and_the_next_says_what_it_did(tmp_path: Path) -> None:
    first = count_saving(counts(600, 600, 42.0), tmp_path, VAE)
    assert first.line() == "latents: 600 samples, 600 encoded, 0 reused, 2 shards written, 0.8 s"
    second = count_saving(counts(600, 1, 3.0), tmp_path, VAE)
    assert second.line() == "latents: 600 samples, 1 encoded, 599 reused, 2 shards written, 0.8 s, saved about 42 s"
    assert second.saved == pytest.approx(599 * 0.07)  # one sample alone is no measurement


def test_loading_is_not_counted(tmp_path: Path) -> None:
    first = count_saving(counts(40, 4, 9.0), tmp_path, VAE, loading=8.6)
    assert first.saved == pytest.approx(3.6)
    assert count_saving(counts(40, 0), tmp_path, VAE).saved == pytest.approx(4.0)


def test_an_encoder_is_loaded_once() -> None:
    made: list[int] = []
    load = TimedLoad(lambda: made.append(1) or time.sleep(0.01) or "encoder")
    assert load.seconds == 0.0
    assert (load(), load()) == ("encoder", "encoder")
    assert len(made) == 1
    assert load.seconds >= 0.01


def test_time_is_proportional_to_pixels(tmp_path: Path) -> None:
    count_saving(counts(10, 10, 5.0), tmp_path, VAE, units=100.0)
    assert count_saving(counts(10, 0), tmp_path, VAE, units=400.0).saved == pytest.approx(20.0)


def test_a_later_measurement_of_enough_samples_counts(tmp_path: Path) -> None:
    count_saving(counts(600, 600, 600.0), tmp_path, VAE)
    count_saving(counts(600, 31, 3.1), tmp_path, VAE)
    assert count_saving(counts(600, 0), tmp_path, VAE).saved == pytest.approx(600.0)
    count_saving(counts(600, 32, 3.2), tmp_path, VAE)
    assert count_saving(counts(600, 0), tmp_path, VAE).saved == pytest.approx(60.0)


def test_another_encoder_is_not_known(tmp_path: Path) -> None:
    count_saving(counts(10, 10, 5.0), tmp_path, VAE)
    assert count_saving(counts(10, 0), tmp_path, {"vae": "b"}).saved is None


def test_what_cannot_be_read_or_written_costs_only_the_words(tmp_path: Path) -> None:
    count_saving(counts(10, 10, 5.0), tmp_path, VAE)
    next((tmp_path / "rates").iterdir()).write_text("{")
    assert count_saving(counts(10, 0), tmp_path, VAE).saved is None
    (tmp_path / "file").write_text("no folder")
    assert count_saving(counts(10, 9, 9.0), tmp_path / "file", VAE).saved == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("saved", "words"), [(0.31, "0.3 s"), (41.4, "41 s"), (600.0, "10 min"), (9000.0, "2.5 h"), (0.01, "0.0 s")]
)
def test_words(saved: float, words: str) -> None:
    line = CacheCounts(what="text", samples=2, encoded=0, shards_written=0, seconds=0.0, saved=saved).line()
    assert line == f"text: 2 samples, 0 encoded, 2 reused, 0 shards written, 0.0 s, saved about {words}"
