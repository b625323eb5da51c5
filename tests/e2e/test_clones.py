"""Clones, projects and experiments: the same work is never done twice, and always gives the same bytes."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.e2e.harness import Clone, make_clone, parse

pytestmark = pytest.mark.e2e

ALL = ["check", "captions", "buckets", "latents", "text", "train", "sample", "export"]
AVERAGED = {"train.ema_decay": 0.9}  # so that the averages are compared too


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clones")


@pytest.fixture(scope="module")
def first(folder: Path) -> Clone:
    """A clone that ran once, its dvc.lock committed."""
    clone = make_clone(folder, "first")
    clone.params(AVERAGED)
    assert clone.repro().stages == ALL
    clone.commit("ran")
    return clone


def clone_of(first: Clone, folder: Path, name: str, *, share: bool) -> Clone:
    """A git clone with an empty store; with the first's DVC cache, or one of its own."""
    root = folder / name
    first.run("git", "clone", "-q", str(first.root), str(root))
    clone = Clone(root, folder / f"{name}-store", folder / f"{name}-cache")
    clone.run("git", "config", "user.name", "test")
    clone.run("git", "config", "user.email", "test@localhost")
    if share:
        clone.run("dvc", "cache", "dir", "-q", "--local", str(first.root / ".dvc/cache"))
    return clone


def test_an_empty_store_and_cache_give_the_same_bytes(first: Clone, folder: Path) -> None:
    """A whole run twice with nothing shared: equal digests of every out. A longer training twice: test_killed.py."""
    second = make_clone(folder, "second")
    assert {second.store, second.cache}.isdisjoint({first.store, first.cache})  # else nothing would be encoded here
    second.params(AVERAGED)
    ran = second.repro()
    assert ran.stages == ALL
    assert all(reused == 0 for _, reused in ran.encoded.values()) and set(ran.encoded) == {"latents", "text"}
    assert second.lock() == first.lock()


def test_a_second_run_runs_nothing(first: Clone) -> None:
    ran = first.repro()
    assert ran.stages == [] and ran.restored == []


def test_a_clone_with_its_models_elsewhere_runs_nothing(first: Clone, folder: Path) -> None:
    """Its weights lie in another folder, which local.yaml names: no stage runs, and one that must encode finds them."""
    clone = clone_of(first, folder, "elsewhere", share=True)
    models, base = folder / "models/tiny-sdxl", clone.root / "data/bases/tiny-sdxl"
    models.mkdir(parents=True)
    for component in base.iterdir():
        if component.is_dir():
            shutil.move(component, models)
    (clone.root / "local.yaml").write_text(f"model_folders: [{models.parent}]\n")
    ran = clone.repro()
    assert ran.stages == [], ran.output
    assert clone.lock() == first.lock()
    clone.params({"latents.dtype": "bf16"})
    assert clone.repro("latents").encoded["latents"] == (20, 0)


def test_one_added_picture_after_a_pull_is_one_encode(first: Clone, folder: Path) -> None:
    """A new clone's store is empty: the stages import what their own last outs hold."""
    from PIL import Image

    remote = folder / "remote"
    first.run("dvc", "remote", "add", "-q", "-f", "-d", "--local", "there", str(remote))
    first.run("dvc", "push", "-q", "--run-cache")
    clone = clone_of(first, folder, "pulled", share=False)
    clone.run("dvc", "remote", "add", "-q", "-d", "--local", "there", str(remote))
    clone.run("dvc", "pull", "-q", "--run-cache")
    assert clone.repro().stages == []
    Image.new("RGB", (160, 160), (10, 90, 200)).save(clone.root / "data/raw/blue.png")
    (clone.root / "data/raw/blue.txt").write_text("a plain blue field")
    predicted = clone.why()["stages"]
    ran = clone.repro("text", "latents")
    assert ran.encoded == {"latents": (1, 20), "text": (1, 38)}, ran.output
    assert {n: (predicted[n]["encoded"], predicted[n]["reused"]) for n in ran.encoded} == ran.encoded


def test_an_experiment_imports_and_shares(first: Clone, folder: Path) -> None:
    """`dvc exp run --temp` without a change runs nothing; with one, and an empty store, it encodes nothing."""
    done = first.run("dvc", "exp", "run", "--temp")
    assert parse(0, done.stdout).stages == [], done.stdout
    fresh = Clone(first.root, folder / "experiment-store", first.cache)
    done = fresh.run("dvc", "exp", "run", "--temp", "-S", "model.allow_cpu=false", "latents", "text")
    ran = parse(0, done.stdout)
    assert set(ran.stages) == {"check", "latents", "text"}, done.stdout
    assert ran.encoded == {"latents": (0, 20), "text": (0, 38)}, done.stdout


def test_an_equal_project_encodes_nothing_and_a_second_runs_nothing(first: Clone, folder: Path) -> None:
    for name in ("one", "two"):
        given = ("--images", str(first.root / "data/raw"), "--params", str(first.root / "params.yaml"))
        first.run(sys.executable, "-m", "eridiff", "new", name, *given)
    first.commit("projects")
    one, two = (Clone(first.root, first.store, first.cache, first.root / "projects" / name) for name in ("one", "two"))
    ran = one.repro()
    assert ran.stages == ALL
    assert ran.encoded == {"latents": (0, 20), "text": (0, 38)}
    assert one.lock() == first.lock()
    ran = two.repro()
    assert ran.stages == [], ran.output
    assert two.lock() == first.lock()
    done = two.run("dvc", "exp", "run", "--temp", "-S", "train.optimizer.lr=2e-3")
    assert set(parse(0, done.stdout).stages) == {"check", "train", "sample", "export"}, done.stdout


def test_a_project_imports_its_own_outs_into_an_empty_store(first: Clone, folder: Path) -> None:
    project = Clone(first.root, folder / "project-store", first.cache, first.root / "projects/one")
    project.params({"model.allow_cpu": False})  # starts both stages; encoding would be refused on a CPU
    ran = project.repro("latents", "text")
    assert ran.encoded == {"latents": (0, 20), "text": (0, 38)}, ran.output


def test_one_projects_broken_params_stop_no_other(first: Clone) -> None:
    one, two = (Clone(first.root, first.store, first.cache, first.root / "projects" / name) for name in ("one", "two"))
    (one.place / "params.yaml").write_text("model: [broken\n")
    assert one.repro(check=False).code != 0
    assert two.repro().stages == []
    assert first.repro().stages == []
