"""The training set: the four tables joined, batches planned, tensors read from the caches.

One row names a picture's latents and its captions, so a batch cannot pair one picture's latents with another's
caption, whatever is shuffled. Which samples a step sees is a function of the seed and the step alone.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from eridiff.core.errors import DataError
from eridiff.core.noise import uniform
from eridiff.core.threads import ahead
from eridiff.family import Sizes
from eridiff.formats.tables import Row
from eridiff.store.reader import Cache

Example = TypeVar("Example")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture in one bucket: the keys of its latents (by crop and flip) and its caption variants."""

    path: str
    bucket: tuple[int, int]
    original: tuple[int, int]
    crops: tuple[tuple[int, int], ...]  # (left, top) in the resized picture, of each of latent_keys
    repeats: int
    latent_keys: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch, all of one bucket."""

    mean: Tensor  # [B, C, H, W] raw posterior
    std: Tensor  # [B, C, H, W]
    text: dict[str, Tensor]  # name -> [B, ...]
    sizes: Sizes
    paths: list[str]
    captions: list[str]
    indices: list[int]  # of each sample in the global batch

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The same batch with every tensor changed."""
        text = {name: change(tensor) for name, tensor in self.text.items()}
        own = {"mean": change(self.mean), "std": change(self.std), "text": text, "sizes": self.sizes.map(change)}
        return Batch(**{**vars(self), **own})

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return self.map(lambda tensor: tensor.to(device))


def join_tables(captions: list[Row], buckets: list[Row], latents: list[Row]) -> list[Sample]:
    """Samples sorted by path and bucket: every picture in each of its buckets, with its latents and captions.

    Raises: DataError where a picture has no latents or no caption.
    """
    variants = {row["path"]: tuple(row["variants"]) for row in captions}
    cached: dict[tuple[str, tuple[int, int]], list[Row]] = {}
    for row in latents:
        cached.setdefault((row["path"], (row["bucket_w"], row["bucket_h"])), []).append(row)
    samples = []
    for row in sorted(buckets, key=lambda row: (row["path"], row["bucket_w"], row["bucket_h"])):
        path, bucket = row["path"], (row["bucket_w"], row["bucket_h"])
        if (path, bucket) not in cached or path not in variants:
            raise DataError(f"{path} has a bucket but no latents or no caption: run `dvc repro`.")
        own = sorted(cached[path, bucket], key=lambda row: (row["variant"], row["flip"]))
        samples.append(
            Sample(
                path=path,
                bucket=bucket,
                original=(own[0]["original_w"], own[0]["original_h"]),
                crops=tuple((row["crop_left"], row["crop_top"]) for row in own),
                repeats=row["repeats"],
                latent_keys=tuple(row["key"] for row in own),
                texts=variants[path],
            )
        )
    return samples


def plan_batches(samples: Sequence[Sample], batch_size: int, count: int, seed: int) -> list[list[int]]:
    """Sample numbers of each micro-batch; a longer plan begins with a shorter one.

    Every batch is of one bucket and full. Each bucket deals from its own endless shuffled deck (every picture
    as often as its repeats), so a small bucket drops nothing; epochs are shuffled decks of buckets, in which a
    bucket stands as often as its pictures fill batches: what is left over counts in the next epoch.
    """
    members: dict[tuple[int, int], list[int]] = {}
    for number, sample in enumerate(samples):
        members.setdefault(sample.bucket, []).extend([number] * sample.repeats)
    hands: dict[tuple[int, int], list[int]] = {bucket: [] for bucket in members}
    rounds = dict.fromkeys(members, 0)
    plan: list[list[int]] = []
    epoch = 0
    while len(plan) < count:
        deck = [
            bucket
            for bucket, numbers in sorted(members.items())
            for _ in range(_num_batches(len(numbers), batch_size, epoch, f"phase:{seed}:{bucket}"))
        ]
        _shuffle(deck, f"buckets:{seed}:{epoch}")
        for bucket in deck:
            while len(hands[bucket]) < batch_size:
                fresh = list(members[bucket])
                _shuffle(fresh, f"samples:{seed}:{bucket}:{rounds[bucket]}")
                hands[bucket] += fresh
                rounds[bucket] += 1
            plan.append(hands[bucket][:batch_size])
            del hands[bucket][:batch_size]
        epoch += 1
    return plan[:count]


def _num_batches(pictures: int, batch_size: int, epoch: int, purpose: str) -> int:
    """Batches of a bucket in one epoch: pictures / batch_size on average, started at a phase of its own."""
    phase = random.Random(hashlib.sha256(purpose.encode()).digest()).randrange(batch_size)
    return ((epoch + 1) * pictures + phase) // batch_size - (epoch * pictures + phase) // batch_size


