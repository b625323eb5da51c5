"""The pages of `make serve` in a headless Chromium: a run from the form, its end, its artifacts, and cancelling.

`ERIDIFF_SCREENSHOTS=docs/pictures` runs the demo itself and writes the pictures of docs/flow.md.
"""

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from eridiff.flow.supervise import PATIENCE
from tests.e2e.flows import Served, living, serving, wait
from tests.e2e.harness import make_clone
from tests.ui.browser import Browser, browser, missing

SHOTS = os.environ.get("ERIDIFF_SCREENSHOTS")
pytestmark = [pytest.mark.flow, pytest.mark.skipif(missing() is not None, reason=str(missing()))]
WIDTH = "return Math.max(0, ...[...document.images].map(image => image.naturalWidth))"  # of the largest picture
TABS = "[role=tab]"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page")
    clone = make_clone(folder, "eridiff", quick=not SHOTS, demo=bool(SHOTS))
    with serving(Served(clone, folder / "home-of-prefect")) as one:
        yield one


@pytest.fixture(scope="module")
def window(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile"), (1240, 840)) as one:
        one.open(f"http://127.0.0.1:{served.port}/")
        yield one


def shot(window: Browser, name: str, folder: Path) -> None:
    """Write what is seen, in few colours."""
    place = Path(__file__).parents[2] / SHOTS if SHOTS else folder
    seen = Image.open(io.BytesIO(window.png())).convert("RGB")
    assert len(seen.getcolors(1 << 24) or []) > 8, "an empty page"
    seen.quantize(96).save(place / f"flow-{name}.png", optimize=True)


def fill_form(window: Browser, served: Served, steps: int) -> None:
    """From the first page to the form, with steps of training filled in."""
    window.click("a", "Deployments")
    window.click("a", served.clone.root.name + "-")
    window.click("button", "Run")
    window.click("[role=menuitem]", "Custom run")
    label = window.wait("label", "steps")  # the first: those of train
    field = window.script("return document.getElementById(arguments[0].htmlFor)", label)
    window.script("arguments[0].scrollIntoView({block: 'center'})", field)
    window.type(field, str(steps))


def start(window: Browser) -> str:
    """Send the form and go to the run's page; the run's number."""
    window.click("button[type=submit]", "Submit")
    window.click("a", "View run")
    window.wait(TABS, "Artifacts")
    return re.findall(r"flow-run/([0-9a-f-]{36})", window.url())[0]


def test_a_run_from_the_form_ends_and_shows_its_artifacts(window: Browser, served: Served, tmp_path: Path) -> None:
    window.click("a", "Deployments")
    fill_form(window, served, 90 if SHOTS else 3)
    shot(window, "form", tmp_path)
    number = start(window)
    page = window.url()
    window.open("about:blank")  # without a GPU Prefect's drawing of the graph would keep a core busy meanwhile
    served.ended(number, 400)
    window.open(page)
    window.wait("[data-slot=badge]", "Completed")
    assert served.run(number)["parameters"]["overrides"] == {"train": {"steps": 90 if SHOTS else 3}}
    assert set(served.states(number).values()) == {"Completed"}
    window.wait("main", "holds gpu-0")  # the log
    window.wait("main", "8 Task runs")
    window.wait("canvas")
    shot(window, "run", tmp_path)

    keys = [f"checkout-{name}" for name in ("samples", "loss", "cache", "export")]
    window.click(TABS, "Artifacts")
    for key in keys:
        window.wait("a", key)
    ids = {record["key"]: record["id"] for record in served.ask("POST", "/artifacts/filter", {})}
    for key, words in zip(keys, ("grid.png", "loss", "encoded", "SHA-256"), strict=True):
        window.open(f"http://127.0.0.1:{served.port}/v2/artifacts/artifact/{ids[key]}")
        window.wait("main", words)
        if key in ("checkout-samples", "checkout-loss"):
            wait(lambda: window.script(WIDTH) > 200, 30, window.text)
            shot(window, key.removeprefix("checkout-"), tmp_path)
    text = served.artifacts(number)["checkout-export"]
    assert re.search(r"`data/export/\w+\.safetensors` \| [\d,]+ \| `[0-9a-f]{64}`", text)
    hosts = "return [...new Set(performance.getEntriesByType('resource').map(one => new URL(one.name).hostname))]"
    assert set(window.script(hosts)) <= {"127.0.0.1", ""}, "the page loads from elsewhere"
    assert served.outside.asked == []
    assert "refused" not in served.log.read_text()


def test_the_cancel_button_ends_every_child(window: Browser, served: Served) -> None:
    window.open(f"http://127.0.0.1:{served.port}/")
    fill_form(window, served, 1_000_000)
    number = start(window)
    page = window.url()
    window.open("about:blank")
    trains = lambda: [one for one in living(served.clone.root) if "stages.train" in one]  # noqa: E731
    wait(trains, 300, lambda: str(served.lines(number)))
    window.open(page)
    window.click("button", "Open menu")
    window.click("[role=menuitem]", "Cancel")
    window.click("[role=alertdialog] button", "Cancel Flow Run")
    wait(lambda: not trains(), PATIENCE + 10, lambda: str(trains()))  # it ends its step and saves its state
    window.wait("[data-slot=badge]", "Cancelled", 30)
