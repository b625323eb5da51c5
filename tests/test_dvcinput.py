"""What DVC would read without end is refused before it starts."""

import os
from pathlib import Path

import pytest

from eridiff.dvcinput import refuse_unbounded
from eridiff.errors import ConfigError, DataError


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
