"""The training set: latents and captions stay together, batches are full, every picture has its share."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eridiff.core.errors import DataError, StoreError
from eridiff.formats.safetensors import raw_tensors
from eridiff.params.train import TrainParams
from eridiff.store.entries import entry_key
from eridiff.store.reader import Cache
from eridiff.store.store import Store
from eridiff.training.data import Batch, Sample, TrainingSet, join_tables, open_training_set, plan_batches

BUCKETS = [(64, 64), (96, 64), (64, 96)]
SHAPES = {(64, 64): (8, 8), (96, 64): (8, 12), (64, 96): (12, 8)}  # height, width of latents


def picture(number: int) -> Sample:
    """Picture `number`: its latents are filled with 100 + number (+ 0.5 mirrored), its captions with number.variant."""
    width, height = BUCKETS[number % 3]
    return Sample(
        path=f"{number:02d}.png",
        bucket=(width, height),
        original=(1000 + number, 2000 + number),
        crops=((number, 2 * number), (9 - number, 2 * number)),
        repeats=1 + (number % 5 == 0),
        latent_keys=(key_of(f"latent {number} 0"), key_of(f"latent {number} 1")),
        texts=tuple(f"caption {number} {variant}" for variant in range(1 + number % 3)),
    )


def key_of(name: str) -> str:
    return entry_key({"name": name})


SAMPLES = [picture(number) for number in range(11)]


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cache, Cache]:
    folder = tmp_path_factory.mktemp("caches")
    latents, texts = Store(folder / "store", "latents"), Store(folder / "store", "texts")
    for number, sample in enumerate(SAMPLES):
        for flip in (0, 1):
            mean = torch.full((4, *SHAPES[sample.bucket]), 100 + number + flip / 2)
            name = f"latent {number} {flip}"
            latents.put(key_of(name), {"name": name}, raw_tensors({"mean": mean, "std": torch.full_like(mean, number)}))
    for text in all_texts():
        numbers = text_number(text)
        tensors = {"prompt_embeds": torch.full((3, 5), numbers), "pooled": torch.full((2,), numbers)}
        tensors["tokens_lost"] = torch.tensor(9, dtype=torch.int32)
        texts.put(key_of(text), {"name": text}, raw_tensors(tensors))
    latents.publish(list(latents.catalogue), folder / "latents")
    texts.publish(list(texts.catalogue), folder / "text")
    return Cache(folder / "latents"), Cache(folder / "text")


def all_texts() -> list[str]:
    return ["", *(text for sample in SAMPLES for text in sample.texts)]


def text_number(text: str) -> float:
    """A number for each caption: picture.variant, -1 for the empty one."""
    return float(".".join(text.split()[1:])) if text else -1.0


def training_set(
    caches: tuple[Cache, Cache], *, seed: int = 0, dropout: float = 0.0, flips: bool = True
) -> TrainingSet:
    samples = SAMPLES if flips else [replace(sample, latent_keys=sample.latent_keys[:1]) for sample in SAMPLES]
    return TrainingSet(samples, {text: key_of(text) for text in all_texts()}, *caches, seed, dropout)


def assert_paired(batch: Batch) -> None:
    """Every row's latents, sizes and caption are of the picture that the row names."""
    (bucket,) = {SAMPLES[int(path[:2])].bucket for path in batch.paths}
    assert batch.sizes.target == bucket
    assert batch.mean.shape[1:] == (4, *SHAPES[bucket])
    for row, path in enumerate(batch.paths):
        number = int(path[:2])
        sample = SAMPLES[number]
        assert batch.mean[row].unique().tolist() in ([100 + number], [100 + number + 0.5])
        assert batch.std[row].unique().tolist() == [number]
        assert batch.captions[row] in (*sample.texts, "")
        expected = torch.tensor(text_number(batch.captions[row]))
        assert batch.text["prompt_embeds"][row].unique() == expected
        assert batch.text["pooled"][row].unique() == expected
        flip = int(batch.mean[row].max().item() % 1 * 2)
        assert (tuple(batch.sizes.original[row].tolist()), tuple(batch.sizes.crop[row].tolist())) == (
            sample.original,
            sample.crops[flip],
        )
    assert set(batch.text) == {"prompt_embeds", "pooled"}


