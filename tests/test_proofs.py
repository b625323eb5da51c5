"""The records of costly proofs: what is out of date is said, what was not run is never recorded as proved."""

import sys
from pathlib import Path

import pytest

from eridiff.families import family_names
from tests import proofs
from tests.checkouts import ROOT
from tests.proofs import PROOFS, Proof, digest, prove, read_results, warnings

SAYS = Proof(about="it says yes", command=("-c", "print('yes')"), files=("a/**/*.txt",), packages=())
FAILS = Proof(about="it fails", command=("-c", "print('no'); raise SystemExit(3)"), files=("a/**/*.txt",), packages=())
EDITS = Proof(
    about="an edit meanwhile", command=("-c", "open('a/b.txt', 'w').write('y')"), files=("a/*.txt",), packages=()
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of two proofs."""
    (tmp_path / "a/deep").mkdir(parents=True)
    (tmp_path / "a/b.txt").write_text("x")
    (tmp_path / "results.json").write_text("{}")
    monkeypatch.setattr(proofs, "ROOT", tmp_path)
    monkeypatch.setattr(proofs, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(proofs, "PROOFS", {"says": SAYS, "fails": FAILS, "edits": EDITS})
    monkeypatch.setattr(proofs, "pins", lambda _: [])
    return tmp_path


def told() -> list[str]:
    found = warnings(read_results(), {"says": SAYS})
    return [line.split(" Run it")[0] for line in found]


def test_a_proof_stands_until_what_it_is_about_changes(place: Path) -> None:
    assert told() == ["proof says was never run."]
    assert prove("says")
    assert told() == []
    assert read_results()["says"]["said"] == ["yes"]
    (place / "a/deep/c.txt").write_text("new")
    assert told() == ["proof says is out of date: what it is about has changed since."]
    (place / "a/deep/c.txt").unlink()
    assert told() == []
    (place / "a/b.txt").write_text("z")
    assert told() == ["proof says is out of date: what it is about has changed since."]


def test_a_failure_is_recorded_as_one(place: Path) -> None:
    assert not prove("fails")
    results = read_results()
    assert results["fails"]["holds"] is False
    (line,) = warnings(results, {"fails": FAILS})
    assert line == "proof fails failed. Run it: python -m tests.proofs fails  (it fails)"


def test_an_edit_meanwhile_leaves_no_record(place: Path) -> None:
    with pytest.raises(SystemExit, match="was edited while it ran"):
        prove("edits")
    assert read_results() == {}


def test_an_unknown_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["proofs", "flip"])
    with pytest.raises(SystemExit, match="no proof is called 'flip'; there are: demo-sdxl"):
        proofs.main()


def test_without_names_it_warns_and_fails_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["proofs"])
    proofs.main()
    assert capsys.readouterr().out.startswith("warning: proof says was never run. Run it: python -m tests.proofs says")


def test_every_record_is_of_a_proof_and_every_glob_finds_something() -> None:
    assert set(read_results()) <= set(PROOFS)
    assert {f"demo-{family}" for family in family_names()} <= set(PROOFS)
    globs = {glob for proof in PROOFS.values() for glob in proof.files}
    assert [glob for glob in sorted(globs) if not any(ROOT.glob(glob)) and "versions.yaml" not in glob] == []
    assert {pin.split("==")[0] for pin in proofs.pins(proofs.NUMERIC)} == set(proofs.NUMERIC)


def test_the_digest_is_of_pins_too(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(PROOFS["demo-flux"])
    monkeypatch.setattr(proofs, "pins", lambda _: ["torch==9"])
    assert digest(PROOFS["demo-flux"]) != before
