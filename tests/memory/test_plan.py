"""`eridiff plan`: sizes against what is really held, what fits, what is proposed, and what is written."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eridiff.check import load_all
from eridiff.core.errors import ConfigError
from eridiff.family import load_family
from eridiff.memory import train as train_memory
from eridiff.memory.plan import HOST, Card, Planner, plan_project, seconds_of, ways, with_changes
from eridiff.memory.stages import made_up_batch, text_estimate
from eridiff.memory.train import CONTEXT, GIB, SPARE, MemoryEstimate, first_level, train_estimates
from eridiff.models.activation_checkpointing import LEVELS
from eridiff.models.load import load_denoiser
from eridiff.models.quantise import Storage
from eridiff.weights.pointers import ModelSource
from tests.conftest import ROOT
from tests.support import training
from tests.support.bases import FAMILIES, source
from tests.support.checkouts import make_checkout

CPU = torch.device("cpu")


def empty(family: str) -> ModelSource:
    """A small base as its shapes."""
    return replace(source(family), folders={}, parts={}, empty=True)


@pytest.mark.parametrize("kind", [None, "fp8", "int8", "nf4"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_weights_are_what_a_loaded_base_holds(family: str, kind: Any) -> None:
    module = load_family(family)
    storage = Storage(kind=kind, device=CPU)
    loaded = load_denoiser(module, source(family), torch.bfloat16, storage)
    really = 0
    for name, tensor in loaded.state_dict().items():
        really += 0 if "quant_map" in name or "quant_state" in name else tensor.nbytes
    params = training.params_of({"precision": "bf16", "quantise": kind, "ema_decay": 0.9})
    batch = made_up_batch(1, module, source(family).config("vae"), training.text_shapes(family), (128, 128))
    _, found = next(train_estimates(params, module, empty(family), batch))
    adapters = sum(tensor.numel() for tensor in training.start(family, params).adapters.values())
    assert found.weights - adapters * 4 * (1 + 2 + 1) == pytest.approx(really, rel=0.03 if kind == "nf4" else 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_levels_take_less_and_less_memory_for_more_and_more_work(family: str) -> None:
    module, params = load_family(family), training.params_of()
    batch = made_up_batch(2, module, source(family).config("vae"), training.text_shapes(family), (256, 256))
    found = dict(train_estimates(params, module, empty(family), batch))
    assert list(found) == list(LEVELS)
    memory, flops = [one.memory for one in found.values()], [one.flops for one in found.values()]
    assert memory == sorted(memory, reverse=True)
    assert memory[0] > memory[2]
    assert flops[0] < flops[1] < flops[2] == flops[3]
    if family == FAMILIES[0]:
        assert first_level(params, module, empty(family), batch, memory[1])[0] == "selective"
        assert first_level(params, module, empty(family), batch, 1)[0] == LEVELS[-1]


@pytest.mark.slow
def test_what_was_counted_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was counted is not counted again, more of it where it does not do; a damaged file is made anew."""
    module, params = load_family(FAMILIES[0]), training.params_of()
    batch = made_up_batch(2, module, source(FAMILIES[0]).config("vae"), training.text_shapes(FAMILIES[0]), (256, 256))
    kept, plain, started = tmp_path / "footprints" / "one.json", train_memory.train_estimates, []

    def counting(*given: Any) -> Any:
        started.append(1)
        return plain(*given)

    monkeypatch.setattr(train_memory, "train_estimates", counting)

    def choose(memory: int) -> tuple[Any, MemoryEstimate]:
        return first_level(params, module, empty(FAMILIES[0]), batch, memory, kept)

    first = choose(1 << 60)
    assert (first[0], choose(1 << 60), len(started)) == ("none", first, 1)
    smaller = choose(first[1].memory - 1)
    assert (smaller[0], len(started)) == ("selective", 2)
    assert choose(first[1].memory) == first and choose(first[1].memory - 1) == smaller and len(started) == 2
    last = choose(1)
    assert (last[0], choose(1), len(started)) == (LEVELS[-1], last, 3)
    kept.write_text(kept.read_text()[:-9])
    assert (choose(1 << 60), len(started)) == (first, 4)
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.write_text("")  # a folder that cannot be made
    assert choose(1 << 60) == first


