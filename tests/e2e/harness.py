"""A temporary clone of the checkout with its own store and DVC cache, driven as a user drives it."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.e2e.prefork import start
from tests.support.checkouts import SMALL

ROOT = Path(__file__).parent.parent.parent
# Small enough that a stage's start is what costs: the numbers themselves are the unit tests' business.
QUICK = {
    "train": {"steps": 4, "save_every": 2, "keep": 2, "ema_decay": None, "optimizer.warmup_steps": 1},
    "sample": {"steps": 2, "strengths": [1.0], "prompts": [{"prompt": "[trigger], a red fox"}]},
}


@dataclass
class Ran:
    """What one `dvc repro` did."""

    code: int
    output: str
    stages: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    encoded: dict[str, tuple[int, int]] = field(default_factory=dict)  # stage -> (encoded, reused)


class Clone:
    """One working copy: `root` the checkout, `place` the folder whose pipeline runs (the root, or a project)."""

    def __init__(self, root: Path, store: Path, cache: Path, place: Path | None = None, *, cold: bool = False) -> None:
        self.root, self.store, self.cache = root, store, cache
        self.place = place or root
        self.cold = cold

    def environment(self, *, waited: bool = False) -> dict[str, str]:
        """cold: each stage is a python of its own, as a user's; else a child of one (tests/e2e/prefork.py).

        waited: nobody will kill what is started, so DVC may be such a child too.
        """
        scripts = str(Path(sys.executable).parent)
        if not self.cold:
            scripts = f"{start().folder}{os.pathsep}{scripts}"
            scripts = f"{start().dvc}{os.pathsep}{scripts}" if waited else scripts
        left_out = ("ERIDIFF_", "PYTEST_", "DVC_", "GIT_", "HF_", "PYTHONDONTWRITEBYTECODE")  # clones are ours to write
        keep = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
        return {
            **keep,
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "ERIDIFF_STORE": str(self.store),
            "ERIDIFF_DEVICE": "cpu",
            "XDG_CACHE_HOME": str(self.cache),
            "XDG_CONFIG_HOME": str(self.cache / "config"),  # else a user's own local.yaml would count
            "DVC_NO_ANALYTICS": "1",
            "HF_HUB_OFFLINE": "1",
        }

    def launching(self) -> dict[str, str]:
        """For programs that start stages by their own python: Prefect's, `eridiff repro`, a launcher of processes."""
        if self.cold:
            return self.environment()
        found = self.environment()
        return {**found, "PATH": f"{start().stages}{os.pathsep}{found['PATH']}", "PYTHONPATH": str(start().stages)}

    def run(
        self, *command: str, check: bool = True, place: Path | None = None, limit: float = 600, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            cwd=place or self.place,
            env={**self.environment(waited=True), **extra},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=limit,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}"
        return done

    def repro(self, *arguments: str, check: bool = True, **extra: str) -> Ran:
        done = self.run("dvc", "repro", *arguments, check=check, **extra)
        return parse(done.returncode, done.stdout)

    def why(self, *arguments: str, **extra: str) -> dict[str, Any]:
        extra = {"PYTHONPATH": str(self.root), **extra}
        done = self.run("python", "-m", "eridiff", "why", "--json", *arguments, check=False, **extra)
        prediction: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return prediction

    def commit(self, message: str = "edit") -> None:
        self.run("git", "add", "-A", place=self.root)
        self.run("git", "commit", "-qm", message, "--allow-empty", place=self.root)

    def params(self, changes: dict[str, Any]) -> None:
        """Set keys of params.yaml by their dotted paths."""
        path = self.place / "params.yaml"
        yaml = YAML()
        record = yaml.load(path.read_text("utf-8"))
        for key, value in changes.items():
            *parents, last = key.split(".")
            section = record
            for parent in parents:
                section = section[parent]
            section[last] = value
        with path.open("w", encoding="utf-8") as file:
            yaml.dump(record, file)

    def lock(self) -> dict[str, str]:
        """Out -> md5, as dvc.lock says."""
        record = YAML(typ="safe").load((self.place / "dvc.lock").read_text("utf-8"))
        return {out["path"]: out["md5"] for stage in record["stages"].values() for out in stage["outs"]}


def parse(code: int, output: str) -> Ran:
    """Which stages ran or were restored, and what the caching stages say they encoded."""
    counts = re.findall(r"^(latents|text): \d+ samples, (\d+) encoded, (\d+) reused", output, re.M)
    return Ran(
        code=code,
        output=output,
        stages=re.findall(r"^Running stage '(\w+)'", output, re.M),
        restored=re.findall(r"^Stage '(\w+)' is cached", output, re.M),
        encoded={name: (int(encoded), int(reused)) for name, encoded, reused in counts},
    )


def lay_small(root: Path) -> None:
    """Pictures, bases, presets and params of tests/small in place of the demo's."""
    for name in ("raw", "bases"):
        shutil.rmtree(root / "data" / name)
        shutil.copytree(SMALL / name, root / "data" / name)
    for preset in (SMALL / "params").iterdir():
        shutil.copyfile(preset, root / "presets" / preset.name)
    shutil.copyfile(SMALL / "params" / "tiny-sdxl.yaml", root / "params.yaml")


def make_clone(
    folder: Path,
    name: str,
    *,
    quick: bool = True,
    demo: bool = False,
    store: Path | None = None,
    cold: bool = False,
) -> Clone:
    """A clone of the checkout as it stands (committed or not), with an empty store and an empty DVC cache.

    Its pictures, bases and params are those of tests/small, unless the demo itself is wanted. `quick` shortens
    training and sampling. cold: as of Clone.
    """
    root = folder / name
    root.mkdir(parents=True)
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    for line in listed.stdout.splitlines():
        if (ROOT / line).is_file() and line != "dvc.lock":
            (root / line).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / line, root / line)
    for package in ("eridiff", "stages"):  # compiled once for all clones: the sources' times are copied too
        for compiled in (ROOT / package).rglob("*.pyc"):
            place = root / compiled.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(compiled, place)
    if not demo:
        lay_small(root)
    clone = Clone(root, store or folder / f"{name}-store", folder / f"{name}-cache", cold=cold)
    if quick:
        clone.params({f"{section}.{key}": value for section, keys in QUICK.items() for key, value in keys.items()})
    for command in (
        ("git", "init", "-q", "-b", "main"),
        ("git", "config", "user.name", "test"),
        ("git", "config", "user.email", "test@localhost"),
    ):
        clone.run(*command)
    clone.commit("start")
    return clone
