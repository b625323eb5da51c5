"""What a caching stage would find and encode: its keys planned and looked up, its encoder checked for drift."""

from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from eridiff.caching.drift_check import drift_id_of
from eridiff.caching.drift_records import Reference
from eridiff.caching.job import CachingJob, earlier_of, facts_of
from eridiff.caching.latents.job import LatentJob
from eridiff.caching.latents.plan import index_rows
from eridiff.caching.latents.samples import Sample
from eridiff.caching.text_job import TextJob
from eridiff.formats.tables import Row
from eridiff.store.entries import KeyFields, Location, open_shard, read_catalogue
from eridiff.store.store import Store
from eridiff.why.differences import Entries, as_json, describe, differences
from eridiff.why.prediction import EncoderPlan, SamplePlan

Output = tuple[list[Row], Mapping[str, Any]]  # rows and facts of an index


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One sample of a stage. name: for messages; key, key_fields: of its entry; row: what the index will say of it.

    before: the key that it had in the stage's last output. new: what to say where nothing like it is known.
    """

    name: str
    key: str
    key_fields: KeyFields
    row: Row
    before: str | None
    new: str


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What a run of a caching stage would count."""

    encoded: list[SamplePlan]
    reused: int


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """One caching stage as `eridiff why` sees it: its job, and the index that it put out last, rows and facts.

    wanted(drift_id): its samples.
    """

    job: CachingJob
    wanted: Callable[[str], list[Wanted]]
    output: Output
    absent: tuple[str, ...] = ()  # pictures that are not here
    unknown: tuple[str, ...] = ()  # those of them whose pixels nothing remembers: not in the plan

    def known(self, keys: Sequence[str]) -> Mapping[str, Location]:
        """Entries of the store, and where keys are missing there also of the stage's own last output."""
        store = Store(self.job.root, self.job.kind)
        earlier = earlier_of(self.job) if store.missing(keys) else []
        others = (read_catalogue(open_shard(path)) for path in earlier)
        return ChainMap(store.catalogue, *others)  # type: ignore[arg-type]  # read, never written

    def look_up(self, drift_id: str) -> Outlook:
        """Which samples would be encoded, and which part of each one's key is new."""
        plan = self.wanted(drift_id)
        wanted = {one.key: one for one in plan}
        known = self.known(list(wanted))
        entries = Entries(known, self.job.subject)
        missing = [one for key, one in wanted.items() if key not in known]
        return Outlook(encoded=[self._why_new(one, entries) for one in missing], reused=len(plan) - len(missing))

    def _why_new(self, one: Wanted, entries: Entries) -> SamplePlan:
        """The sample against its own earlier self, else against the entry most alike."""
        before = entries.key_fields(one.before) or entries.alike(one.key_fields)
        changes = differences(before, one.key_fields) if before else {}
        reason = describe(changes, self.job.stage) if changes else one.new
        return SamplePlan(stage=self.job.stage, name=one.name, reason=reason, changes=as_json(changes))

    def missing_pictures(self, outlook: Outlook) -> list[str]:
        """What cannot be said, or done, because pictures are not here."""
        notes = []
        if self.unknown:
            notes.append(f"{self.job.stage}: not counted, because the pictures are not here: {_listed(self.unknown)}")
        needed = sorted({sample.name.split(",")[0] for sample in outlook.encoded} & set(self.absent))
        if needed:
            notes.append(f"{self.job.stage} will stop: it has to encode pictures that are not here: {_listed(needed)}")
        return notes

    def same_output(self, reference: Reference | None) -> bool:
        """Whether the stage would put out what it put out last: then nothing after it runs."""
        rows, facts = self.output
        wanted = self.wanted(drift_id_of(reference))
        return dict(facts) == facts_of(self.job, reference) and _comparable(rows) == _comparable(
            one.row for one in wanted
        )


def forced(stage: str, message: str, outlook: Outlook) -> EncoderPlan:
    """What is to be done where DVC sees no reason to run a stage."""
    return EncoderPlan(
        stage=stage,
        message=message,
        command=f"dvc repro -f -s {stage} && dvc repro",
        encoded=len(outlook.encoded),
        reused=outlook.reused,
    )


def _listed(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _comparable(rows: Any) -> list[tuple[tuple[str, Any], ...]]:
    """Rows of an index in one order, less what follows from the keys."""
    return sorted(tuple(sorted((k, v) for k, v in row.items() if k not in ("shard", "tokens_lost"))) for row in rows)


def plan_latents(job: LatentJob, output: Output) -> CachePlan:
    """The stage `latents`.

    What the last index says of pixels counts, so that a clone without pictures can be planned; of a picture that is
    there it counts as far as its colours were not converted since.
    """
    pixels = job.pixels
    pixels.before |= {row["file_digest"]: row["pixel_digest"] for row in output[0]}
    told = pixels.known.keys() | pixels.before.keys()
    absent = {row["path"] for row in job.rows if not (job.pictures / row["path"]).exists()}
    unknown = {row["path"] for row in job.rows if row["path"] in absent and row["file_digest"] not in told}
    job = replace(job, rows=[row for row in job.rows if row["path"] not in unknown])
    before = {(row["path"], row.get("variant", 0), row["flip"]): row["key"] for row in output[0]}

    @cache
    def wanted(drift_id: str) -> list[Wanted]:
        samples = job.plan(drift_id)
        index = index_rows(samples, dict.fromkeys((sample.key for sample in samples), ""))
        ident = {(row["path"], row["variant"], row["flip"], row["key"]): row for row in index}
        return [
            Wanted(
                name=_name(sample),
                key=sample.key,
                key_fields=sample.key_fields,
                row=ident[sample.path, sample.crop_number, int(sample.flip), sample.key],
                before=before.get((sample.path, sample.crop_number, int(sample.flip))),
                new="new picture",
            )
            for sample in samples
        ]

    return CachePlan(
        job=job, wanted=wanted, output=output, absent=tuple(sorted(absent)), unknown=tuple(sorted(unknown))
    )


def _name(sample: Sample) -> str:
    crop = f", crop {sample.crop_number}" if sample.crop_number else ""
    return f"{sample.path}{crop}{', mirrored' if sample.flip else ''}"


def plan_text(job: TextJob, output: Output, old_rows: Iterable[Row]) -> CachePlan:
    """The stage `text`. old_rows: the captions that it read last."""
    keys = {row["text"]: row["key"] for row in output[0]}
    replaced = _replaced(old_rows, job.rows)

    @cache
    def wanted(drift_id: str) -> list[Wanted]:
        return [
            Wanted(
                name=caption.text,
                key=caption.key,
                key_fields=caption.key_fields,
                row={"text": caption.text, "key": caption.key},
                before=keys.get(caption.text) or keys.get(replaced.get(caption.text, caption.text)),
                new="new text",
            )
            for caption in job.plan(drift_id)
        ]

    return CachePlan(job=job, wanted=wanted, output=output)


def _replaced(old_rows: Iterable[Row], rows: Iterable[Row]) -> dict[str, str]:
    """Caption -> the same picture's earlier caption in that place."""
    old = {row["path"]: row["variants"] for row in old_rows}
    pairs = (
        (now, before) for row in rows for now, before in zip(row["variants"], old.get(row["path"], ()), strict=False)
    )
    return {now: before for now, before in pairs if now != before}
