"""Standalone projects: where `eridiff new` makes them, what it writes, and `eridiff upgrade` of one."""

import os
import re
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from eridiff import __version__
from eridiff.bases.add import add_base
from eridiff.cli import app
from eridiff.core.config import read_yaml
from eridiff.core.errors import ConfigError
from eridiff.core.leftovers import temporary_path
from eridiff.dvc import project_versions
from eridiff.dvc.project_versions import refuse_other_versions, writer_of
from eridiff.machine import code
from eridiff.machine.local import bases_dir, find_home, load_local, places_file, user_config
from eridiff.projects import projects
from eridiff.projects.new import offer_presets, settle_base
from eridiff.projects.presets import presets_dir
from eridiff.projects.projects import make_project, project_place, run_command
from eridiff.projects.standalone import shared_cache, standalone_dvc_yaml, write_standalone
from eridiff.projects.upgrade import find_behind, foresee_upgrade, upgrade
from eridiff.versions import STAGES, version_files
from tests.conftest import ROOT
from tests.support.checkouts import SMALL, make_checkout

DEAD = 2**22 + 1  # beyond Linux's highest process id
LEVEL = "all is as this eridiff makes it already\n"


def run(*arguments: str) -> str:
    return CliRunner().invoke(app, arguments, catch_exceptions=False).output


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with nothing configured."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in no checkout, and the current folder."""
    folder = tmp_path / "loras" / "cats"
    write_standalone(folder)
    shutil.copyfile(code.template() / ".dvcignore", folder / ".dvcignore")
    (folder / "params.yaml").write_text("model: {family: sdxl, base: sdxl}\n")
    monkeypatch.chdir(folder)
    return folder


def test_where_a_project_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert project_place("cats") == tmp_path / "cats"
    assert project_place("~/loras/cats") == project_place("loras/cats") == tmp_path / "loras/cats"
    root = make_checkout(tmp_path / "checkout", monkeypatch)
    assert project_place("cats") == root / "projects/cats" == project_place("projects/cats")
    assert project_place(str(root / "projects/cats")) == root / "projects/cats"
    assert project_place("../loras/cats") == tmp_path / "loras/cats"
    for name in ("", ".", "..", "a b", "~/a b", "-x", "x/.."):
        with pytest.raises(ConfigError, match="is no name for a project"):
            project_place(name)
    for name in ("data/cats", "projects/cats/dogs", str(root / "cats")):
        with pytest.raises(ConfigError, match="lies inside"):
            project_place(name)


def test_no_project_in_a_project(project: Path) -> None:
    for name in ("dogs", "data/dogs", "../cats/dogs"):
        with pytest.raises(ConfigError, match=rf"lies inside {project}"):
            project_place(name)
    assert project_place("../dogs") == project.parent / "dogs"
    assert (run_command(project), run_command(project.parent)) == ("eridiff repro", "dvc repro")


def test_its_pipeline_names_its_own_versions() -> None:
    ours = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
    its = YAML(typ="safe").load(standalone_dvc_yaml((ROOT / "dvc.yaml").read_text("utf-8")))["stages"]
    named = {path for stage in its.values() for param in stage["params"] if isinstance(param, dict) for path in param}
    assert named == {STAGES, "versions/${model.family}.yaml"}
    for name, stage in ours.items():
        keys = [list(param.values()) if isinstance(param, dict) else param for param in stage["params"]]
        assert [list(param.values()) if isinstance(param, dict) else param for param in its[name]["params"]] == keys
        assert {**stage, "params": 0} == {**its[name], "params": 0}


def test_what_new_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "params.yaml").write_text("x: 1\n")
    monkeypatch.setattr(projects, "_init_dvc", lambda *_, **__: None)
    monkeypatch.chdir(tmp_path)
    folder = make_project("~/loras/cats", tmp_path / "raw", tmp_path / "params.yaml")
    assert folder == tmp_path / "loras/cats"
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    families = [f"versions/{path.name}.yaml" for path in sorted((ROOT / "eridiff/families").iterdir()) if path.is_dir()]
    families = [name for name in families if "__" not in name]
    assert files == [".gitignore", "data/raw/0.png", "dvc.yaml", "params.yaml", *sorted([*families, STAGES])]
    assert len(families) == 3 and {"versions/stages.yaml", *families} == set(version_files())
    for place, path in version_files().items():
        assert read_yaml(folder / place) == read_yaml(path)
    assert {"runs/", "*.tmp", "local.yaml", "data/bases/*/*/"} <= set((folder / ".gitignore").read_text().splitlines())
    for place in ("dvc.yaml", *version_files()):
        assert (folder / place).read_text().startswith(f"# Written by eridiff {__version__}: ")


