"""The command line's exit codes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eridiff.cli import app
from tests.support.checkouts import make_checkout


def test_why_fails_where_params_have_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkout(tmp_path, monkeypatch)
    (tmp_path / "params.yaml").write_text("train: {stepz: 3}\n")
    told = CliRunner().invoke(app, ["why"])
    assert told.exit_code == 1 and told.output.startswith("error: ") and "train.stepz" in told.output
    told = CliRunner().invoke(app, ["why", "--json"])
    assert told.exit_code == 1 and "train.stepz" in json.loads(told.stdout)["error"]
