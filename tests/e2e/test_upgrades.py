"""An upgrade of a library: DVC sees none, `eridiff why` does, and the stage encodes anew what the upgrade changed.

The upgrade is simulated from outside: another version's metadata, and code at start-up that moves the VAE's output.
"""

from pathlib import Path

import pytest
from PIL import Image
from ruamel.yaml import YAML

from tests.e2e.harness import ROOT, Clone, make_clone

pytestmark = pytest.mark.e2e

NUM_PICTURES, NUM_TEXTS = 20, 38
STARTUP = """
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

plain = AutoencoderKL._encode
AutoencoderKL._encode = lambda self, x: plain(self, x) + SHIFT
"""


def upgrade(folder: Path, version: str, shift: float) -> str:
    """A folder for PYTHONPATH in which diffusers has another version and its VAE's output is moved."""
    place = folder / f"diffusers-{version}"
    facts = place / f"diffusers-{version}.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: diffusers\nVersion: {version}\n")
    (place / "sitecustomize.py").write_text(STARTUP.replace("SHIFT", repr(shift)))
    return str(place)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    made = make_clone(tmp_path_factory.mktemp("upgrades"), "clone")
    made.repro("latents", "text")
    made.commit("ran")
    return made


def no_op(clone: Clone, path: str) -> None:
    """DVC sees nothing."""
    assert clone.repro("latents", "text", PYTHONPATH=path).stages == []


def test_an_upgrade_within_rounding_encodes_nothing(clone: Clone, tmp_path: Path) -> None:
    path = upgrade(tmp_path, "0.98.0", 1e-6)
    no_op(clone, path)
    predicted = clone.why(PYTHONPATH=path)
    assert predicted["encoders"] == predicted["samples"] == []
    assert [note.split(":")[0] for note in predicted["notes"]] == ["latents", "text"]
    assert all("the same numbers" in note and "-> 0.98.0, but for rounding" in note for note in predicted["notes"])
    assert clone.why(PYTHONPATH=path)["notes"] == []  # checked once
    ran = clone.repro("-f", "-s", "latents", PYTHONPATH=path)
    assert ran.encoded == {"latents": (0, NUM_PICTURES)}
    assert "drift check of" not in ran.output


def test_an_upgrade_beyond_rounding_is_named_and_encoded(clone: Clone, tmp_path: Path) -> None:
    path = upgrade(tmp_path, "0.99.0", 1e-2)
    no_op(clone, path)
    lock = clone.lock()
    predicted = clone.why(PYTHONPATH=path)
    assert {plan["state"] for name, plan in predicted["stages"].items() if name in ("latents", "text")} == {"-"}
    (encoder,) = predicted["encoders"]
    assert encoder["stage"] == "latents"
    assert encoder["message"].startswith("the VAE of tiny-sdxl gives other numbers since diffusers 0.98.0 -> 0.99.0: ")
    assert "largest difference 0.0" in encoder["message"] and "rounding would be 0.00" in encoder["message"]
    assert encoder["command"] == "dvc repro -f -s latents && dvc repro"
    assert (encoder["encoded"], encoder["reused"]) == (NUM_PICTURES, 0)
    assert {tuple(sample["changes"]) for sample in predicted["samples"]} == {("probe",)}
    assert len(predicted["samples"]) == NUM_PICTURES
    force, then = (command.split()[2:] for command in encoder["command"].split("&&"))
    ran = clone.repro(*force, PYTHONPATH=path)
    assert ran.encoded == {"latents": (NUM_PICTURES, 0)}
    assert then == []
    no_op(clone, path)
    assert clone.lock()["data/latents"] != lock["data/latents"]
    assert clone.lock()["data/text"] == lock["data/text"]
    assert clone.why(PYTHONPATH=path)["encoders"] == []
    ran = clone.repro("-f", "-s", "latents", PYTHONPATH=path)
    assert ran.encoded == {"latents": (0, NUM_PICTURES)}


def test_going_back_to_the_older_library(clone: Clone, tmp_path: Path) -> None:
    """Entries of both drift ids stay in the store: what `why` names is reused, not encoded."""
    (encoder,) = clone.why()["encoders"]
    assert (encoder["encoded"], encoder["reused"]) == (0, NUM_PICTURES)
    assert "diffusers 0.99.0 -> 0." in encoder["message"]
    assert clone.repro("-f", "-s", "latents").encoded == {"latents": (0, NUM_PICTURES)}
    assert clone.why()["encoders"] == []


def test_a_run_after_an_upgrade_checks_for_drift_itself(clone: Clone, tmp_path: Path) -> None:
    """Without `why`: one edited picture starts the stage, which finds the upgrade and encodes all."""
    path = upgrade(tmp_path, "1.0.0", 2e-2)
    Image.new("RGB", (160, 160), (10, 90, 200)).save(clone.root / "data/raw/fox.png")
    ran = clone.repro("latents", PYTHONPATH=path)
    assert "latents: diffusers " in ran.output and "-> 1.0.0: drift check of the VAE of tiny-sdxl" in ran.output
    assert "the VAE of tiny-sdxl gives other numbers since" in ran.output
    assert ran.encoded == {"latents": (NUM_PICTURES, 0)}


