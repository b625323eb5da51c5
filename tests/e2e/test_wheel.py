"""The wheel, installed beside nothing of the checkout: `eridiff new` and the whole pipeline in a folder far from it."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from eridiff import __version__
from tests.e2e.harness import QUICK, parse
from tests.support.checkouts import ROOT, SMALL

# What is no module, but read by one: shipped where its package lies, or copied into the wheel by setup.py.
TOP = ("dvc.yaml", ".dvcignore", ".dvc/config", ".dvc/.gitignore", "presets/*.yaml", "presets/aliases.txt")
SENTENCE = "Files hold another title: every export runs again, and nothing else."


def call(*command: str, cwd: Path, check: bool = True, **more: str) -> "subprocess.CompletedProcess[str]":
    foreign = ("ERIDIFF_", "PYTHON", "DVC_", "PYTEST_", "GIT_", "HF_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**environment, **more},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        timeout=600,
    )
    assert not check or done.returncode == 0, f"{command}: {done.stdout}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build writes beside its sources."""
    source = tmp_path_factory.mktemp("source")
    listed = call("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).stdout.splitlines()
    for name in listed:
        if not name.startswith(("data/", "tests/", "docs/")) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", str(folder))
    call(sys.executable, "-m", "pip", "wheel", ".", *options, cwd=source)
    (built,) = folder.iterdir()
    return built


@pytest.mark.slow
def test_it_holds_every_file_that_the_code_reads(wheel: Path) -> None:
    packages = [path for name in ("eridiff", "stages") for path in (ROOT / name).rglob("*") if path.is_file()]
    wanted = {path.relative_to(ROOT).as_posix() for path in packages if "__pycache__" not in path.parts}
    top = {path for glob in TOP for path in ROOT.glob(glob)}
    wanted |= {f"eridiff/template/{path.relative_to(ROOT).as_posix()}" for path in top}
    with zipfile.ZipFile(wheel) as file:
        found = {name for name in file.namelist() if ".dist-info/" not in name}
        assert found == wanted
        for path in top:
            assert file.read(f"eridiff/template/{path.relative_to(ROOT).as_posix()}") == path.read_bytes()
    assert {"eridiff/versions.yaml", "eridiff/template/presets/sdxl-24gb.yaml"} <= found
    for family in ("sdxl", "sd35", "flux"):
        assert {f"eridiff/families/{family}/{name}" for name in ("versions.yaml", "published.json", "keys.py")} <= found


class User:
    """Somebody who has installed the wheel, and nothing of a checkout."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.home, venv = folder / "home", folder / "venv"
        self.home.mkdir()
        call(sys.executable, "-m", "venv", "--without-pip", str(venv), cwd=folder)
        (self.site,) = venv.glob("lib/python*/site-packages")
        # Of these libraries, less the checkout's own editable install: .pth files of that folder do not count here.
        (self.site / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        options = ("--python", str(venv / "bin/python"), "install", "--no-deps", "--no-index", "-q")
        call(sys.executable, "-m", "pip", *options, str(wheel), cwd=folder)
        self.command = str(venv / "bin/eridiff")
        self.place = self.home

    def run(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run eridiff in the user's place; its environment is not activated."""
        facts = {"HOME": str(self.home), "ERIDIFF_DEVICE": "cpu", "HF_HUB_OFFLINE": "1", "DVC_NO_ANALYTICS": "1"}
        folders = {"XDG_CONFIG_HOME": str(self.home / ".config"), "XDG_CACHE_HOME": str(self.home / ".cache")}
        path = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if not p.startswith(str(ROOT)))
        return call(self.command, *arguments, cwd=self.place, check=check, PATH=path, **facts, **folders)

    def shorten(self) -> None:
        """A training of four steps."""
        path, yaml = self.place / "params.yaml", YAML()
        record = yaml.load(path.read_text("utf-8"))
        for section, keys in QUICK.items():
            for key, value in keys.items():
                *parents, last = key.split(".")
                target = record[section]
                for parent in parents:
                    target = target[parent]
                target[last] = value
        record["sample"]["ema"] = record["export"]["ema"] = False
        record["train"]["check_base"] = False  # the weights are random
        with path.open("w", encoding="utf-8") as file:
            yaml.dump(record, file)


@pytest.mark.e2e
def test_a_project_anywhere_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    user = User(tmp_path, wheel)
    assert user.run("--version").stdout == f"eridiff {__version__}\n"
    images = shutil.copytree(SMALL / "raw", tmp_path / "my pictures")
    settings = ("--images", str(images), "--trigger", "zwxcat", "--preset", "tiny-sdxl")
    made = user.run("new", "~/loras/cats", *settings)
    assert "base 'tiny-sdxl' is not here yet" in made.stdout and "then run `eridiff repro` there" in made.stdout
    user.place = user.home / "loras/cats"
    assert (user.place / ".git").is_dir() and (user.place / ".dvc").is_dir()
    assert "reflink,copy" in (user.place / ".dvc/config").read_text()
    user.run("base", "add", "tiny-sdxl", str(SMALL / "bases/tiny-sdxl"))
    assert str(SMALL) in (user.home / ".config/eridiff/local.yaml").read_text()
    user.shorten()
    call("git", "add", "-A", cwd=user.place)
    call("git", "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "first", cwd=user.place)

    ran = user.run("repro").stdout
    stages = ["check", "captions", "buckets", "latents", "text", "train", "sample", "export"]
    assert parse(0, ran).stages == stages and (user.place / "data/export/cats.safetensors").exists()
    assert (user.home / ".cache/eridiff/store/latents").is_dir() and (user.home / ".cache/eridiff/dvc").is_dir()
    record = (user.place / "runs/train.json").read_text()
    assert f'"eridiff": "{__version__}"' in record
    assert '"step": "plain"' in record
    assert parse(0, user.run("repro").stdout).stages == []
    assert user.run("upgrade").stdout == "all is as this eridiff makes it already\n"

    # Another release of the wheel: one version raised.
    path = user.site / "eridiff/versions.yaml"
    text = path.read_text("utf-8").replace("  export: 1", "  export: 2")
    change = f'changes:\n  - {{version: stages.export, number: 2, sentence: "{SENTENCE}"}}\n'
    path.write_text(text.replace("changes: []\n", change), "utf-8")
    refused = user.run("repro", check=False)
    assert refused.returncode == 1 and f"export 1 -> 2: {SENTENCE}" in refused.stdout
    assert "Run `eridiff upgrade` there" in refused.stdout and "Running stage" not in refused.stdout
    stage = call(str(user.site.parents[2] / "bin/python"), "-m", "stages.check", cwd=user.place, check=False)
    assert stage.returncode == 1 and "Run `eridiff upgrade` there" in stage.stdout  # as under a bare `dvc repro`
    said = user.run("upgrade").stdout.splitlines()
    assert said[0] == f"export will run again: export 1 -> 2: {SENTENCE}"
    assert said[1] == "versions/stages.yaml is this eridiff's now"
    assert re.search(rf"export +runs +export 1 -> 2: {SENTENCE}", user.run("why").stdout)
    assert parse(0, user.run("repro").stdout).stages == ["export"]

    # The same pictures in a second project: the base is found without asking, and nothing is encoded again.
    user.place = user.home
    again = user.run("new", "loras/dogs", *settings)
    assert f"base: tiny-sdxl from {SMALL / 'bases/tiny-sdxl'}" in again.stdout
    user.place = user.home / "loras/dogs"
    user.shorten()
    shared = parse(0, user.run("repro", "latents", "text").stdout)
    assert (shared.stages, shared.restored) == (["check"], ["captions", "buckets", "latents", "text"])
