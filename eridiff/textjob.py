"""The job of the stage `text`: distinct captions => text embeddings, by way of the store."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

from eridiff.cachejob import (
    EncoderPart,
    Filled,
    count_saved,
    earlier_of,
    facts_of,
    resources_of,
    settle_for,
)
from eridiff.params_model import ModelParams
from eridiff.params_text import TextParams
from eridiff.probe import Encoder, Values
from eridiff.probing import entries_lacking, generation_of
from eridiff.progress import say
from eridiff.ranks import Ranks
from eridiff.tables import Row
from eridiff.textdrift import probe_text, text_encoder
from eridiff.texts import Caption, cache_texts, help_texts, plan_captions, report_lost


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
        """The text encoders as they are probed."""
        return text_encoder(self.part.pointer, self.params, self.part.family)

    @property
    def facts(self) -> Mapping[str, Any]:
        """Of the index: none."""
        return {}

    @cached_property
    def plan(self) -> Callable[[str], list[Caption]]:
        """plan(generation): the distinct captions with their keys."""
        part = self.part
        return cache(
            lambda generation: plan_captions(self.rows, self.params, part.family, part.pointer.identity(), generation)
        )

    def probe(self) -> Values:
        """Numbers of the text encoders, which are loaded for it."""
        return probe_text(self.params, self.part.family, *self.part.load())

    def lacks(self, generation: str) -> bool:
        """Whether something has to be encoded."""
        keys = (caption.key for caption in self.plan(generation))
        return entries_lacking(self.root, self.kind, keys, lambda: earlier_of(self))

    def fill(self, ranks: Ranks) -> Filled | None:
        """As the first process, all of the stage; as another, a share of what has to be encoded, and None.

        Shards are put out, the index is returned.
        """
        family, resources, reference = self.part.family, resources_of(self, ranks), settle_for(self)
        captions, before = self.plan(generation_of(reference)), self.part.load.seconds
        if ranks.index:
            say(f"text{ranks.label}: {help_texts(captions, self.params, family, resources)} encoded")
            return None
        index, counts = cache_texts(captions, self.params, family, resources, self.out)
        counts = count_saved(self, counts, loading=self.part.load.seconds - before)
        facts, notes = facts_of(self, reference), report_lost(index)
        return Filled(index=index, facts=facts, counts=counts, backend=self.part.backend, notes=notes)
