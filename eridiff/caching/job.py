"""What the jobs of both caching stages share: the part of the base that encodes, its drift check, a run's result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from eridiff.bases.find import find_source
from eridiff.bases.pointer_files import pointers_of
from eridiff.caching.drift_check import DriftCheck, check_drift, index_reference
from eridiff.caching.drift_records import Encoder, Reference, Values
from eridiff.caching.fill import CacheCounts, Resources
from eridiff.caching.processes import Ranks
from eridiff.caching.savings import TimedLoad, count_saving
from eridiff.family import Family, load_family
from eridiff.formats.tables import Row
from eridiff.params.model import ModelParams
from eridiff.store.last_output import earlier_index, earlier_shards
from eridiff.weights.pointers import Pointer

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class EncoderPart:
    """The part of a base that a caching stage encodes with. backend: what it runs on; empty until it is loaded."""

    model: ModelParams
    name: Literal["vae", "text"]
    dtype: str
    backend: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def family(self) -> Family:
        """The family of the base."""
        return load_family(self.model.family)

    @cached_property
    def pointer(self) -> Pointer:
        """The part's pointer.

        Raises: BaseError where the base has none.
        """
        return pointers_of(self.model.base, [self.name], self.model.family)[self.name]

    @cached_property
    def load(self) -> TimedLoad:
        """load(): the encoder and its device, loaded by the first call.

        Raises: BaseError, ConfigError where it cannot run on this machine.
        """
        return TimedLoad(self._load)

    def _load(self) -> "tuple[Any, torch.device]":
        from eridiff.models.load import load_text_encoders, load_vae
        from eridiff.models.precision import DTYPES, choose_device, describe_backend

        device = choose_device(allow_cpu=self.model.allow_cpu)
        self.backend.update(describe_backend(device, self.dtype))
        load = load_vae if self.name == "vae" else load_text_encoders
        return load(self.family, find_source([self.pointer]), DTYPES[self.dtype]), device


class CachingJob(Protocol):
    """A caching stage: what it encodes, by what, into which store. The stage runs it, `eridiff why` looks into it.

    stage: its name; kind: of its entries in the store; subject: the field of a key that says what is encoded.
    """

    stage: ClassVar[str]
    kind: ClassVar[str]
    subject: ClassVar[str]

    @property
    def root(self) -> Path:
        """The store's folder."""

    @property
    def out(self) -> Path:
        """The folder that the stage puts out."""

    @property
    def part(self) -> EncoderPart:
        """What encodes."""

    @property
    def encoder(self) -> Encoder:
        """What the drift check measures after an upgrade of the libraries."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the index says of the whole, less the drift check's."""

    def drift_values(self) -> Values:
        """Numbers of the encoder, which is loaded for it."""

    def incomplete(self, drift_id: str) -> bool:
        """Whether something has to be encoded: neither the store nor the last output has all keys."""


def earlier_of(job: CachingJob) -> list[Path]:
    """The shards of the stage's own last output."""
    return earlier_shards(job.stage, str(job.out))


def check_drift_of(job: CachingJob) -> Reference | None:
    """The drift check of a stage's encoder when the stage runs (eridiff/caching/drift_check.py)."""
    check = DriftCheck(
        encoder=job.encoder,
        root=job.root,
        measure=job.drift_values,
        incomplete=job.incomplete,
        earlier=lambda: index_reference(earlier_index(job.stage, str(job.out))),
    )
    return check_drift(check)


def resources_of(job: CachingJob, ranks: Ranks, workers: int | None = None) -> Resources:
    """What the stage fills the store with."""
    return Resources(root=job.root, load=job.part.load, earlier=lambda: earlier_of(job), workers=workers, ranks=ranks)


@dataclass(frozen=True, kw_only=True)
class Filled:
    """What a run of a caching stage gives beside its shards: rows and facts of its index, and what it counted."""

    index: Sequence[Row]
    facts: Mapping[str, Any]
    counts: CacheCounts
    backend: Mapping[str, Any]
    notes: Sequence[str] = ()

    @property
    def report(self) -> list[str]:
        """What the stage says when all is written."""
        return [*self.notes, self.counts.line()]


def facts_of(job: CachingJob, reference: Reference | None) -> dict[str, Any]:
    """All that the index says of the whole."""
    return {**job.facts, **({"probe": reference.facts()} if reference else {})}


def count_saved(job: CachingJob, counts: CacheCounts, *, loading: float, units: float = 1.0) -> CacheCounts:
    """The counts with what reuse saved (eridiff/caching/savings.py)."""
    return count_saving(counts, job.root, job.encoder.identity, units, loading=loading)