def batches(data: TrainingSet, batch_size: int, steps: int, first: int = 1, accumulation: int = 1) -> list[Batch]:
    """Micro-batches of the steps first..steps, as the training asks for them."""
    plan = plan_batches(data.samples, batch_size, steps * accumulation, data.seed)
    return [
        data.batch(plan[(step - 1) * accumulation + micro], step, micro * batch_size)
        for step in range(first, steps + 1)
        for micro in range(accumulation)
    ]


def same(a: Batch, b: Batch) -> bool:
    tensors = [(a.mean, b.mean), (a.std, b.std), *((a.text[name], b.text[name]) for name in a.text)]
    tensors += [(a.sizes.original, b.sizes.original), (a.sizes.crop, b.sizes.crop)]
    names = [(batch.paths, batch.captions, batch.indices, batch.sizes.target) for batch in (a, b)]
    return names[0] == names[1] and all(torch.equal(one, two) for one, two in tensors)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 1), (3, 1), (4, 2)])
def test_latents_and_captions_stay_together(caches: tuple[Cache, Cache], batch_size: int, accumulation: int) -> None:
    """Under shuffling, buckets, repeats, mirrors, variants, dropout and several epochs."""
    data = training_set(caches, dropout=0.2)
    seen = batches(data, batch_size, 30, accumulation=accumulation)
    for batch in seen:
        assert len(batch.paths) == batch_size
        assert_paired(batch)
    assert {path for batch in seen for path in batch.paths} == {sample.path for sample in SAMPLES}
    assert [batch.indices for batch in seen[:2]] == [
        list(range(batch_size)),
        list(range(batch_size, 2 * batch_size)) if accumulation == 2 else list(range(batch_size)),
    ]


def test_a_resumed_run_sees_the_same_batches(caches: tuple[Cache, Cache]) -> None:
    """Any step of a later or longer run, or of another process, has the same samples, captions and mirrors."""
    straight = batches(training_set(caches, dropout=0.3), 2, 12)
    resumed = batches(training_set(caches, dropout=0.3), 2, 20, first=8)
    assert all(same(a, b) for a, b in zip(straight[7:], resumed, strict=False))
    other = batches(training_set(caches, seed=1, dropout=0.3), 2, 12)
    assert not all(a.paths == b.paths for a, b in zip(straight, other, strict=True))


def test_ranks_and_micro_batches_draw_the_same(caches: tuple[Cache, Cache]) -> None:
    """Sample 2 of a global batch has its caption and mirror whatever micro-batch it stands in."""
    data = training_set(caches, dropout=0.3)
    numbers = [0, 3, 6, 9]  # one bucket
    for step in range(1, 9):
        whole = data.batch(numbers, step, 0)
        parts = [data.batch(numbers[:2], step, 0), data.batch(numbers[2:], step, 2)]
        assert whole.captions == [caption for part in parts for caption in part.captions]
        assert torch.equal(whole.mean, torch.cat([part.mean for part in parts]))


def test_captions_mirrors_and_dropout_have_their_shares(caches: tuple[Cache, Cache]) -> None:
    data = training_set(caches, dropout=0.25)
    drawn = [data.batch([5] * 8, step, 0) for step in range(1, 101)]  # picture 5 has three variants
    captions = Counter(caption for batch in drawn for caption in batch.captions)
    assert set(captions) == {"", *SAMPLES[5].texts}
    assert captions[""] / 800 == pytest.approx(0.25, abs=0.05)
    for text in SAMPLES[5].texts:
        assert captions[text] / 800 == pytest.approx(0.25, abs=0.05)
    mirrored = torch.cat([batch.mean[:, 0, 0, 0] for batch in drawn]) == 105.5
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.06)
    for dropout, expected in ((0.0, 0), (1.0, 800)):
        drawn = [training_set(caches, dropout=dropout).batch([5] * 8, step, 0) for step in range(1, 101)]
        assert sum(caption == "" for batch in drawn for caption in batch.captions) == expected


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_stream_reads_ahead_what_batch_gives(caches: tuple[Cache, Cache], accumulation: int) -> None:
    """From any step on, the same batches in the same order, made in another thread."""
    data = training_set(caches, dropout=0.3)
    plan = plan_batches(data.samples, 2, 6 * accumulation, data.seed)
    for first in (1, 4, 7):
        streamed = [batch for batch, _ in data.stream(plan, accumulation, first, lambda batch, step: (batch, step))]
        expected = batches(data, 2, 6, first=first, accumulation=accumulation)
        assert len(streamed) == len(expected) == (7 - first) * accumulation
        assert all(same(a, b) for a, b in zip(streamed, expected, strict=True))


