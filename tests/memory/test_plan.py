"""`eridiff plan`: sizes against what is really held, what fits, what is proposed, and what is written."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eridiff.acceleration.levels import Level, full, in_order
from eridiff.acceleration.recompute import repeated_blocks
from eridiff.acceleration.swap import SLOTS, swap_sizes
from eridiff.check import load_all
from eridiff.core.errors import ConfigError
from eridiff.family import load_family
from eridiff.memory import train as train_memory
from eridiff.memory.plan import HOST, Card, Planner, plan_project, seconds_of, ways, with_changes
from eridiff.memory.stages import made_up_batch, text_estimate
from eridiff.memory.trace import trace
from eridiff.memory.train import (
    CONTEXT,
    GIB,
    META,
    SPARE,
    MemoryEstimate,
    TrainLevels,
    remembered_levels,
    trace_levels,
    train_levels,
)
from eridiff.models.load import load_denoiser
from eridiff.models.quantise import Storage
from eridiff.training.run import Machine, prepare_run
from eridiff.weights.pointers import ModelSource
from tests.conftest import ROOT
from tests.support import training
from tests.support.bases import FAMILIES, source
from tests.support.checkouts import make_checkout

CPU = torch.device("cpu")


def empty(family: str) -> ModelSource:
    """A small base as its shapes."""
    return replace(source(family), folders={}, single_files={}, empty=True)


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
    found = train_levels(params, module, empty(family), batch).none
    adapters = sum(tensor.numel() for tensor in training.start(family, params).adapters.values())
    # Of an adapter's number: itself, gradient, two moments and average in fp32, and the copy in bf16 to compute with.
    assert found.weights - adapters * (4 * (1 + 1 + 2 + 1) + 2) == pytest.approx(
        really, rel=0.03 if kind == "nf4" else 1e-6
    )


def levels_of(family: str) -> TrainLevels:
    module = load_family(family)
    batch = made_up_batch(2, module, source(family).config("vae"), training.text_shapes(family), (256, 256))
    return train_levels(training.params_of(), module, empty(family), batch)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_levels_take_less_and_less_memory_for_more_and_more_work(family: str) -> None:
    """Each block more; what each keeps adds up to the difference that was traced; the level that fits is the first."""
    levels = levels_of(family)
    count = levels.count
    found = [levels.at(Level(recomputed=again)) for again in range(count + 1)]
    module = load_family(family)
    kinds = [type(block).__name__ for block in repeated_blocks(training.base_denoiser(family), module.BLOCKS)]
    freed = {kind: [0.0, 0.0] for kind in module.BLOCKS}
    for kind, block in zip(kinds, levels.blocks, strict=True):
        freed[kind][0] += block.kept - block.kept_less
        freed[kind][1] += block.flops
    rates = [saved / flops for saved, flops in freed.values()]
    assert rates == sorted(rates, reverse=True), "classes come in the order of what they free for each operation"
    memory, flops = [one.memory for one in found], [one.flops for one in found]
    assert memory == sorted(memory, reverse=True) and memory[0] > memory[count]
    assert flops == sorted(flops) and flops[0] < flops[-1]
    assert levels.at(full(count)).work == levels.full.work and flops[-1] == pytest.approx(levels.full.flops)
    offload = levels.at(Level(recomputed=count, offload=True))
    assert 0 < offload.memory < levels.full.memory and offload.flops == flops[-1]
    assert levels.first(memory[0]) == Level()
    assert levels.at(levels.first(memory[0] - 1)).memory < memory[0]
    assert levels.first(memory[count]).recomputed == memory.index(memory[count])
    assert levels.first(1) == Level(recomputed=count, swapped=count, offload=True)
    assert levels.first(1, swap=0) == Level(recomputed=count, offload=True)
    fitting = levels.first(memory[count] - 1)
    assert levels.at(fitting).memory < memory[count] and (fitting.swapped or fitting.offload)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_what_is_foretold_between_levels_is_what_is_traced(family: str) -> None:
    """Half of the blocks recomputed: within 5 %."""
    module, params = load_family(family), training.params_of()
    batch = made_up_batch(2, module, source(family).config("vae"), training.text_shapes(family), (256, 256)).to(META)
    run = prepare_run(params, module, empty(family), source(family).config("vae"), Machine(device=META))
    half = Level(recomputed=len(run.kept.blocks) // 2)
    foretold = trace_levels(run.kept, 0, lambda: training.do_step(run, batch, 1)).at(half)
    for tensor in run.adapters.values():
        tensor.grad = None
    run.kept.set(half)
    found = trace(lambda: training.do_step(run, batch, 1))
    assert foretold.work == pytest.approx(found.peak, rel=0.05)
    assert foretold.flops == pytest.approx(found.flops, rel=0.01)


@pytest.mark.slow
def test_compiled_blocks_keep_what_attention_returns() -> None:
    """It counts in every recomputed block, and is not computed twice."""
    module, params = load_family("flux"), training.params_of()
    batch = made_up_batch(2, module, source("flux").config("vae"), training.text_shapes("flux"), (256, 256)).to(META)
    run = prepare_run(params, module, empty("flux"), source("flux").config("vae"), Machine(device=META))
    kinds = (False, True)
    plain, compiled = (trace_levels(run.kept, 0, lambda: training.do_step(run, batch, 1), compiled=c) for c in kinds)
    config = source("flux").config("transformer")
    heads, width = config["num_attention_heads"], config["attention_head_dim"]
    tokens = training.TOKENS + 16 * 16
    output = 2 * tokens * heads * (width + 1) * 4
    share = train_memory.COMPILED
    more = [one.kept_less - share * other.kept_less for one, other in zip(compiled.blocks, plain.blocks, strict=True)]
    assert more == pytest.approx([share * output] * plain.count, rel=1e-3)
    assert compiled.full.work - share * plain.full.work == pytest.approx(share * output * plain.count, rel=1e-3)
    assert plain.full.flops - compiled.full.flops == pytest.approx(plain.count * 2 * 4 * tokens**2 * heads * width)
    assert compiled.none.work == pytest.approx(plain.none.work * share, rel=1e-6)


@pytest.mark.slow
def test_swapped_weights_are_taken_off() -> None:
    """What a device holds less is what really is less: less the weights of all blocks, more two of them."""
    levels = levels_of("flux")
    all_of_them = Level(recomputed=levels.count, swapped=levels.count)
    run = training.start("flux", training.params_of())
    assert swap_sizes(in_order(run.denoiser, run.kept.blocks)) == pytest.approx(levels.sizes, rel=0.05)
    saved = levels.full.weights - levels.at(all_of_them).weights
    assert saved == sum(levels.sizes) - SLOTS * max(levels.sizes) > 0


@pytest.mark.slow
def test_what_was_counted_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was counted is not counted again; a damaged file, or one of an earlier version, is made anew."""
    family = FAMILIES[0]
    module, params = load_family(family), training.params_of()
    batch = made_up_batch(2, module, source(family).config("vae"), training.text_shapes(family), (256, 256))
    kept, plain, started = tmp_path / "footprints" / "one.json", train_memory.train_levels, []

    def counting(*given: Any) -> Any:
        started.append(1)
        return plain(*given)

    monkeypatch.setattr(train_memory, "train_levels", counting)

    def remembered() -> TrainLevels:
        return remembered_levels(params, module, empty(family), batch, kept)

    first = remembered()
    assert (remembered(), len(started)) == (first, 1)
    kept.write_text(kept.read_text()[:-9])
    assert (remembered(), len(started)) == (first, 2)
    kept.write_text('[["none", {"weights": 1, "work": 2, "flops": 3, "calls": 4}]]')
    assert (remembered(), remembered(), len(started)) == (first, first, 3)
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.write_text("")  # a folder that cannot be made
    assert remembered() == first


@pytest.mark.slow
def test_training_chooses_by_what_a_gpu_has_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted once for the largest bucket, and anew where the code is another."""
    made = training.make_job(FAMILIES[0], tmp_path, training.params_of(), ((64, 64), (128, 128)))
    job = replace(made, device=torch.device("cuda"), root=tmp_path)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, free))

    def choose(code: str, fixed: Any = None, swap: int | None = None) -> Any:
        return train_memory.choose_checkpointing(fixed, swap, job, code)

    free = 1 << 60
    assert choose("one") == choose("one") == Level()
    assert choose("one", swap=1) == Level(swapped=1)
    assert len(list((tmp_path / "footprints").iterdir())) == 1
    free = 1
    last = choose("one")
    assert last.offload and last.swapped == last.recomputed > 0
    assert choose("one", "selective") == "selective" and choose("one", 3) == 3 and choose("one", "none") == "none"
    assert choose("one", swap=0) == replace(last, swapped=0)
    assert choose("two") == last
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