def _shuffle(items: list[int] | list[tuple[int, int]], purpose: str) -> None:
    """Shuffle in place, as a function of `purpose`."""
    random.Random(hashlib.sha256(purpose.encode()).digest()).shuffle(items)


class DataParams(Protocol):
    """What of the train params decides which samples a step sees."""

    @property
    def seed(self) -> int:
        """Seed of every draw."""

    @property
    def caption_dropout(self) -> float:
        """Share of samples that get the empty caption."""


class TrainingSet:
    """Batches by (step, micro-batch), read from the caches."""

    def __init__(
        self,
        samples: list[Sample],
        text_keys: dict[str, str],
        latents: Cache,
        texts: Cache,
        seed: int,
        dropout: float,
    ) -> None:
        self.samples = samples
        self.text_keys = text_keys
        self.latents = latents
        self.texts = texts
        self.seed = seed
        self.dropout = dropout

    def batch(self, numbers: list[int], step: int, first_index: int) -> Batch:
        """The samples of one micro-batch; first_index is the place of its first sample in the global batch.

        Caption variant, dropout, crop and mirror image are draws by (seed, step, index).
        """
        chosen = [self.samples[number] for number in numbers]
        indices = list(range(first_index, first_index + len(numbers)))
        crops = self._choose(step, indices, "flip", [len(sample.latent_keys) for sample in chosen])
        variants = self._choose(step, indices, "caption", [len(sample.texts) for sample in chosen])
        dropped = uniform(self.seed, step, indices, "dropout") < self.dropout
        captions = [
            "" if drop else sample.texts[variant]
            for sample, variant, drop in zip(chosen, variants, dropped.tolist(), strict=True)
        ]
        latents = [self.latents.tensors(sample.latent_keys[crop]) for sample, crop in zip(chosen, crops, strict=True)]
        texts = [self.texts.tensors(self.text_keys[caption]) for caption in captions]
        mean = torch.stack([entry["mean"] for entry in latents])  # the one copy from the shards
        std = [entry["std"] if "std" in entry else torch.zeros_like(mean[0]) for entry in latents]
        names = [name for name in texts[0] if name != "tokens_lost"]
        return Batch(
            mean=mean,
            std=torch.stack(std),
            text={name: torch.stack([entry[name] for entry in texts]) for name in names},
            sizes=Sizes.of(
                original=[sample.original for sample in chosen],
                crop=[sample.crops[crop] for sample, crop in zip(chosen, crops, strict=True)],
                target=chosen[0].bucket,
            ),
            paths=[sample.path for sample in chosen],
            captions=captions,
            indices=indices,
        )

    def stream(
        self, plan: list[list[int]], accumulation: int, first_step: int, complete: Callable[[Batch, int], Example]
    ) -> Iterator[Example]:
        """The micro-batches of a plan from a step on, read in threads while the steps before them run.

        complete(batch, step): what is made of each, in those threads.
        """

        def read(place: int) -> Example:
            numbers, step = plan[place], 1 + place // accumulation
            return complete(self.batch(numbers, step, place % accumulation * len(numbers)), step)

        return ahead(range((first_step - 1) * accumulation, len(plan)), read, threads=2, depth=4)

    def _choose(self, step: int, indices: list[int], purpose: str, counts: list[int]) -> list[int]:
        """One of `count` choices for each sample."""
        draws = uniform(self.seed, step, indices, purpose).tolist()
        return [int(draw * count) for draw, count in zip(draws, counts, strict=True)]


def open_training_set(
    tables: Mapping[str, tuple[list[Row], dict[str, object]]],
    latents: Path,
    texts: Path,
    params: "DataParams",
) -> TrainingSet:
    """Join the tables (captions, buckets, latents, text) over the two cache folders.

    Raises: DataError where there is nothing to train on, or a caption has no embedding.
    """
    samples = join_tables(tables["captions"][0], tables["buckets"][0], tables["latents"][0])
    text_keys = {row["text"]: row["key"] for row in tables["text"][0]}
    lacking = sorted({"", *(text for sample in samples for text in sample.texts)} - set(text_keys))
    if lacking or not samples:
        raise DataError(f"{f'caption {lacking[0]!r} has no embedding' if lacking else 'no samples'}: run `dvc repro`.")
    return TrainingSet(samples, text_keys, Cache(latents), Cache(texts), params.seed, params.caption_dropout)
