"""A DVC project whose one stage fills the store as the caching stages do, without a model: quick, and it counts."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from tests.e2e.prefork import start

ROOT = Path(__file__).parent.parent.parent
LENGTH = 200_000  # bytes of an entry
STAGE = f"""
import random
from pathlib import Path
from eridiff.caching.fill import fill
from eridiff.store.last_output import earlier_shards
from eridiff.core.errors import run_main
from eridiff.machine.local import store_root
from eridiff.store.store import Store
from eridiff.store.entries import entry_key
from eridiff.formats.safetensors import RawTensor

def entry(number):
    parts = {{"number": number, "vae": "d" * 64}}
    return entry_key(parts), parts, {{"mean": RawTensor("U8", ({LENGTH},), random.Random(number).randbytes({LENGTH}))}}

def main():
    store, out = Store(store_root(), "latents"), Path("data/latents")
    items = [entry(number) for number in Path("numbers.txt").read_text().split()]
    def encode():
        lost = set(store.missing(key for key, _, _ in items))
        for item in items:
            store.put(*item)
        return len(lost)
    earlier = lambda: earlier_shards("latents", str(out))
    _, counts = fill(store, [key for key, _, _ in items], earlier, encode, out, what="latents")
    (out / "index.parquet").write_bytes(b"index of " + Path("numbers.txt").read_bytes())
    print(counts.line(), flush=True)

run_main(main)
"""
DVC_YAML = "stages: {latents: {cmd: python -m stage, deps: [numbers.txt], outs: [data/latents]}}\n"


@dataclass
class Toy:
    """One project: its folder and the store."""

    folder: Path
    store: Path
    shim: Path = ROOT  # a folder whose sitecustomize.py every process of it imports; each is a python of its own then

    def run(self, *command: str, code: int = 0) -> str:
        scripts = [Path(sys.executable).parent]
        if self.shim is ROOT:  # else children of one process (tests/e2e/prefork.py)
            scripts = [start().dvc, start().folder, *scripts]
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("ERIDIFF_", "PYTEST_", "DVC_", "GIT_"))},
            "PATH": os.pathsep.join([*map(str, scripts), os.environ["PATH"]]),
            "PYTHONPATH": f"{self.shim}{os.pathsep}{ROOT}",
            "ERIDIFF_STORE": str(self.store),
            "DVC_NO_ANALYTICS": "1",
        }
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=300,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def eridiff(self, *arguments: str, code: int = 0) -> str:
        return self.run("python", "-m", "eridiff", "store", *arguments, code=code)

    def numbers(self, *numbers: int) -> None:
        (self.folder / "numbers.txt").write_text(" ".join(map(str, numbers)))

    def repro(self) -> int | None:
        """Run the pipeline; how many entries were encoded, None where the stage did not run."""
        found = re.search(r"^latents: \d+ samples, (\d+) encoded", self.run("dvc", "repro"), re.M)
        return int(found[1]) if found else None

    def lock(self) -> str:
        record = YAML(typ="safe").load((self.folder / "dvc.lock").read_text())
        return str(record["stages"]["latents"]["outs"][0]["md5"])

    @property
    def out(self) -> Path:
        return self.folder / "data/latents/shard-all.safetensors"

    @property
    def shard(self) -> Path:
        """The one shard of the store."""
        (path,) = self.store.glob("latents/shards/*.safetensors")
        return path

    @property
    def object(self) -> Path:
        """DVC's object of the shard: the largest one."""
        return max((self.folder / ".dvc/cache/files/md5").glob("??/*"), key=lambda path: path.stat().st_size)


def make_toy(folder: Path, store: Path, *, cache_type: str | None = None, shim: Path = ROOT) -> Toy:
    """A project with five entries, not run yet, and the checkout's own way to link."""
    folder.mkdir(parents=True)
    toy = Toy(folder, store, shim)
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "stage.py").write_text(STAGE)
    toy.numbers(*range(5))
    toy.run("git", "init", "-q", "-b", "main")
    toy.run("git", "config", "user.name", "test")
    toy.run("git", "config", "user.email", "test@localhost")
    toy.run("dvc", "init", "-q")
    (folder / ".dvc/config").write_text((ROOT / ".dvc/config").read_text())
    if cache_type:
        toy.run("dvc", "config", "cache.type", cache_type)
    return toy
