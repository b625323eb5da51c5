"""A project of before, whose dvc.yaml, dvc.lock or links are not those of today: named, brought up by one command."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eridiff.cli import app
from eridiff.core.config import read_yaml
from eridiff.core.errors import ConfigError
from eridiff.dvc.before_versions import lists_code, refuse_early
from eridiff.dvc.own_pictures import unsafe_types
from eridiff.dvc.repair import held
from eridiff.projects.projects import project_dvc_yaml
from eridiff.projects.upgrade import find_behind, upgrade
from tests.conftest import ROOT
from tests.support.checkouts import make_checkout

BEFORE = ROOT / "tests" / "before_versions"  # this repository's last dvc.yaml and dvc.lock that listed code

DVC_YAML = """stages:
  check:
    cmd: python -m stages.check
    deps:
      - params.yaml
      - data/bases
    params:
      - eridiff/versions.yaml: [stages.check]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = make_checkout(tmp_path / "checkout", monkeypatch)
    (root / "dvc.yaml").write_text(DVC_YAML)
    folder = root / "projects" / "cats"
    folder.mkdir(parents=True)
    (folder / "dvc.yaml").write_text(project_dvc_yaml(DVC_YAML))
    monkeypatch.chdir(folder)
    return folder


LEVEL = "all is as this eridiff makes it already\n"


def run(*arguments: str) -> str:
    return CliRunner().invoke(app, arguments, catch_exceptions=False).output


def test_one_that_is_level_is_left_alone(project: Path) -> None:
    before = (project / "dvc.yaml").stat()
    assert find_behind(project) == []
    assert "../../eridiff/versions.yaml: [stages.check]" in (project / "dvc.yaml").read_text()
    assert run("upgrade") == LEVEL
    assert (project / "dvc.yaml").stat().st_mtime_ns == before.st_mtime_ns


def test_one_that_is_behind_is_named_and_brought_up(project: Path) -> None:
    root = project.parent.parent
    (root / "dvc.yaml").write_text(DVC_YAML + "    desc: new\n")
    (project / "params.yaml").write_text("train: mine\n")
    assert find_behind(project) == ["its dvc.yaml is not the checkout's, which has changed"]
    assert "`eridiff upgrade` brings it up" in run("why")
    assert "dvc.yaml is the checkout's now" in run("upgrade")
    assert (project / "dvc.yaml").read_text() == project_dvc_yaml(DVC_YAML + "    desc: new\n")
    assert find_behind(project) == []
    assert "upgrade" not in run("why")
    assert (project / "params.yaml").read_text() == "train: mine\n"


@pytest.mark.parametrize("its", [None, "# DVC's own words", "*.mine\n"])
def test_what_dvc_ignores_is_brought_up(project: Path, its: str | None) -> None:
    """Projects of before had no .dvcignore but DVC's, of comments; lines of the user's own stay."""
    (project.parent.parent / ".dvcignore").write_text("# Why.\ndata/bases/*/*/\n\n*.tmp\n")
    if its is not None:
        (project / ".dvcignore").write_text(its)
    (reason,) = find_behind(project)
    assert reason.startswith("its .dvcignore lacks lines of the checkout's")
    assert run("upgrade") == ".dvcignore has these lines of the checkout's now: data/bases/*/*/ *.tmp\n"
    kept = [] if its is None else its.splitlines()
    assert (project / ".dvcignore").read_text().splitlines() == [*kept, "data/bases/*/*/", "*.tmp"]
    assert find_behind(project) == []


def test_what_is_neither_project_nor_checkout_is_refused(project: Path) -> None:
    root = project.parent.parent
    assert find_behind(root) == [] and upgrade(root) == []
    (root / "projects" / "empty").mkdir()
    with pytest.raises(ConfigError, match="is no project"):
        upgrade(root / "projects" / "empty")


OLD = '[core]\n    analytics = false\n[cache]\n    type = "hardlink,reflink,copy"\n    dir = ../../../.dvc/cache\n'


@pytest.mark.parametrize("local", ["", "[cache]\n    type = symlink\n"])
def test_a_project_of_hardlinks_is_moved_over(project: Path, local: str) -> None:
    """An edit had gone into the cache: its object is named, and the picture is the user's own again."""
    (project / "data/raw").mkdir(parents=True)
    objects = project.parent.parent / ".dvc/cache/files/md5"
    (objects / "8b").mkdir(parents=True)
    altered = objects / "8b/04d5e3775d298e78455efc5ca404d5"  # of "first"
    altered.write_bytes(b"second")
    (project / "data/raw/0.txt").hardlink_to(altered)
    altered.chmod(0o444)
    (project / ".dvc").mkdir()
    (project / ".dvc/config").write_text(OLD)
    (project / ".dvc/config.local").write_text(local)
    kinds = "symlink" if local else "hardlink"
    assert find_behind(project) == [f"its cache.type has {kinds}: an edit of data/raw would alter DVC's cache"]
    assert f"cache.type has {kinds}" in run("why") and "`eridiff upgrade`" in run("why")
    lines = run("upgrade").splitlines()
    assert lines[0] == f"cache.type is reflink,copy now, without {kinds}"
    assert lines[1] == "1 file of data/raw is your own now, no link into DVC's cache"
    assert lines[2].startswith(f"{altered} holds other bytes than its name says") and len(lines) == 3
    assert unsafe_types(project) == ()
    (project / "data/raw/0.txt").write_bytes(b"third")  # not as root too
    moved = objects / "a9/f0e61a137d86aa9db53465e0801612"  # of "second"
    assert moved.read_bytes() == b"second" and not altered.exists()
    assert run("upgrade") == LEVEL
    assert (project / ".dvc/config").read_text().count("dir = ") == 1
    (project / ".dvc/config").write_text(OLD)  # as by `git checkout` of a commit of before
    assert unsafe_types(project) == () and find_behind(project) == []