@pytest.mark.slow
def test_training_chooses_by_what_a_gpu_has_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted once for the largest bucket, and anew where the code is another."""
    made = training.make_job(FAMILIES[0], tmp_path, training.params_of(), ((64, 64), (128, 128)))
    job = replace(made, device=torch.device("cuda"), root=tmp_path)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, free))

    def choose(code: str, fixed: Any = None) -> Any:
        return train_memory.choose_checkpointing(fixed, job, code)

    free = 1 << 60
    assert choose("one") == choose("one") == "none"
    assert len(list((tmp_path / "footprints").iterdir())) == 1
    free = 1
    assert (choose("one"), choose("one", "selective")) == (LEVELS[-1], "selective")
    assert choose("two") == LEVELS[-1]
    assert len(list((tmp_path / "footprints").iterdir())) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_captions_embeddings_have_the_encoders_shapes(family: str) -> None:
    params = load_all(ROOT / "presets" / f"tiny-{family}.yaml")["text"]
    _, shapes = text_estimate(params, load_family(family), empty(family))
    expected = training.text_shapes(family)
    assert shapes.keys() == expected.keys()
    assert {name: shape[-1] for name, shape in shapes.items()} == {n: shape[-1] for n, shape in expected.items()}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with the params of a small preset, and the pointers of its base."""
    folder = make_checkout(tmp_path / "checkout", monkeypatch)
    (folder / "data" / "bases" / "tiny-flux").symlink_to(ROOT / "data" / "bases" / "tiny-flux")
    (folder / "params.yaml").write_text((ROOT / "presets" / "tiny-flux.yaml").read_text())
    return folder


@pytest.mark.slow
def test_params_that_do_not_fit_are_changed_until_they_do(project: Path) -> None:
    """Training takes more than the card has; in bf16 it fits. Written with every comment kept; then all fits."""
    before = (project / "params.yaml").read_text()
    plenty = Planner(project, Card(name="a card", memory=80 * GIB, is_here=False))
    smaller = with_changes(plenty.params, {"train": {"precision": "bf16", "batch_size": 1}})
    others = max(plenty.unit_estimate(stage, plenty.params)[0].memory for stage in ("latents", "text", "sample"))
    enough = max(plenty.unit_estimate("train", smaller)[0].memory, others) + CONTEXT + SPARE
    lines = list(plan_project(project, enough / GIB + 1e-9, write=True))
    assert lines[0] == f"a card: {enough / GIB:.1f} GiB, of which CUDA takes about 0.8 itself"
    assert [line.split()[0] for line in lines[2:] if not line.startswith(" ")] == [
        "latents", "text", "train", "sample", *(["written:"] if "DOES NOT FIT" in "".join(lines) else []),
    ]  # fmt: skip
    again = list(plan_project(project, enough / GIB + 1e-9, write=True))
    assert sum(" fits" in line for line in again) == 4
    assert not any(line.startswith("written") for line in again)
    after = (project / "params.yaml").read_text()
    assert [line for line in after.splitlines() if "#" in line] == [line for line in before.splitlines() if "#" in line]


def test_without_a_card_one_must_be_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA device to plan for: name a card's memory, as in `--memory 24`"):
        list(plan_project(project, None, write=False))


def test_the_slower_of_gpu_and_host_decides() -> None:
    found = MemoryEstimate(weights=1, work=1, flops=6e12, calls=1000)
    assert seconds_of(found, 1e12, 1e-5) == 6
    assert seconds_of(found, 1e15, 1e-5) == pytest.approx(0.01 * HOST)


def test_ways_change_results_as_little_as_will_do() -> None:
    params = {"latents": {}, "text": {"batch_size": 8}, "train": {"batch_size": 4, "accumulation": 2}, "sample": {}}
    assert list(ways("latents", params)) == [
        {"latents": {"batch_size": 1}},
        {"latents": {"batch_size": 1, "tile": 512}},
    ]
    assert list(ways("text", params))[-1] == {"text": {"batch_size": 1, "dtype": "bf16"}}
    smaller = {"batch_size": 1, "accumulation": 8}
    assert list(ways("train", params)) == [
        {"train": smaller},
        {"train": {**smaller, "quantise": "fp8"}},
        {"train": {**smaller, "quantise": "nf4"}},
    ]
    assert list(ways("sample", {"sample": {"quantise": "fp8"}})) == [{"sample": {"quantise": "nf4"}}]
    assert list(ways("sample", {"sample": {"quantise": "nf4"}})) == []
    assert with_changes(params, {"train": smaller})["train"] == smaller
    assert params["train"] == {"batch_size": 4, "accumulation": 2}


def test_a_card_must_hold_what_cuda_takes_too() -> None:
    card = Card(name="a card", memory=12 * GIB, is_here=False)
    most = 12 * GIB - CONTEXT - SPARE
    assert card.fits(MemoryEstimate(weights=most, work=0, flops=0, calls=0))
    assert not card.fits(MemoryEstimate(weights=most, work=1, flops=0, calls=0))