def test_where_the_weights_are_not_here_why_says_so(clone: Clone, tmp_path: Path) -> None:
    path = upgrade(tmp_path, "1.1.0", 3e-2)
    weights = clone.root / "data/bases/tiny-sdxl/vae"
    elsewhere = tmp_path / "vae"
    weights.rename(elsewhere)
    try:
        predicted = clone.why(PYTHONPATH=path)
    finally:
        elsewhere.rename(weights)
    assert any("not on this machine" in note and note.startswith("latents: ") for note in predicted["notes"])
    assert predicted["encoders"] == []
    assert [encoder["stage"] for encoder in clone.why(PYTHONPATH=path)["encoders"]] == ["latents"]


def test_a_clone_compares_with_what_it_pulled(clone: Clone, tmp_path: Path) -> None:
    """An empty store and newer libraries: one edited picture, and all are encoded, none mixed with older numbers."""
    path = upgrade(tmp_path, "1.2.0", 5e-2)
    clone.repro("-f", "-s", "latents")  # with the library as it is
    fresh = Clone(clone.root, tmp_path / "store", clone.cache)
    assert fresh.why(PYTHONPATH=path)["encoders"] == []  # nothing is to be encoded: nothing is loaded
    Image.new("RGB", (160, 160), (200, 90, 10)).save(clone.root / "data/raw/lemon.png")
    predicted = fresh.why(PYTHONPATH=path)["stages"]["latents"]
    assert (predicted["encoded"], predicted["reused"]) == (NUM_PICTURES, 0)
    assert fresh.repro("latents", PYTHONPATH=path).encoded == {"latents": (NUM_PICTURES, 0)}


# An upgrade of eridiff itself: from dvc.yaml and dvc.lock that listed its code to those that name its versions.

BEFORE = ROOT / "tests/before_versions"


def as_before(clone: Clone) -> None:
    """Give the clone's dvc.lock the form of before: files of code among the deps, and no versions."""
    yaml = YAML(typ="safe")
    path = clone.place / "dvc.lock"
    lock, early = (yaml.load(file.read_text("utf-8")) for file in (path, BEFORE / "lock.yaml"))
    for stage, entry in lock["stages"].items():
        code = [dep for dep in early["stages"][stage]["deps"] if dep["path"].endswith(".py")]
        named = ((dep["path"].replace("families/sd35", "families/sdxl"), dep) for dep in code)
        entry["deps"] += [{**dep, "path": name} for name, dep in named]
        entry["params"] = {name: keys for name, keys in entry["params"].items() if name == "params.yaml"}
        if not entry["params"]:
            del entry["params"]
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(lock, file)


def test_after_an_upgrade_nothing_runs_and_a_caption_runs_what_it_must(tmp_path: Path) -> None:
    clone = make_clone(tmp_path, "clone")
    clone.params({"captions.variants": 1, "captions.shuffle_tags": False})
    clone.repro()
    clone.commit("ran")
    lock, outs = (clone.root / "dvc.lock").read_text("utf-8"), clone.lock()
    as_before(clone)
    refused = clone.run("python", "-m", "eridiff.reproduce", check=False)
    assert refused.returncode == 1 and "Run `eridiff upgrade` in" in refused.stdout
    clone.run("python", "-m", "eridiff", "upgrade")
    assert (clone.root / "dvc.lock").read_text("utf-8") == lock
    assert {plan["state"] for plan in clone.why()["stages"].values()} == {"-"}
    ran = clone.repro()
    assert ran.stages == ran.restored == [], ran.output
    as_before(clone)
    (clone.root / "data/raw/fox.txt").write_text("eridraw, a flat red field")
    clone.run("python", "-m", "eridiff", "upgrade")
    predicted = clone.why()["stages"]
    ran = clone.repro()
    assert ran.stages == ["captions", "text", "train", "sample", "export"], ran.output
    assert {name for name, plan in predicted.items() if plan["state"] != "-"} == set(ran.stages)
    assert ran.encoded == {"text": (1, 19)}
    assert clone.lock()["data/latents"] == outs["data/latents"]


def test_a_raised_version_runs_its_stage_and_encodes_nothing(tmp_path: Path) -> None:
    """`latents` raised: it runs and encodes nothing; `why` has the sentence."""
    clone = make_clone(tmp_path, "clone")
    clone.repro("latents")
    clone.commit("ran")
    path = clone.root / "eridiff/versions.yaml"
    raised = path.read_text("utf-8").replace("  latents: 1", "  latents: 2")
    sentence = "Indexes have another column: the stage runs again in every project."
    change = f"changes:\n  - {{version: stages.latents, number: 2, sentence: '{sentence}'}}\n"
    path.write_text(raised.replace("changes: []\n", change))
    predicted = clone.why()
    assert predicted["stages"]["latents"]["reasons"] == [f"latents 1 -> 2: {sentence}"]
    assert predicted["notes"] == []
    ran = clone.repro("latents")
    assert ran.stages == ["latents"] and ran.encoded == {"latents": (0, NUM_PICTURES)}
    clone.run("git", "checkout", "-q", "eridiff/versions.yaml")
    assert clone.repro("latents").stages == []
