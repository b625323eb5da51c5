"""`eridiff why`: what the next `dvc repro` would run, why, and which samples it would encode.

The light stages (captions, buckets) are computed in memory, the caching stages' keys are planned and looked up,
and DVC's own records and run-cache say the rest. Nothing is written but what the store learns of pictures and, after
an upgrade of the libraries, of encoders.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from eridiff.bases.wanted import how_to_add, is_awaited
from eridiff.caching.drift_check import DriftCheck, check_known_drift, compare_with_output, drift_id_of
from eridiff.caching.drift_records import DriftRecords, Reference, library_versions, reference_of
from eridiff.caching.job import CachingJob
from eridiff.caching.latents.job import LatentJob, latent_job
from eridiff.caching.text_job import TextJob
from eridiff.check import check_params, load_all
from eridiff.core.errors import BaseError, ConfigError, DataError, EridiffError, listing
from eridiff.dataset.buckets import BUCKET_COLUMNS, plan_buckets, report
from eridiff.dataset.captions import CAPTION_COLUMNS, IMAGE_COLUMNS, captions_rows, images_rows
from eridiff.dataset.intake import look_through
from eridiff.dataset.picture_notes import image_facts
from eridiff.dataset.pictures import scan_pictures
from eridiff.dataset.unbounded import refuse_unbounded
from eridiff.dvc.graph import Graph, StageRecord
from eridiff.family import load_family
from eridiff.formats.tables import Row, read_facts, read_table, table_bytes
from eridiff.machine.code import changed_code, describe_changed
from eridiff.machine.filedigests import FileDigests
from eridiff.machine.local import store_root
from eridiff.params.inherited import inherited_text
from eridiff.versions import code_versions
from eridiff.why.cache_lookup import CachePlan, forced, plan_latents, plan_text
from eridiff.why.differences import changed_params, leaves
from eridiff.why.prediction import (
    MAY_RUN,
    RESTORED,
    RUNS,
    UP_TO_DATE,
    EncoderPlan,
    HiddenEdit,
    Prediction,
    StagePlan,
    touch_command,
)

PICTURES = "data/raw"
NEW = "(new)"  # in place of a digest: only the run itself gives it, and it will be another
Outs = dict[str, str | None]  # path -> digest, NEW, or None where even a change is not certain
Table = tuple[list[Row], dict[str, Any]]


def explain(folder: Path, *, rehash: bool = False) -> Prediction:
    """Predict the next `dvc repro` in a project's folder (the current one).

    rehash: read every file again, whatever its name, size, time and inode say.
    Raises: ConfigError where DVC itself cannot read the project, DataError where it cannot read the pictures.
    """
    prediction = Prediction()
    try:
        check_params(Path("params.yaml"))
    except EridiffError as error:
        prediction.error = str(error)
        prediction.stages["check"] = StagePlan(state=RUNS, reasons=["stops at this mistake; nothing else starts"])
        return prediction
    refuse_unbounded(Path())
    graph = Graph(folder)
    try:
        _Predictor(graph, prediction, rehash=rehash).run()
    except (OSError, UnicodeError):  # DVC's own, which names one file at most
        problems = look_through(Path(PICTURES))[1] if Path(PICTURES).is_dir() else []
        if not problems:
            raise
        raise DataError(f"{PICTURES} holds what DVC cannot track. Mend or remove these:{listing(problems)}") from None
    finally:
        graph.close()
    return prediction


class _Predictor:
    """Walks the stages in order, carrying the digests that their outs would have."""

    def __init__(self, graph: Graph, prediction: Prediction, *, rehash: bool) -> None:
        self.graph, self.prediction, self.rehash = graph, prediction, rehash
        self.outs: Outs = {}
        self.tables: dict[str, Table] = {}  # of light stages that would run
        self.params = load_all(Path("params.yaml"))
        self.root, self.pictures = store_root(), Path(PICTURES)
        family = load_family(self.params["model"].family)
        self.versions = {name: file for file in (code_versions(), family.VERSIONS) for name in file.numbers}
        self.true: dict[str, str] = {}  # source -> its digest, where DVC believes another
        self.light: dict[str, Callable[[StageRecord, StagePlan], Outs]] = {
            "check": self._check,
            "captions": self._captions,
            "buckets": self._buckets,
        }
        self.caches = {"latents": self._latents, "text": self._text}

    def run(self) -> None:
        """Fill the prediction, stage by stage."""
        if changed := describe_changed(changed_code()):
            self._note(changed)
        if self.rehash:
            self._find_hidden_edits()
        for record in self.graph.stages:
            deps = {p: self.outs.get(p, self.true.get(p, digest)) for p, digest in record.present_deps.items()}
            plan = StagePlan(state=UP_TO_DATE)
            self._decide(record, plan, deps)
            outs: Outs = dict(record.outs)
            if plan.state != UP_TO_DATE:
                known = {path: digest for path, digest in deps.items() if digest not in (None, NEW)}
                cached = self.graph.run_cached(record, known) if len(known) == len(deps) else None
                plan.state = plan.state if cached is None else RESTORED
                outs = dict(cached) if cached is not None else dict.fromkeys(record.outs)
            self.prediction.stages[record.name] = plan
            if record.name in self.caches:
                outs |= self._cache_stage(record, plan, outs)
            elif plan.state in (RUNS, MAY_RUN) and record.name in self.light:
                outs = self.light[record.name](record, plan)
            self.outs |= outs

    def _find_hidden_edits(self) -> None:
        """Read all sources again, past what DVC remembers of them."""
        for path, digest, files in self.graph.hidden_edits():
            self.true[path] = digest
            self.prediction.hidden += [HiddenEdit(path=file, command=touch_command([file])) for file in files]

    def _decide(self, record: StageRecord, plan: StagePlan, deps: Mapping[str, str | None]) -> None:
        """State of a stage and why: what is certain makes it run, what is not lets it perhaps run."""
        if not any(record.outs.values()):
            plan.state, plan.reasons = RUNS, ["never run here"]
            return
        certain = ["its command changed"] if record.cmd_changed else []
        possible = []
        for path, digest in sorted(deps.items()):
            if digest is None and path in self.outs:
                possible.append(f"{path} may change")
            elif digest is None:
                self._note(
                    f"{path} is not here: what follows is for `dvc repro --allow-missing`, which takes it as unchanged"
                )
            elif digest != record.recorded_deps.get(path):
                certain.append(f"{path} {'will change' if path in self.outs else 'changed'}")
        params = (leaves(record.present_params), leaves(record.recorded_params))
        certain += changed_params(*params, self.versions, self.params["model"].family)
        lost = [path for path, digest in record.outs.items() if digest and not self._there(path, digest)]
        certain += [f"{path} is missing, and not in DVC's cache" for path in lost]
        plan.state = RUNS if certain else MAY_RUN if possible else UP_TO_DATE
        plan.reasons = certain + possible

    def _note(self, text: str) -> None:
        """Say something once."""
        if text not in self.prediction.notes:
            self.prediction.notes.append(text)

    def _there(self, path: str, digest: str) -> bool:
        """Whether an out can be had without a run."""
        return Path(path).exists() or self.graph.has_object(digest)

    def table(self, path: str) -> Table | None:
        """A table as the stage that reads it will find it; None where only the run will tell."""
        if path not in self.tables:
            digest = self.outs.get(path)
            if digest is None or digest == NEW:
                return None
            found = [place for place in (self.graph.object_path(digest), Path(path)) if place.exists()]
            if not found:
                return None
            self.tables[path] = read_table(found[0])
        return self.tables[path]

    def _recorded_table(self, digest: str | None) -> Table:
        """A table that dvc.lock names, without rows where it is not in DVC's cache."""
        if digest is None or not self.graph.has_object(digest):
            return [], {}
        return read_table(self.graph.object_path(digest))

    def _check(self, record: StageRecord, plan: StagePlan) -> Outs:
        """Sound params give a constant, and what some keys take from others."""
        return {
            "data/check.txt": _md5(b"params.yaml is sound\n"),
            "data/choices.json": _md5(inherited_text(self.params).encode()),
        }

    def _captions(self, record: StageRecord, plan: StagePlan) -> Outs:
        if not self.pictures.exists():
            self._note(
                f"captions cannot run without {PICTURES}: what it would give, and what follows, is not known here"
            )
            return dict.fromkeys(record.outs)
        params = self.params["captions"]
        with FileDigests(anew=lambda _: self.rehash) as digests:
            pictures, _ = scan_pictures(self.pictures, digests)
        images, captions = images_rows(pictures), captions_rows(pictures, params)
        outs: Outs = {}
        for path, rows, columns, facts in (
            ("data/captions/images.parquet", images, IMAGE_COLUMNS, image_facts(pictures)),
            ("data/captions/captions.parquet", captions, CAPTION_COLUMNS, {"trigger": params.trigger}),
        ):
            plan.reasons += _row_changes(self._recorded_table(record.outs[path])[0], rows)
            self.tables[path] = (rows, facts)
            outs[path] = _md5(table_bytes(rows, columns, facts))
        plan.reasons = list(dict.fromkeys(plan.reasons))
        return outs

    def _buckets(self, record: StageRecord, plan: StagePlan) -> Outs:
        images = self.table("data/captions/images.parquet")
        if images is None:
            return dict.fromkeys(record.outs)
        rows, left_out = plan_buckets(images[0], self.params["buckets"])
        path = "data/buckets/buckets.parquet"
        self.tables[path] = (rows, {})
        return {
            path: _md5(table_bytes(rows, BUCKET_COLUMNS, {})),
            "data/buckets/report.md": _md5(report(rows, left_out, images[1].get("blank", {})).encode()),
        }

    def _latents(self, record: StageRecord, output: Table) -> CachePlan | None:
        table = self.table("data/buckets/buckets.parquet")
        return plan_latents(self._latent_job(table[0]), output) if table else None

    def _text(self, record: StageRecord, output: Table) -> CachePlan | None:
        path = "data/captions/captions.parquet"
        table, before = self.table(path), self._recorded_table(record.recorded_deps.get(path))
        return plan_text(self._text_job(table[0]), output, before[0]) if table else None

    def _latent_job(self, rows: list[Row]) -> LatentJob:
        model, params = self.params["model"], self.params["latents"]
        return latent_job(model, params, rows, self.pictures, self.root, Path("data/latents"))

    def _text_job(self, rows: list[Row]) -> TextJob:
        model, params = self.params["model"], self.params["text"]
        return TextJob(model=model, params=params, rows=rows, root=self.root, out=Path("data/text"))

    def _cache_stage(self, record: StageRecord, plan: StagePlan, outs: Outs) -> Outs:
        """Counts of a caching stage that runs; what the libraries changed of its encoder, whether it runs or not."""
        out, runs = f"data/{record.name}", plan.state in (RUNS, MAY_RUN)
        digest = record.outs[out] if runs else outs[out]
        index = self.graph.index_of(digest)
        facts = read_facts(index) if index else {}
        if not runs and not self._encoder_is_open(record.name, facts):
            return {}
        model = self.params["model"]
        if is_awaited(model.base):
            self._note(f"{record.name} will stop: {how_to_add(model.base, model.family)}")
            return {}
        output: Table = read_table(index) if index else ([], {})
        cache = self.caches[record.name](record, output)
        if cache is None:
            self._note(f"{record.name}: its samples are not known here")
            return {}
        reference, message = self._check_drift(cache, facts)
        outlook = cache.look_up(drift_id_of(reference))
        if runs:
            plan.encoded, plan.reused = len(outlook.encoded), outlook.reused
        if message and not runs:
            self.prediction.encoders.append(forced(record.name, message, outlook))
        elif message:
            self.prediction.encoders.append(EncoderPlan(stage=record.name, message=message))
        if not runs:
            self.prediction.samples += outlook.encoded if message else []
            return {}
        self.prediction.samples += outlook.encoded
        for note in cache.missing_pictures(outlook):
            self._note(note)
        if not index:
            return {out: None}
        return {out: digest if cache.same_output(reference) else NEW}

    def _encoder_is_open(self, stage: str, facts: Mapping[str, Any]) -> bool:
        """Whether the output of a stage that would not run has other numbers than its encoder gives, or may have."""
        job: CachingJob = self._latent_job([]) if stage == "latents" else self._text_job([])
        memory = DriftRecords(self.root, job.encoder)
        now = memory.at(library_versions())
        if now is None:
            return memory.last is not None  # the libraries changed since the last drift check
        return now != drift_id_of(reference_of(facts))

    def _check_drift(self, cache: CachePlan, facts: Mapping[str, Any]) -> tuple[Reference | None, str | None]:
        """The reference of a stage's encoder, and how its numbers differ from those of the stage's last output."""
        job, output = cache.job, reference_of(facts)
        found: list[str] = []
        check = DriftCheck(
            encoder=job.encoder,
            root=self.root,
            measure=job.drift_values,
            incomplete=lambda drift_id: bool(cache.look_up(drift_id).encoded),
            earlier=lambda: output,
            report=lambda text, same: found.append(text) if same else None,
        )
        try:
            reference = check_known_drift(check)
        except (BaseError, ConfigError) as error:
            self._note(f"{job.stage}: {job.encoder.name} cannot be checked for drift here; its stage does it: {error}")
            reference = output
        message = compare_with_output(check, reference, output) if facts else None
        for text in found if message is None else ():
            self._note(text)
        return reference, message


def _md5(data: bytes) -> str:
    """DVC's digest of a file."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _row_changes(before: list[Row], after: list[Row]) -> list[str]:
    """Which pictures or captions differ between two tables, by path."""
    if not before:
        return []
    old, new = {row["path"]: row for row in before}, {row["path"]: row for row in after}
    changes = [f"{path} removed" for path in sorted(set(old) - set(new))]
    changes += [f"{path} added" for path in sorted(set(new) - set(old))]
    for path in sorted(set(old) & set(new)):
        changed = [column for column in new[path] if old[path].get(column) != new[path][column]]
        changes += [f"{path}: {', '.join(changed)} changed"] if changed else []
    return changes
