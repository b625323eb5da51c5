"""What a caching stage would find and encode: its keys planned and looked up, its encoder probed after an upgrade."""

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from eridiff.config import ModelParams
from eridiff.differences import Entries, as_json, describe, differences
from eridiff.earlier import earlier_shards
from eridiff.entries import Location, Parts, open_shard, read_catalogue
from eridiff.families import Family
from eridiff.latents import LatentParams, index_rows, plan_samples
from eridiff.load import load_text_encoders, load_vae
from eridiff.pixeldigests import PixelDigests
from eridiff.pointerfiles import pointers_of
from eridiff.pointers import Pointer
from eridiff.prediction import EncoderPlan, SamplePlan
from eridiff.probe import Encoder, Reference, Values
from eridiff.probing import generation_of, probe_text, probe_vae, text_encoder, vae_encoder
from eridiff.samples import Sample
from eridiff.sources import find_source
from eridiff.store import Store
from eridiff.tables import Row
from eridiff.texts import TextParams, plan_captions


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One sample of a stage. name: for messages; key, parts: of its entry; row: what the index will say of it.

    before: the key that it had in the stage's last output. new: what to say where nothing like it is known.
    """

    name: str
    key: str
    parts: Parts
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
    """One caching stage as `eridiff why` sees it. subject: the part of a key that says what is encoded.

    plan(generation): its samples. take: probes its encoder, which is loaded for it. facts: of its index, less the
    probe's. output: rows and facts of the index that it put out last.
    """

    stage: str
    kind: str
    subject: str
    encoder: Encoder
    plan: Callable[[str], list[Wanted]]
    take: Callable[[], Values]
    facts: Mapping[str, Any]
    output: tuple[list[Row], Mapping[str, Any]]
    absent: tuple[str, ...] = ()  # pictures that are not here
    unknown: tuple[str, ...] = ()  # those of them whose pixels nothing remembers: not in the plan

    def known(self, root: Path, keys: Sequence[str]) -> Mapping[str, Location]:
        """Entries of the store, and where it lacks some of the keys also of the stage's own last output."""
        store = Store(root, self.kind)
        earlier = earlier_shards(self.stage, f"data/{self.stage}") if store.missing(keys) else []
        others = (read_catalogue(open_shard(path)) for path in earlier)
        return ChainMap(store.catalogue, *others)  # type: ignore[arg-type]  # read, never written

    def look_up(self, root: Path, generation: str) -> Outlook:
        """Which samples would be encoded, and which part of each one's key is new."""
        plan = self.plan(generation)
        wanted = {one.key: one for one in plan}
        known = self.known(root, list(wanted))
        entries = Entries(known, self.subject)
        missing = [one for key, one in wanted.items() if key not in known]
        return Outlook(encoded=[self._why_new(one, entries) for one in missing], reused=len(plan) - len(missing))

    def _why_new(self, one: Wanted, entries: Entries) -> SamplePlan:
        """The sample against its own earlier self, else against the entry most alike."""
        before = entries.parts(one.before) or entries.alike(one.parts)
        changes = differences(before, one.parts) if before else {}
        reason = describe(changes, self.stage) if changes else one.new
        return SamplePlan(stage=self.stage, name=one.name, reason=reason, changes=as_json(changes))

    def missing_pictures(self, outlook: Outlook) -> list[str]:
        """What cannot be said, or done, because pictures are not here."""
        notes = []
        if self.unknown:
            notes.append(f"{self.stage}: not counted, because the pictures are not here: {_listed(self.unknown)}")
        needed = sorted({sample.name.split(",")[0] for sample in outlook.encoded} & set(self.absent))
        if needed:
            notes.append(f"{self.stage} will stop: it has to encode pictures that are not here: {_listed(needed)}")
        return notes

    def same_output(self, reference: Reference | None) -> bool:
        """Whether the stage would put out what it put out last: then nothing after it runs."""
        rows, facts = self.output
        now = {**self.facts, **({"probe": reference.facts()} if reference else {})}
        return dict(facts) == now and _comparable(rows) == _comparable(
            one.row for one in self.plan(generation_of(reference))
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


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What both caching stages are planned from: the params' sections, the family, and where things lie."""

    model: ModelParams
    family: Family
    root: Path
    pictures: Path

    def pointer(self, part: str) -> Pointer:
        """The pointer of a part of the base."""
        return pointers_of(self.model.base, [part], self.model.family)[part]

    def load(self, pointer: Pointer, loader: Callable[..., Any], dtype: str) -> tuple[Any, Any]:
        """An encoder and its device.

        Raises: BaseError, ConfigError where it cannot be run on this machine.
        """
        from eridiff.precision import DTYPES, choose_device

        device = choose_device(allow_cpu=self.model.allow_cpu)
        source = find_source([pointer])
        return loader(source, DTYPES[dtype]), device


def latents_encoder(setting: Setting, params: LatentParams) -> Encoder:
    """The VAE."""
    return vae_encoder(setting.pointer("vae"), params, setting.family.VAE_ENCODE)


def texts_encoder(setting: Setting, params: TextParams) -> Encoder:
    """The text encoders."""
    return text_encoder(setting.pointer("text"), params, setting.family)


def plan_latents(
    setting: Setting, params: LatentParams, rows: list[Row], output: tuple[list[Row], dict[str, Any]]
) -> CachePlan:
    """The stage `latents`. rows: of buckets.parquet; output: its last index.

    What the last index says of pixels counts, so that a clone without pictures can be planned; of a picture that is
    there it counts as far as its colours were not converted since.
    """
    pointer, family = setting.pointer("vae"), setting.family
    vae = pointer.components["vae"]
    pixels = PixelDigests(setting.root)
    pixels.before |= {row["file_digest"]: row["pixel_digest"] for row in output[0]}
    told = pixels.known.keys() | pixels.before.keys()
    absent = {row["path"] for row in rows if not (setting.pictures / row["path"]).exists()}
    unknown = {row["path"] for row in rows if row["path"] in absent and row["file_digest"] not in told}
    before = {(row["path"], row.get("variant", 0), row["flip"]): row["key"] for row in output[0]}

    @cache
    def plan(generation: str) -> list[Wanted]:
        samples = plan_samples(
            [row for row in rows if row["path"] not in unknown],
            params,
            vae.identity(),
            family.VAE_ENCODE,
            family.SIDE_MULTIPLE,
            setting.pictures,
            pixels,
            generation,
        )
        index = index_rows(samples, dict.fromkeys((sample.key for sample in samples), ""))
        ident = {(row["path"], row["variant"], row["flip"], row["key"]): row for row in index}
        return [
            Wanted(
                name=_name(sample),
                key=sample.key,
                parts=sample.parts,
                row=ident[sample.path, sample.variant, int(sample.flip), sample.key],
                before=before.get((sample.path, sample.variant, int(sample.flip))),
                new="new picture",
            )
            for sample in samples
        ]

    return CachePlan(
        stage="latents",
        kind="latents",
        subject="pixels",
        encoder=latents_encoder(setting, params),
        plan=plan,
        take=lambda: probe_vae(params, *setting.load(pointer, partial(load_vae, family), params.dtype)),
        facts={name: vae.config.get(name) for name in ("scaling_factor", "shift_factor")},
        output=output,
        absent=tuple(sorted(absent)),
        unknown=tuple(sorted(unknown)),
    )


def _name(sample: Sample) -> str:
    crop = f", crop {sample.variant}" if sample.variant else ""
    return f"{sample.path}{crop}{', mirrored' if sample.flip else ''}"


def plan_text(
    setting: Setting,
    params: TextParams,
    rows: list[Row],
    output: tuple[list[Row], dict[str, Any]],
    old_rows: list[Row],
) -> CachePlan:
    """The stage `text`. rows: of captions.parquet; output: its last index; old_rows: the captions that it read then."""
    pointer, family = setting.pointer("text"), setting.family
    keys = {row["text"]: row["key"] for row in output[0]}
    replaced = _replaced(old_rows, rows)

    @cache
    def plan(generation: str) -> list[Wanted]:
        return [
            Wanted(
                name=caption.text,
                key=caption.key,
                parts=caption.parts,
                row={"text": caption.text, "key": caption.key},
                before=keys.get(caption.text) or keys.get(replaced.get(caption.text, caption.text)),
                new="new text",
            )
            for caption in plan_captions(rows, params, family, pointer.identity(), generation)
        ]

    return CachePlan(
        stage="text",
        kind="texts",
        subject="text",
        encoder=texts_encoder(setting, params),
        plan=plan,
        take=lambda: probe_text(
            params, family, *setting.load(pointer, partial(load_text_encoders, family), params.dtype)
        ),
        facts={},
        output=output,
    )


def _replaced(old_rows: list[Row], rows: list[Row]) -> dict[str, str]:
    """Caption -> the one that the same picture had in its place before."""
    old = {row["path"]: row["variants"] for row in old_rows}
    pairs = (
        (now, before) for row in rows for now, before in zip(row["variants"], old.get(row["path"], ()), strict=False)
    )
    return {now: before for now, before in pairs if now != before}
