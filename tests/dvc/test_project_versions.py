"""A standalone project's copies of the versions against this eridiff's: stages run only where they agree."""

import re
from pathlib import Path

import pytest

from eridiff import __version__
from eridiff.core.errors import ConfigError
from eridiff.dvc import project_versions
from eridiff.dvc.before_versions import refuse_early
from eridiff.dvc.project_versions import (
    family_of,
    params_of,
    refuse_other_versions,
    run_stage,
    version_differences,
    without_writer,
    writer_of,
)
from eridiff.projects.standalone import outdated_files, standalone_files, write_standalone
from eridiff.versions import STAGES, is_standalone
from tests.conftest import ROOT

STAGE_FILES = sorted(path for path in (ROOT / "stages").glob("*.py") if path.stem not in ("__init__", "flow"))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standalone project as this eridiff writes it."""
    write_standalone(tmp_path)
    (tmp_path / "params.yaml").write_text("model: {family: sdxl, base: mine}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text("utf-8")
    assert re.search(before, text)
    path.write_text(re.sub(before, after, text, count=1))


def test_one_of_this_eridiff_runs(project: Path) -> None:
    ran: list[int] = []
    run_stage(lambda: ran.append(1))
    assert ran == [1] and is_standalone(project) and writer_of(project) == __version__
    assert version_differences(project) == [] and outdated_files(project, standalone_files()) == []


def test_what_is_no_standalone_project_is_not_looked_at(tmp_path: Path) -> None:
    refuse_other_versions(tmp_path)
    assert not is_standalone(tmp_path) and not is_standalone(ROOT)


@pytest.mark.parametrize(
    ("place", "key", "name"), [(STAGES, "train", "train"), ("versions/sdxl.yaml", "train", "sdxl")]
)
def test_a_stage_refuses_the_versions_of_another_eridiff(
    place: str, key: str, name: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(project / place, rf"  {key}: 1", f"  {key}: 7")
    edit(project / STAGES, re.escape(__version__), "0.0.9")
    ran: list[int] = []
    with pytest.raises(SystemExit) as ended:
        run_stage(lambda: ran.append(1))
    said = capsys.readouterr().err
    assert ended.value.code == 1 and ran == []
    assert f"has the versions of eridiff 0.0.9, and this is eridiff {__version__}: {name}" in said
    assert "train 7 -> 1: this eridiff is an earlier one" in said and "Run `eridiff upgrade` there" in said
    with pytest.raises(ConfigError, match="Run `eridiff upgrade` there"):  # `eridiff repro`, `why`, the flow
        refuse_early(project)


def test_of_families_the_projects_own_counts(project: Path) -> None:
    edit(project / "versions/flux.yaml", "  train: 1", "  train: 7")
    (project / "versions/sd35.yaml").unlink()  # as where a family is new
    refuse_other_versions(project)
    assert outdated_files(project, standalone_files()) == ["versions/flux.yaml", "versions/sd35.yaml"]
    (project / "params.yaml").write_text("model: {family: sd35}\n")
    assert version_differences(project)[0] == "sd35's export (absent) -> 1"
    (project / "params.yaml").write_text("model: {family: flux}\n")
    assert version_differences(project) == ["flux's train 7 -> 1: this eridiff is an earlier one than the last run's"]


@pytest.mark.parametrize("text", ["", "model: [", "model: {family: [1]}", "[1]", "model: 1"])
def test_broken_params_are_the_check_stages_business(text: str, project: Path) -> None:
    (project / "params.yaml").write_text(text)
    assert family_of(params_of(project)) is None and version_differences(project) == []


def test_copies_of_another_shape_are_told_too(project: Path) -> None:
    (project / STAGES).write_text("stages: {train: 1, caption_rules: 4}\n")
    lines = version_differences(project)
    assert "caption_rules 4 -> (absent)" in "\n".join(lines) and "export (absent) -> 1" in lines
    assert not any(line.startswith("train") for line in lines) and writer_of(project) is None
    with pytest.raises(ConfigError, match="versions of another eridiff"):
        refuse_other_versions(project)
    (project / STAGES).write_text("[1, 2]\n")
    with pytest.raises(ConfigError, match="holds no versions: `eridiff upgrade`"):
        version_differences(project)


def test_a_release_that_raises_nothing_makes_no_project_one_of_before(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(project_versions, "__version__", "99.0")
    assert outdated_files(project, standalone_files()) == [] and version_differences(project) == []
    text = (project / STAGES).read_text()
    assert without_writer(text) == (ROOT / "eridiff/versions.yaml").read_text()
    assert without_writer("stages: 1\n") == "stages: 1\n"


@pytest.mark.parametrize("path", STAGE_FILES, ids=lambda path: path.stem)
def test_every_stage_starts_by_it(path: Path) -> None:
    assert path.read_text("utf-8").endswith('if __name__ == "__main__":\n    run_stage(main)\n')
