"""What 10,000 pictures with sidecars cost outside the encoders: `python -m benchmarks.dvc_scale [--pictures N]`.

Builds a project of tiny pictures in a temporary folder, from the checkout as it stands, runs it once, and measures a
`dvc repro` without changes, `eridiff why`, and the time from one edited caption to the first step of training.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eridiff.params.edit import filled

ROOT = Path(__file__).resolve().parent.parent
SIDE = 64
CHANGES: dict[str, dict[str, Any]] = {
    "captions": {"variants": 1, "regularisation": []},
    "buckets": {"resolution": 64},
    "latents": {"batch_size": 16},
    "text": {"batch_size": 16},
    "train": {"steps": 4, "save_every": 4, "check_base": False, "ema_decay": None},
    "sample": {"prompts": [{"prompt": "[trigger]"}], "steps": 1, "measures": False, "ema": False},
}


def write_picture(path: Path, number: int) -> None:
    """A PNG of one colour of its own, without a library: 10,000 take a second."""
    colour = bytes((number % 256, number // 256 % 256, 77))
    rows = (b"\0" + colour * SIDE) * SIDE

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = SIDE.to_bytes(4, "big") * 2 + bytes((8, 2, 0, 0, 0))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def make_project(folder: Path, pictures: int) -> None:
    """A copy of the checkout with other pictures."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in listed.splitlines():
        if not name.startswith("data/raw/") and name != "dvc.lock" and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    params = folder / "params.yaml"
    text = filled(params.read_text("utf-8"), CHANGES)
    params.write_text(text.replace("warmup_steps: 20", "warmup_steps: 1"), "utf-8")
    (folder / "local.yaml").write_text("state_every: 1\n")
    raw = folder / "data/raw"
    raw.mkdir(parents=True)
    for number in range(pictures):
        write_picture(raw / f"{number:06}.png", number)
        (raw / f"{number:06}.txt").write_text(f"picture number {number}, flat colour")
    subprocess.run(["git", "init", "-q", str(folder)], check=True)


def make_environment(folder: Path) -> dict[str, str]:
    """A store and a cache of its own; compiled modules are kept, as on any machine."""
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "ERIDIFF_STORE": str(folder.parent / "store"),
        "XDG_CACHE_HOME": str(folder.parent / "cache"),
        "DVC_NO_ANALYTICS": "1",
        "HF_HUB_OFFLINE": "1",
    }


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long the block took."""
    start = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - start:.2f} s", flush=True)


def first_step(folder: Path, environment: dict[str, str]) -> None:
    """Run `dvc repro` and print when each stage started and when training had done its first step."""
    known, start = set((folder.parent / "store").glob("runs/*")), time.monotonic()
    log = folder.parent / "log"
    with log.open("w") as file:
        process = subprocess.Popen(["dvc", "repro", "train"], cwd=folder, env=environment, stdout=file, stderr=file)
        seen: set[str] = set()
        while process.poll() is None:
            for line in log.read_text("utf-8").splitlines():
                if line.startswith(("Running stage", "captions:", "text:", "latents:")) and line not in seen:
                    seen.add(line)
                    print(f"  {time.monotonic() - start:5.2f} s {line}", flush=True)
            states = set((folder.parent / "store").glob("runs/*/state-*.safetensors"))
            if any(path.parent not in known for path in states):
                print(
                    f"one edited caption: first training step done after {time.monotonic() - start:.2f} s", flush=True
                )
                break
            time.sleep(0.02)
        if process.wait():
            raise SystemExit(log.read_text("utf-8"))


def main() -> None:
    """Build, run, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="Keep the project here, and use it again if it is there.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)) / "project"
        if not folder.exists():
            folder.mkdir(parents=True)
            make_project(folder, options.pictures)
        environment = make_environment(folder)

        def run(*command: str) -> None:
            subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)

        with timed("the first run, all stages"):
            run("dvc", "repro")
        for _ in range(3):
            with timed("dvc repro, nothing changed"):
                run("dvc", "repro")
        for _ in range(2):
            with timed("eridiff why, nothing changed"):
                run(sys.executable, "-m", "eridiff", "why")
        (folder / "data/raw/000007.txt").write_text(f"another caption of {time.time()}")
        with timed("eridiff why, one edited caption"):
            run(sys.executable, "-m", "eridiff", "why")
        first_step(folder, environment)


if __name__ == "__main__":
    main()
