"""Versions of code: strict files, a sentence for each raise, and what `why` says of one."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from eridiff.core.config import validate
from eridiff.core.errors import ConfigError
from eridiff.family import family_names, load_family
from eridiff.machine import code
from eridiff.machine.code import changed_code, code_digest, describe_changed
from eridiff.versions import CodeVersions, FamilyVersions, code_versions, describe_change, family_versions
from eridiff.why.differences import changed_params
from tests.conftest import ROOT

FIRST = "Flow models draw their timesteps otherwise: trainings of SD 3.5 and Flux.1 run again."
SECOND = "The last batch of an epoch is whole: every training runs again."
NUMBERS: dict[str, Any] = {
    "stages": dict.fromkeys(("check", "captions", "buckets", "latents", "text", "train", "sample", "export"), 1),
    "store": {"pixels": 1},
}


def versions(train: int, *changes: tuple[str, int, str]) -> CodeVersions:
    said = [{"version": name, "number": number, "sentence": text} for name, number, text in changes]
    record = {**NUMBERS, "stages": {**NUMBERS["stages"], "train": train}, "changes": said}
    return validate(CodeVersions, record, where="versions.yaml", prefix="")


RAISED = [("stages.train", 3, SECOND), ("stages.train", 2, FIRST)]


def test_the_files_are_sound_and_families_have_the_same_names() -> None:
    assert set(code_versions().numbers) == {f"stages.{name}" for name in NUMBERS["stages"]} | {"store.pixels"}
    for family in family_names():
        assert family_versions(ROOT / "eridiff/families" / family) == load_family(family).VERSIONS


@pytest.mark.parametrize(
    ("train", "changes", "said"),
    [
        (2, [], "`changes` lacks the sentence for stages.train 2: what changes for whom"),
        (3, RAISED[:1], "`changes` lacks the sentence for stages.train 2"),
        (1, RAISED[1:], "`changes` names stages.train 2, which is no raise"),
        (2, [RAISED[1], RAISED[1]], "`changes` names stages.train 2, which is no raise or is named twice"),
        (2, [("train", 2, FIRST)], "`changes` lacks the sentence for stages.train 2"),
        (2, [("stages.train", 2, "faster")], "'changes.0.sentence' is 'faster'"),
        (0, [], "'stages.train' is 0"),
    ],
)
def test_each_raise_has_one_sentence(train: int, changes: list[tuple[str, int, str]], said: str) -> None:
    with pytest.raises(ConfigError, match=r"^versions\.yaml: ") as caught:
        versions(train, *changes)
    assert said in str(caught.value)


def test_an_unknown_or_missing_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "versions.yaml").write_text(
        "family: {train: 1, vae_encode: 1, text_encode: 1, sample: 1, exports: 1}\n"
    )
    with pytest.raises(ConfigError, match=r"unknown key 'family\.exports'.*export"):
        family_versions(tmp_path)
    with pytest.raises(ConfigError, match="is missing"):
        family_versions(tmp_path / "none")


def test_a_raise_is_said_with_its_sentences() -> None:
    file = versions(3, *RAISED)
    assert file.sentences("stages.train", 1, 3) == [FIRST, SECOND]
    assert describe_change(file, "stages.train", 2, 3, "flux") == f"train 2 -> 3: {SECOND}"
    assert describe_change(file, "stages.train", 1, 3, "flux") == f"train 1 -> 3: {FIRST} {SECOND}"
    assert describe_change(file, "stages.train", 3, 2, "flux").startswith(
        "train 3 -> 2: this eridiff is an earlier one"
    )
    numbers = {"train": 2, "vae_encode": 1, "text_encode": 1, "sample": 1, "export": 1}
    said = [{"version": "family.train", "number": 2, "sentence": FIRST}]
    family = validate(FamilyVersions, {"family": numbers, "changes": said}, where="x", prefix="")
    assert describe_change(family, "family.train", 1, 2, "flux") == f"flux's train 1 -> 2: {FIRST}"


def test_what_why_says_of_params_and_versions() -> None:
    file = versions(2, RAISED[1])
    known = dict.fromkeys(file.numbers, file) | {"family.train": load_family(family_names()[0]).VERSIONS}
    before = {"model.family": "flux", "train.seed": 1, "stages.train": 1, "family.train": 1}
    now = {**before, "train.seed": 2, "stages.train": 2}
    assert changed_params(now, before, known, "flux") == [f"train 1 -> 2: {FIRST}", "train.seed: 1 -> 2"]
    other = {key: value for key, value in before.items() if key != "family.train"}  # of another family's file
    assert changed_params({**before, "model.family": "sd35"}, other, known, "sd35") == [
        "model.family: 'flux' -> 'sd35'"
    ]


def test_edited_code_is_told_by_git(tmp_path: Path) -> None:
    assert changed_code(tmp_path) == [] and describe_changed([]) is None  # no git
    files = [tmp_path / "eridiff/a.py", tmp_path / "stages/b.py", tmp_path / "docs/c.md"]
    for file in files:
        file.parent.mkdir()
        file.write_text("1\n")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True, timeout=60)
    assert changed_code(tmp_path) == []
    files[2].write_text("2\n")
    assert changed_code(tmp_path) == []
    files[1].write_text("2\n")
    (tmp_path / "eridiff/näw.py").write_text("")
    (tmp_path / "eridiff/versions.yaml").write_text("")  # DVC looks at it
    assert changed_code(tmp_path) == ["eridiff/näw.py", "stages/b.py"]
    line = describe_changed(changed_code(tmp_path))
    assert (
        line
        and line.startswith("eridiff/näw.py and 1 more differ from git's HEAD")
        and "`dvc repro -f -s STAGE`" in line
    )
    assert (describe_changed(["a"]) or "").startswith("a differs from")


def test_the_digest_of_the_code_is_of_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (code.ROOT / "eridiff" / "machine" / "code.py").samefile(code.__file__)
    before = code_digest()
    (tmp_path / "eridiff" / "core").mkdir(parents=True)
    for source in (code.ROOT / "eridiff").rglob("*.py"):
        place = tmp_path / source.relative_to(code.ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(source)
    monkeypatch.setattr(code, "ROOT", tmp_path)
    assert code_digest() == before
    (tmp_path / "eridiff/core/new.py").write_text("")
    assert code_digest() != before


def test_an_installed_package_is_nobodys_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its environment may lie in a repository of the user's, which does not have it."""
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True, timeout=60)
    (tmp_path / "eridiff/template").mkdir(parents=True)
    (tmp_path / "eridiff/a.py").write_text("")
    assert changed_code(tmp_path) == ["eridiff/a.py"] and code.template() == code.ROOT
    monkeypatch.setattr(code, "TEMPLATE", tmp_path / "eridiff/template")
    assert changed_code(tmp_path) == [] and code.template() == tmp_path / "eridiff/template"
