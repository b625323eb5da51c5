"""The job of the stage `text`: distinct captions => text embeddings, by way of the store."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

from eridiff.caching.drift_check import any_missing, drift_id_of
from eridiff.caching.drift_records import Encoder, Values
from eridiff.caching.job import EncoderPart, Filled, check_drift_of, count_saved, earlier_of, facts_of, resources_of
from eridiff.caching.processes import Ranks
from eridiff.caching.text import Caption, cache_texts, help_texts, plan_captions, report_lost
from eridiff.caching.text_drift import text_drift_values, text_encoder
from eridiff.core.progress import say
from eridiff.formats.tables import Row
from eridiff.params.model import ModelParams
from eridiff.params.text import TextParams


@dataclass(frozen=True, kw_only=True, eq=False)
class TextJob:
    """Which captions are encoded, by which text encoders, into which store.

    rows: of captions.parquet, their variants at least. root: the store's folder.
    """

    stage: ClassVar[str] = "text"
    kind: ClassVar[str] = "texts"
    subject: ClassVar[str] = "text"

    model: ModelParams
    params: TextParams
    rows: Iterable[Row]
    root: Path
    out: Path

    @cached_property
    def part(self) -> EncoderPart:
        """The text encoders and tokenizers."""
        return EncoderPart(model=self.model, name="text", dtype=self.params.dtype)

    @property
    def encoder(self) -> Encoder:
        """The text encoders, for the drift check."""
        return text_encoder(self.part.pointer, self.params, self.part.family)

    @property
    def facts(self) -> Mapping[str, Any]:
        """Of the index: none."""
        return {}

    @cached_property
    def plan(self) -> Callable[[str], list[Caption]]:
        """plan(drift_id): the distinct captions with their keys."""
        part = self.part
        return cache(
            lambda drift_id: plan_captions(self.rows, self.params, part.family, part.pointer.identity(), drift_id)
        )

    def drift_values(self) -> Values:
        """Numbers of the text encoders, which are loaded for it."""
        return text_drift_values(self.params, self.part.family, *self.part.load())

    def incomplete(self, drift_id: str) -> bool:
        """Whether something has to be encoded."""
        keys = (caption.key for caption in self.plan(drift_id))
        return any_missing(self.root, self.kind, keys, lambda: earlier_of(self))

    def fill(self, ranks: Ranks) -> Filled | None:
        """As the first process, all of the stage; as another, a share of what has to be encoded, and None.

        Shards are put out, the index is returned.
        """
        family, resources, reference = self.part.family, resources_of(self, ranks), check_drift_of(self)
        captions, before = self.plan(drift_id_of(reference)), self.part.load.seconds
        if ranks.index:
            say(f"text{ranks.label}: {help_texts(captions, self.params, family, resources)} encoded")
            return None
        index, counts = cache_texts(captions, self.params, family, resources, self.out)
        counts = count_saved(self, counts, loading=self.part.load.seconds - before)
        facts, notes = facts_of(self, reference), report_lost(index)
        return Filled(index=index, facts=facts, counts=counts, backend=self.part.backend, notes=notes)
