"""What a section takes from another: the export follows the samples, and says where it does not."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from eridiff.core.errors import ConfigError
from eridiff.params.inherited import EXPORT_EMA, inherited_differences, inherited_text, read_inherited


def sections(export: bool | None, sample: bool) -> dict[str, SimpleNamespace]:
    return {"export": SimpleNamespace(ema=export), "sample": SimpleNamespace(ema=sample)}


@pytest.mark.parametrize(
    ("export", "sample", "chosen", "says"),
    [
        (None, True, True, ""),
        (None, False, False, ""),
        (True, True, True, ""),
        (False, True, False, "holds the adapters of the last step, the pictures show the moving average"),
        (True, False, True, "holds the moving average, the pictures show the adapters of the last step"),
    ],
)
def test_the_export_follows_the_samples(
    export: bool | None, sample: bool, chosen: bool, says: str, tmp_path: Path
) -> None:
    (tmp_path / "choices.json").write_text(inherited_text(sections(export, sample)))
    assert read_inherited(tmp_path / "choices.json", EXPORT_EMA) is chosen
    lines = inherited_differences(sections(export, sample))
    assert len(lines) == bool(says) and says in "".join(lines)


@pytest.mark.parametrize("text", [None, "{", "{}", "[]"])
def test_a_file_without_the_choice_is_named(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"choices\.json does not say export\.ema: run `dvc repro`"):
        read_inherited(path, EXPORT_EMA)