def test_crops_have_equal_shares_and_tell_where_they_lie(caches: tuple[Cache, Cache]) -> None:
    """Three crops, each mirrored too: a sixth of the draws each, and each with its own place."""
    keys = tuple(key_of(f"latent {number} {flip}") for number in (0, 3, 6) for flip in (0, 1))  # one bucket
    sample = replace(SAMPLES[0], latent_keys=keys, crops=tuple((place, 10 * place) for place in range(6)))
    texts = {text: key_of(text) for text in all_texts()}
    data = TrainingSet([sample], texts, *caches, seed=1, dropout=0.0)
    values = {100.0 + number + flip / 2: place for place, (number, flip) in enumerate(
        (number, flip) for number in (0, 3, 6) for flip in (0, 1)
    )}  # fmt: skip
    seen: Counter[int] = Counter()
    for step in range(1, 101):
        batch = data.batch([0] * 6, step, 0)
        for row, mean in enumerate(batch.mean):
            place = values[mean.max().item()]
            assert batch.sizes.crop[row].tolist() == [place, 10 * place]
            seen[place] += 1
    assert all(count / 600 == pytest.approx(1 / 6, abs=0.05) for count in (seen[place] for place in range(6)))


def test_each_resolution_is_a_sample_of_its_own() -> None:
    """Rows of one picture in two buckets: two samples, with the latents, crops and sizes of each."""
    tables = rows()
    captions, buckets, latents = (tables[name][0] for name in ("captions", "buckets", "latents"))
    small = {"bucket_w": 32, "bucket_h": 32}
    more = [{**row, **small} for row in buckets]
    cached = [{**row, **small, "key": key_of("small " + row["key"])} for row in latents]
    both = join_tables(captions, buckets + more, latents + cached)
    assert len(both) == 2 * len(SAMPLES)
    assert [sample for sample in both if sample.bucket != (32, 32)] == SAMPLES
    first = next(sample for sample in both if sample.bucket == (32, 32))
    assert first.latent_keys == tuple(key_of("small " + key) for key in SAMPLES[0].latent_keys)
    with pytest.raises(DataError, match=r"00\.png has a bucket but no latents"):
        join_tables(captions, buckets + more, latents)


def test_the_mean_alone_has_std_zero(tmp_path: Path, caches: tuple[Cache, Cache]) -> None:
    store = Store(tmp_path / "store", "latents")
    key = entry_key({})
    store.put(key, {}, raw_tensors({"mean": torch.ones(4, 8, 8)}))
    store.publish([key], tmp_path / "latents")
    sample = replace(SAMPLES[0], latent_keys=(key,))
    data = TrainingSet(
        [sample], {text: key_of(text) for text in all_texts()}, Cache(tmp_path / "latents"), caches[1], 0, 0
    )
    batch = data.batch([0, 0], 1, 0)
    assert torch.equal(batch.std, torch.zeros(2, 4, 8, 8))
    assert torch.equal(batch.mean, torch.ones(2, 4, 8, 8))


plans = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=14)


