"""docs/first-lora.md: its settings are the presets', its hours and gigabytes follow from docs/benchmarks.md."""

import json
import re
from typing import Any

import pytest

from eridiff.core.config import read_yaml
from tests.conftest import ROOT
from tests.support.pages import table_of

PAGE = "docs/first-lora.md"
SETTINGS = {row["preset"]: row for row in table_of(PAGE, "5. Rank, rate and steps")}
COSTS = {row["preset"]: row for row in table_of(PAGE, "6. Train")}
REAL = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml") if not path.stem.startswith("tiny-"))
# Rows of the table of measured steps, by preset: seconds of one picture.
MEASURED = {
    "sdxl-24gb": "SDXL, 1 picture,",
    "example-sdxl": "SDXL, 1 picture,",
    "sd35-medium-24gb": "SD 3.5 Medium, 1 picture,",
    "sd35-large-24gb": "SD 3.5 Large, 1 picture,",
    "flux-dev-24gb": "Flux.1 dev in fp8, 1 picture,",
}


def preset(name: str) -> dict[str, Any]:
    record = read_yaml(ROOT / f"presets/{name}.yaml")
    assert isinstance(record, dict)
    return record


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", text)]


def test_every_preset_is_there() -> None:
    assert sorted(SETTINGS) == sorted(COSTS) == REAL


@pytest.mark.parametrize("name", REAL)
def test_settings_are_the_preset_s(name: str) -> None:
    row, params = SETTINGS[name], preset(name)
    train, buckets = params["train"], params["buckets"]
    assert int(row["rank"]) == train["lora"]["rank"] == train["lora"]["alpha"]
    assert float(row["learning rate"]) == train["optimizer"]["lr"]
    assert int(row["steps"]) == train["steps"]
    assert numbers(row["resolution"]) == [buckets["resolution"], *buckets.get("more_resolutions", [])]
    assert row["base stored as"] == train.get("quantise", "bf16")
    assert train["batch_size"] * train["accumulation"] == 4 and train["lora"]["targets"] == "attention"
    assert (train["optimizer"]["schedule"], train["optimizer"]["warmup_steps"]) == ("cosine", 100)
    assert (train["save_every"], train["keep"], params["buckets"]["upscale"]) == (250, 4, False)
    assert params["sample"]["strengths"] == [0.7, 1.0]


@pytest.mark.parametrize("name", MEASURED)
def test_hours_follow_from_measured_steps(name: str) -> None:
    table = table_of("docs/benchmarks.md", "Training step")
    (seconds,) = (numbers(row["measured"]) for row in table if row["0"].startswith(MEASURED[name]))
    hours = [preset(name)["train"]["steps"] * 4 * second / 3600 for second in seconds]
    assert numbers(COSTS[name]["training takes"]) == pytest.approx(hours, abs=0.06)
    assert COSTS[name]["on"] == "H200"


def test_hours_of_the_smallest_card() -> None:
    (seconds,) = re.findall(r"([\d.]+) s in nf4", (ROOT / "docs/benchmarks.md").read_text("utf-8"))
    (hours,) = numbers(COSTS["flux-dev-12gb"]["training takes"])
    assert hours == pytest.approx(preset("flux-dev-12gb")["train"]["steps"] * float(seconds) / 3600, abs=0.06)


@pytest.mark.parametrize("name", REAL)
def test_memory_is_what_was_measured(name: str) -> None:
    rows = {row["preset"]: row for row in table_of("docs/benchmarks.md", "Memory and time of every stage")}
    peaks = {stage: numbers(rows[name][stage])[0] for stage in ("latents", "text", "training", "samples")}
    assert numbers(COSTS[name]["peak memory of training"]) == [peaks["training"]]
    assert numbers(COSTS[name]["of the whole run"]) == [max(peaks.values())]


def test_sizes_of_the_bases() -> None:
    said = table_of(PAGE, "1. Choose a base")[1]
    for column, family, base in [("SDXL", "sdxl", "sdxl"), ("SD 3.5 Medium", "sd35", "sd35-medium"),
                                 ("SD 3.5 Large", "sd35", "sd35-large"), ("Flux.1 dev", "flux", "flux-dev"),
                                 ("Flux.1 schnell", "flux", "flux-schnell")]:  # fmt: skip
        published = json.loads((ROOT / f"eridiff/families/{family}/published.json").read_text("utf-8"))
        assert numbers(said[column]) == [round(sum(published["gigabytes"][base].values()))]
