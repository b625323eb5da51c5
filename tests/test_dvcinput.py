"""What DVC would read without end is refused before it starts."""

import os
import re
from pathlib import Path

import pytest

from eridiff.dvcinput import refuse_unbounded
from eridiff.errors import ConfigError, DataError
from tests.test_bounds_fuzz import in_time


def test_what_dvc_would_read_without_end_is_refused(tmp_path: Path) -> None:
    refuse_unbounded(tmp_path)  # nothing there
    levels = "\n".join(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 9))
    (tmp_path / "params.yaml").write_text(f"a0: &a0 [1]\n{levels}\n")
    with pytest.raises(ConfigError, match=r"params\.yaml"):
        refuse_unbounded(tmp_path)
    (tmp_path / "params.yaml").write_text("train: {steps: 1}\n")
    refuse_unbounded(tmp_path)
    (tmp_path / "data" / "raw").mkdir(parents=True)
    os.mkfifo(tmp_path / "data" / "raw" / "p0.png")
    with pytest.raises(DataError, match=r"p0\.png"):
        refuse_unbounded(tmp_path)


def test_a_pipe_among_the_pointers_is_refused(tmp_path: Path) -> None:
    for folder in ("eridiff/families", "data/bases/odd", "projects/cats"):
        (tmp_path / folder).mkdir(parents=True)
    refuse_unbounded(tmp_path / "projects" / "cats")
    os.mkfifo(tmp_path / "data" / "bases" / "odd" / "vae.json")
    for project in (tmp_path, tmp_path / "projects" / "cats"):
        with pytest.raises(DataError, match=r"odd/vae\.json"):
            refuse_unbounded(project)


def fill(path: Path, kind: str) -> None:
    """Put something that is no file of settings in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "loop":
            path.symlink_to(path.name)
        case "folder":
            path.mkdir()
        case "terabyte":
            with path.open("wb") as file:
                file.truncate(1 << 40)
        case "latin":
            path.write_bytes(b"a: \xff\n")
        case "lists":
            path.write_bytes(b"[" * 100_000)


KINDS = ["pipe", "device", "loop", "folder", "terabyte", "latin"]
FILES = ["params.yaml", "dvc.yaml", "dvc.lock", "data/raw.dvc", ".dvcignore", ".dvc/config", ".dvc/config.local"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_what_stands_in_the_place_of_a_file_of_dvc_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    fill(tmp_path / name, kind)
    with in_time(), pytest.raises(ConfigError, match=re.escape(str(tmp_path / name))):
        refuse_unbounded(tmp_path)


@pytest.mark.parametrize("name", ["data/choices.json", "data/captions/captions.parquet", "data/metrics.json"])
def test_pipes_among_the_outs_are_refused(name: str, tmp_path: Path) -> None:
    fill(tmp_path / name, "pipe")
    with in_time(), pytest.raises(DataError, match=re.escape(name.removeprefix("data/"))):
        refuse_unbounded(tmp_path)