def of_before(name: str, *, in_project: bool) -> str:
    """A file of before, as a checkout or a project had it."""
    text = (BEFORE / name).read_text("utf-8")
    if not in_project:
        return text
    text = re.sub(r"(?m)^(\s*- (?:path: )?)(eridiff/|stages/|data/bases)", r"\1../../\2", text)
    return re.sub(r"(?m)^(\s*cmd: )(python -m )", r"\1PYTHONPATH=../.. \2", text)


@pytest.fixture(params=["checkout", "project"])
def early(request: pytest.FixtureRequest, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkout with its lock of before, or a project whose dvc.yaml is of before too."""
    root, in_project = project.parent.parent, request.param == "project"
    (root / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text("utf-8"))
    folder = project if in_project else root
    if in_project:
        (folder / "dvc.yaml").write_text(of_before("pipeline.yaml", in_project=True))
    (folder / "dvc.lock").write_text(of_before("lock.yaml", in_project=in_project))
    (folder / ".dvc").mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.slow
def test_a_lock_of_before_gets_versions_in_place_of_code(early: Path) -> None:
    """Data, params and outs stay to the byte; each stage has what dvc.yaml names, all at the first number."""
    with pytest.raises(ConfigError, match="Run `eridiff upgrade` in"):
        refuse_early(early)
    before = read_yaml(early / "dvc.lock")["stages"]
    said = run("upgrade")
    assert "dvc.lock has versions in place of files of code now: check, captions, buckets, latents" in said
    refuse_early(early)
    assert find_behind(early) == [] and run("upgrade") == LEVEL
    after, stages = read_yaml(early / "dvc.lock")["stages"], read_yaml(early / "dvc.yaml")["stages"]
    assert list(after) == list(before) == list(stages)
    for stage, entry in after.items():
        data = [dep for dep in before[stage]["deps"] if not dep["path"].endswith(".py")]
        assert entry["deps"] == data and len(data) < len(before[stage]["deps"])
        assert entry["outs"] == before[stage]["outs"] and entry["cmd"] == before[stage]["cmd"] == stages[stage]["cmd"]
        assert entry["params"].get("params.yaml") == before[stage].get("params", {}).get("params.yaml")
        named = {
            path: keys for param in stages[stage]["params"] if isinstance(param, dict) for path, keys in param.items()
        }
        numbers = {path.replace("${model.family}", "sd35"): dict.fromkeys(keys, 1) for path, keys in named.items()}
        assert {path: keys for path, keys in entry["params"].items() if path != "params.yaml"} == numbers


@pytest.mark.slow
def test_it_is_written_as_dvc_writes_it(early: Path) -> None:
    from dvc.utils.serialize import dumps_yaml

    run("upgrade")
    text = (early / "dvc.lock").read_text("utf-8")
    assert text == dumps_yaml(read_yaml(early / "dvc.lock"))
    added = set(text.splitlines()) - set(of_before("lock.yaml", in_project=False).splitlines())
    added = {line.strip().replace("../../", "") for line in added if "PYTHONPATH" not in line and "- path:" not in line}
    assert all(re.fullmatch(r"eridiff/.*versions\.yaml:|(stages|family|store)\.\w+: 1", line) for line in added), added


@pytest.mark.slow
def test_while_dvc_works_nothing_is_written(early: Path) -> None:
    before = [(early / name).read_bytes() for name in ("dvc.yaml", "dvc.lock")]
    (early / ".dvc/tmp").mkdir()
    with held(early / ".dvc/tmp/lock") as free:
        assert free
        with pytest.raises(ConfigError, match="DVC works in"):
            upgrade(early)
    assert [(early / name).read_bytes() for name in ("dvc.yaml", "dvc.lock")] == before
    assert upgrade(early)


def test_a_run_and_why_refuse_a_lock_of_before(early: Path) -> None:
    from eridiff.reproduce import reproduce

    for command in (lambda: reproduce([]), lambda: run("why")):
        with pytest.raises(ConfigError, match="from before code had versions"):
            command()
    assert lists_code(early / "dvc.lock")


def test_a_damaged_lock_is_named(early: Path) -> None:
    (early / "dvc.lock").write_text("schema: '2.0'\nstages: [1]\n")
    with pytest.raises(ConfigError, match="`stages` is not what DVC writes"):
        upgrade(early)
    (early / "dvc.lock").write_text("schema: '2.0'\nstages:\n  check: {deps: [")
    with pytest.raises(ConfigError, match="no valid YAML"):
        upgrade(early)


def test_a_dvc_yaml_that_names_no_code_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was parsed just before, for its bounds."""
    read: list[Path] = []
    monkeypatch.setattr("eridiff.dvc.before_versions.read_yaml", lambda path: read.append(path) or {})
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text("utf-8"))
    refuse_early(tmp_path)
    assert read == []
    (tmp_path / "dvc.yaml").write_text(of_before("pipeline.yaml", in_project=False))
    refuse_early(tmp_path)
    assert read == [tmp_path / "dvc.yaml"]
