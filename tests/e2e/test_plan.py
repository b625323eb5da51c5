"""`eridiff plan` at full size: presets fit the cards that they are for, and what does not fit is changed.

One preset each time, all as a costly proof (tests/proofs.py): a minute each.
"""

import re
from pathlib import Path

import pytest

from eridiff.core.config import read_yaml
from eridiff.family import load_family, published
from eridiff.memory.plan import Card, Planner, plan_project
from eridiff.memory.train import GIB
from eridiff.weights.components import Component
from eridiff.weights.pointers import Pointer, pointer_text
from tests.conftest import ROOT
from tests.support.checkouts import make_checkout

pytestmark = pytest.mark.e2e
PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*gb.yaml"))
EACH_TIME = "sdxl-12gb"  # the quickest to trace
MEMORY = {"24gb": 22.5, "12gb": 11.0}  # GiB, as cards have it that check their memory for errors


def full_size(family: str, variant: str) -> list[Pointer]:
    """Pointers of a published base, whose weights are nowhere."""
    configs = published(family).models[variant]
    return [
        Pointer(
            base=variant,
            family=family,
            part=part,
            components={n: Component(name=n, config=dict(configs.get(n, {})), files={}, digest="") for n in names},
        )
        for part, names in load_family(family).PARTS.items()
    ]


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of a preset, of whose base there is nothing but pointers."""
    folder = make_checkout(tmp_path / "checkout", monkeypatch)
    (folder / "params.yaml").write_text((ROOT / "presets" / f"{request.param}.yaml").read_text())
    model = read_yaml(folder / "params.yaml")["model"]
    for pointer in full_size(model["family"], model["base"]):
        path = folder / "data" / "bases" / model["base"] / f"{pointer.part}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(pointer_text(pointer))
    return folder


PARAMS = [pytest.param(name, marks=[pytest.mark.proof] * (name != EACH_TIME)) for name in PRESETS]


@pytest.mark.parametrize("project", PARAMS, indirect=True)
def test_presets_fit_the_cards_that_they_are_for(project: Path, request: pytest.FixtureRequest) -> None:
    memory = MEMORY[request.node.callspec.params["project"].split("-")[-1]]
    planner = Planner(project, Card(name="a card", memory=int(memory * GIB), is_here=False))
    fits = {estimate.stage: estimate.fits for estimate in planner.estimates()}
    assert fits == {"latents": True, "text": True, "train": True, "sample": True}


@pytest.mark.proof
@pytest.mark.parametrize("project", ["flux-dev-24gb"], indirect=True)
def test_flux_on_a_card_of_12_is_put_into_four_bits(project: Path) -> None:
    before = (project / "params.yaml").read_text()
    lines = list(plan_project(project, 12.0, write=True))
    assert sum("DOES NOT FIT" in line for line in lines) == 2
    assert any("with train.quantise: nf4: 9." in line for line in lines)
    assert (project / "params.yaml").read_text() == re.sub(r"quantise: fp8", "quantise: nf4", before)
