"""The job of the stage `train`: held by one process, checked before the first step alone, put out from its state."""

from dataclasses import replace
from pathlib import Path

import pytest

from eridiff.core.errors import DataError, TrainError
from eridiff.models.lora import read_checkpoint
from eridiff.training import job as trainjob
from eridiff.training.job import PROJECT, verify_project
from tests.conftest import ROOT
from tests.support import training
from tests.support.bases import FAMILIES
from tests.support.checkouts import link_bases

FAMILY = FAMILIES[0]
PARAMS = training.params_of({"check_base": True})


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which checks of the base were done; their numbers mean nothing with random weights."""
    done: list[str] = []

    def note(name: str) -> str:
        done.append(name)
        return f"base check: {name}"

    monkeypatch.setattr(trainjob, "check_vae", lambda *given: note("vae"))
    monkeypatch.setattr(trainjob, "check_denoiser", lambda *given: note("denoiser"))
    return done


def test_a_training_is_held_checked_once_and_put_out(
    tmp_path: Path, checked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    job = training.make_job(FAMILY, tmp_path, PARAMS)
    with job.held():
        with pytest.raises(TrainError, match="already running"), replace(job).held():
            raise AssertionError("held twice")
        run = job.prepare("none", fixed=True)
        table, _ = job.train(run, None, 2)
        written = job.put_out(table, tmp_path / "lora", tmp_path / "loss.tsv")
    assert checked == ["vae", "denoiser"]
    assert "base check: vae" in capsys.readouterr().out
    assert [path.name for path in written] == ["step-000002.safetensors", "step-000004.safetensors"]
    lineage = read_checkpoint(written[-1])[1]
    assert (lineage["family"], lineage["step"]) == (FAMILY, 4)
    first = [path.read_bytes() for path in written]
    with job.held():  # again: from the kept state, so nothing is checked and no step is taken
        run = job.prepare("none", fixed=True)
        assert job.train(run, None, 2)[0] == table
        assert [path.read_bytes() for path in job.put_out(table, tmp_path / "lora", tmp_path / "loss.tsv")] == first
    assert checked == ["vae", "denoiser"]


def test_where_the_vae_is_not_here_the_training_goes_on(
    tmp_path: Path, checked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trainjob, "find_vae", lambda model: None)
    with training.make_job(FAMILY, tmp_path, PARAMS).held():
        assert "base check: no VAE on this machine, not checked" in capsys.readouterr().out
    assert checked == []


def test_a_project_is_verified_by_its_own_job(
    tmp_path: Path, checked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both checks, also where the params ask for none; before the caches are there it says what makes them."""
    job = training.make_job(FAMILY, tmp_path, training.params_of({"check_base": False}))
    (tmp_path / "params.yaml").write_text((ROOT / "presets" / f"tiny-{FAMILY}.yaml").read_text())
    link_bases(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainjob, "train_job", lambda *given: job)
    with pytest.raises(DataError, match=r"text/index\.parquet: not there yet\. Run `dvc repro latents text` first"):
        verify_project()
    for path in PROJECT.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert verify_project() == ["base check: vae", "base check: denoiser"]
    assert checked == ["vae", "denoiser"]