def test_what_a_killed_one_left_goes_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder above is anybody's: only what was to become this very project is taken away there."""
    dead = Path(f"{temporary_path(tmp_path / 'cats')}".replace(f"-{os.getpid()}-", f"-{DEAD}-"))
    others = [tmp_path / f".notes.{'x' * 22}.tmp", Path(str(dead).replace(".cats.", ".dogs."))]
    for path in (dead, *others):
        path.mkdir()
        os.utime(path, (0, 0))
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "params.yaml").write_text("x: 1\n")
    monkeypatch.setattr(projects, "_init_dvc", lambda *_, **__: None)
    monkeypatch.chdir(tmp_path)
    make_project("cats", tmp_path / "raw", tmp_path / "params.yaml")
    assert not dead.exists() and all(path.exists() for path in others)


@pytest.mark.parametrize("configured", [False, True])
def test_the_cache_is_the_users(configured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that DVC's own configuration names, else one beside the store; of this machine, so not in git."""
    folder, commands = tmp_path / "cats", []
    folder.mkdir()
    found = tmp_path / "big/dvc" if configured else folder / ".dvc/cache"

    def record(command: list[str], folder: Path, **more: str) -> str:
        commands.append(command)
        return f"{found}\n"

    monkeypatch.setattr(projects, "_run", record)
    projects._share_cache(None, folder)
    assert shared_cache() == tmp_path / "cache/eridiff/dvc"
    told = [["dvc", "cache", "dir", "-q", "--local", str(shared_cache())]]
    assert commands == [["dvc", "cache", "dir"], *([] if configured else told)]


def test_bases_are_the_projects_and_places_the_users(project: Path, tmp_path: Path) -> None:
    """Pointers are part of the project; where weights lie is noted once, and the next project finds it there."""
    assert find_home() == project and bases_dir() == project / "data/bases"
    assert presets_dir() == code.template() / "presets"
    line = settle_base(Path("params.yaml"))
    assert "`eridiff base add sdxl SOURCE`" in line and places_file() == user_config()
    add_base("sdxl", [SMALL / "bases" / "tiny-sdxl"])
    assert load_local().bases == {"sdxl": str(SMALL / "bases" / "tiny-sdxl")} and not (project / "local.yaml").exists()
    other = tmp_path / "dogs"
    write_standalone(other)
    (other / "params.yaml").write_text("model: {family: sdxl, base: sdxl}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(other)
        assert settle_base(Path("params.yaml")) == "base: sdxl"
    pointers = ["denoiser.json", "license.json", "text.json", "vae.json"]
    assert sorted(path.name for path in (other / "data/bases/sdxl").iterdir()) == pointers
    (project / "local.yaml").write_text("workers: 2\n")
    assert places_file() == project / "local.yaml"


def test_outside_of_all_presets_are_offered_and_bases_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "tiny-sdxl " in offer_presets([]) and "base sdxl: not on this machine" in offer_presets([])
    with pytest.raises(ConfigError, match="is not inside an eridiff checkout or project"):
        bases_dir()
    with pytest.raises(ConfigError, match="is not inside an eridiff checkout"):
        places_file()


def test_a_checkout_inside_nothing_is_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_checkout(tmp_path / "checkout", monkeypatch)
    assert find_home() == root and places_file() == root / "local.yaml" and presets_dir() == root / "presets"


def test_upgrade_shows_and_then_writes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("upgrade") == LEVEL == run("upgrade", "--dry-run")
    path = project / STAGES
    path.write_text(re.sub("  train: 1", "  train: 2", path.read_text()))
    path.write_text(path.read_text().replace(__version__, "9.9"))
    before = path.read_text()
    with pytest.raises(ConfigError, match=r"versions of eridiff 9\.9, and this is"):
        run("why")
    said = run("upgrade", "--dry-run")
    assert said == f"nothing has run here yet\nthis eridiff writes its {STAGES} otherwise\n"
    assert path.read_text() == before
    assert run("upgrade").splitlines() == [
        "nothing has run here yet",
        f"{STAGES} is this eridiff's now",
        "`eridiff why` says what runs now",
    ]
    assert writer_of(project) == __version__ and run("upgrade") == LEVEL
    refuse_other_versions(project)


def test_upgrade_is_no_merge(project: Path) -> None:
    """Whatever an edit made of what eridiff writes, it is written again; params and notes of the user's own stay."""
    for place in ("dvc.yaml", *version_files()):
        (project / place).write_text("<<<<<<< mine\n" if place == "dvc.yaml" else "mine: 1\n")
    (project / "versions/flux.yaml").unlink()
    (project / "notes.md").write_text("mine\n")
    assert len(upgrade(project)) == len(version_files()) + 2
    assert find_behind(project) == [] and upgrade(project) == []
    assert (project / "notes.md").read_text() == "mine\n" and read_yaml(project / "params.yaml")["model"]


def test_what_ran_under_another_release_with_the_same_versions_runs_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(project_versions, "__version__", "99.0")
    assert foresee_upgrade(project) == find_behind(project) == [] and run("upgrade") == LEVEL