@given(pictures=plans, batch_size=st.integers(1, 5), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_plans(pictures: list[tuple[int, int]], batch_size: int, seed: int) -> None:
    """Full batches of one bucket; longer plans begin with shorter ones; shares follow repeats, whatever the buckets."""
    samples = [
        replace(SAMPLES[0], path=str(number), bucket=(64 + 32 * bucket, 64), repeats=repeats)
        for number, (bucket, repeats) in enumerate(pictures)
    ]
    total = sum(repeats for _, repeats in pictures)
    epochs = 20
    count = -(-total * epochs // batch_size)
    plan = plan_batches(samples, batch_size, count, seed)
    assert len(plan) == count
    assert {len(numbers) for numbers in plan} == {batch_size}
    assert all(len({samples[number].bucket for number in numbers}) == 1 for numbers in plan)
    for shorter in (1, count // 2, count - 1):
        assert plan_batches(samples, batch_size, shorter, seed) == plan[:shorter]
    seen = Counter(number for numbers in plan for number in numbers)
    for number, (bucket, repeats) in enumerate(pictures):
        # The plan ends within a pass over the buckets, and a bucket's deck may be cut: a picture is off by
        # its repeats for the deck, and by the batches that are carried over for its bucket.
        deck = sum(r for b, r in pictures if b == bucket)
        off = repeats * (2 + (2 * batch_size) / deck)
        assert seen[number] == pytest.approx(repeats * epochs, abs=off + 1), (number, seen)


def test_plans_differ_by_seed_and_epoch() -> None:
    plan = plan_batches(SAMPLES, 1, 28, 0)  # 14 pictures an epoch, repeats counted
    assert Counter(n for (n,) in plan[:14]) == Counter(n for (n,) in plan[14:])
    assert Counter(n for (n,) in plan[:14]) == {n: s.repeats for n, s in enumerate(SAMPLES)}
    assert plan[:14] != plan[14:]
    assert plan != plan_batches(SAMPLES, 1, 28, 1)
    assert plan_batches(SAMPLES, 1, 0, 0) == []


def rows() -> dict[str, Any]:
    captions = [{"path": s.path, "variants": list(s.texts)} for s in SAMPLES]
    buckets = [
        {
            "path": s.path,
            "repeats": s.repeats,
            **dict(zip(("bucket_w", "bucket_h"), s.bucket, strict=True)),
        }
        for s in SAMPLES
    ]
    latents = [
        {
            "path": s.path,
            "flip": place % 2,
            "variant": place // 2,
            "key": s.latent_keys[place],
            **dict(zip(("bucket_w", "bucket_h"), s.bucket, strict=True)),
            **dict(zip(("original_w", "original_h"), s.original, strict=True)),
            **dict(zip(("crop_left", "crop_top"), s.crops[place], strict=True)),
        }
        for s in SAMPLES
        for place in (1, 0)
    ]
    texts = [{"text": text, "key": key_of(text)} for text in all_texts()]
    return {"captions": (captions, {}), "buckets": (buckets, {}), "latents": (latents, {}), "text": (texts, {})}


def test_joined_tables_are_the_samples(caches: tuple[Cache, Cache]) -> None:
    tables = rows()
    assert join_tables(tables["captions"][0][::-1], tables["buckets"][0][::-1], tables["latents"][0][::-1]) == SAMPLES
    params = TrainParams(steps=1, caption_dropout=0.5, seed=3)
    data = open_training_set(tables, caches[0].folder, caches[1].folder, params)
    assert (data.samples, data.seed, data.dropout) == (SAMPLES, 3, 0.5)
    assert_paired(data.batch([0, 3], 1, 0))


def test_what_does_not_fit_together_is_named(caches: tuple[Cache, Cache]) -> None:
    folders, params = (caches[0].folder, caches[1].folder), TrainParams(steps=1)
    tables = rows()
    with pytest.raises(DataError, match=r"04\.png has a bucket but no latents or no caption: run `dvc repro`"):
        join_tables(
            tables["captions"][0], tables["buckets"][0], [r for r in tables["latents"][0] if r["path"] != "04.png"]
        )
    with pytest.raises(DataError, match=r"04\.png has a bucket but no latents or no caption"):
        join_tables(
            [r for r in tables["captions"][0] if r["path"] != "04.png"], tables["buckets"][0], tables["latents"][0]
        )
    lacking = {**tables, "text": ([r for r in tables["text"][0] if r["text"] != "caption 4 1"], {})}
    with pytest.raises(DataError, match="caption 'caption 4 1' has no embedding: run `dvc repro`"):
        open_training_set(lacking, *folders, params)
    lacking = {**tables, "text": ([r for r in tables["text"][0] if r["text"]], {})}
    with pytest.raises(DataError, match="caption '' has no embedding"):
        open_training_set(lacking, *folders, params)
    with pytest.raises(DataError, match="no samples: run `dvc repro`"):
        open_training_set({**tables, "buckets": ([], {})}, *folders, params)


def test_a_missing_or_damaged_entry_is_named(tmp_path: Path, caches: tuple[Cache, Cache]) -> None:
    with pytest.raises(DataError, match=rf"{caches[0].folder} is missing entry 000000000000: remove the folder"):
        caches[0].read("0" * 64)
    source = caches[0].folder / "shard-all.safetensors"
    data = bytearray(source.read_bytes())
    data[-1] ^= 1
    (tmp_path / "shard-all.safetensors").write_bytes(data)
    damaged = []
    for sample in SAMPLES:
        for key in sample.latent_keys:
            try:
                Cache(tmp_path).read(key)
            except StoreError as error:
                assert f"{tmp_path}/shard-all.safetensors is damaged" in str(error)
                damaged.append(key)
    assert len(damaged) == 1
