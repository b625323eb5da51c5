"""runs/STAGE.json: what a run of a stage was."""

import json
from pathlib import Path

import pytest

from eridiff.machine import runlog
from eridiff.machine.runlog import LIBRARIES, record_run


def test_a_run_is_recorded_with_the_libraries_that_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runlog, "LIBRARIES", (*LIBRARIES, "no-such-library"))
    record_run("train", seconds=1.5, state=Path("runs/key"))
    record = json.loads((tmp_path / "runs/train.json").read_text("utf-8"))
    assert (record["stage"], record["seconds"], record["state"]) == ("train", 1.5, "runs/key")
    assert set(record["versions"]) == {*LIBRARIES, "no-such-library", "eridiff"}
    assert record["versions"]["no-such-library"] is None
    assert record["versions"]["torch"][0].isdigit()
