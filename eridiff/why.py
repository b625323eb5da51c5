"""`eridiff why`: what the next `dvc repro` would run, because of what, and which samples it would encode.

The light stages (captions, buckets) are computed in memory, the caching stages' keys are planned and looked up,
and DVC's own records and run-cache say the rest. Nothing is written but what the store learns of pictures.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from eridiff.buckets import BUCKET_COLUMNS, plan_buckets, report
from eridiff.captions import CAPTION_COLUMNS, IMAGE_COLUMNS, captions_rows, images_rows
from eridiff.check import check_params, load_all
from eridiff.dvcgraph import Graph, StageRecord
from eridiff.earlier import earlier_shards
from eridiff.errors import EridiffError
from eridiff.families import load_family
from eridiff.filedigests import FileDigests
from eridiff.latents import plan_samples
from eridiff.pictures import scan_pictures
from eridiff.prediction import RESTORED, RUNS, UP_TO_DATE, Prediction, SamplePlan, StagePlan
from eridiff.project import store_root
from eridiff.sources import pointers_of
from eridiff.store import Location, Parts, PixelDigests, Store, read_catalogue
from eridiff.tables import Row, read_table, table_bytes
from eridiff.tensorfile import TensorFile
from eridiff.texts import plan_captions


def explain(folder: Path) -> Prediction:
    """Predict the next `dvc repro` in a project's folder (the current one).

    Raises: ConfigError where DVC itself cannot read the project.
    """
    prediction = Prediction()
    try:
        check_params(Path("params.yaml"))
    except EridiffError as error:
        prediction.error = str(error)
        prediction.stages["check"] = StagePlan(state=RUNS, reasons=["params.yaml has a mistake: nothing else starts"])
        return prediction
    graph = Graph(folder)
    try:
        _Predictor(graph, prediction).run()
    finally:
        graph.close()
    return prediction


Outs = dict[str, str | None]  # path -> digest, None where only the run itself will tell


class _Predictor:
    """Walks the stages in order, carrying the digests that their outs would have."""

    def __init__(self, graph: Graph, prediction: Prediction) -> None:
        self.graph, self.prediction = graph, prediction
        self.outs: Outs = {}
        self.tables: dict[str, tuple[list[Row], dict[str, Any]]] = {}  # of light stages that would run
        self.params = load_all(Path("params.yaml"))
        self.family = load_family(self.params["model"].family)
        self.light: dict[str, Callable[[StageRecord, StagePlan], Outs]] = {
            "check": self._check,
            "captions": self._captions,
            "buckets": self._buckets,
            "latents": self._latents,
            "text": self._text,
        }

    def run(self) -> None:
        """Fill the prediction, stage by stage."""
        for record in self.graph.stages:
            deps = {path: self.outs.get(path, digest) for path, digest in record.present_deps.items()}
            plan = StagePlan(state=UP_TO_DATE, reasons=self._reasons(record, deps))
            outs: Outs = dict(record.outs)
            if plan.reasons:
                known = {path: digest for path, digest in deps.items() if digest is not None}
                cached = self.graph.run_cached(record, known) if len(known) == len(deps) else None
                plan.state = RUNS if cached is None else RESTORED
                outs = dict(cached) if cached is not None else self._predict(record, plan)
            self.prediction.stages[record.name] = plan
            self.outs |= outs

    def _predict(self, record: StageRecord, plan: StagePlan) -> Outs:
        """Outs of a stage that would run."""
        predict = self.light.get(record.name)
        return predict(record, plan) if predict else dict.fromkeys(record.outs)

    def _reasons(self, record: StageRecord, deps: Mapping[str, str | None]) -> list[str]:
        """Why a stage is not up to date; empty where it is."""
        if not any(record.outs.values()):
            return ["never run here"]
        reasons = ["its command changed"] if record.cmd_changed else []
        for path, digest in sorted(deps.items()):
            if digest != record.recorded_deps.get(path):
                reasons.append(f"{path} {'will change' if path in self.outs else 'changed'}")
        now, before = _leaves(record.present_params), _leaves(record.recorded_params)
        for key in sorted({*now, *before}):
            if now.get(key) != before.get(key):
                reasons.append(f"{key}: {_show(before, key)} -> {_show(now, key)}")
        lost = [path for path, digest in record.outs.items() if digest and not self._there(path, digest)]
        return reasons + [f"{path} is missing, and not in DVC's cache" for path in lost]

    def _there(self, path: str, digest: str) -> bool:
        """Whether an out can be had without a run."""
        return Path(path).exists() or self.graph.has_object(digest)

    def table(self, path: str) -> tuple[list[Row], dict[str, Any]]:
        """A table as the stage that reads it will find it."""
        if path not in self.tables:
            digest = self.outs.get(path)
            cached = self.graph.object_path(digest) if digest else None
            self.tables[path] = read_table(cached if cached and cached.exists() else Path(path))
        return self.tables[path]

    def _recorded_table(self, digest: str | None) -> list[Row]:
        """Rows of a table that dvc.lock names, [] where DVC's cache lacks it."""
        if digest is None or not self.graph.has_object(digest):
            return []
        return read_table(self.graph.object_path(digest))[0]

    def _check(self, record: StageRecord, plan: StagePlan) -> Outs:
        """Sound params give the same constant as ever."""
        return {path: digest or _md5(b"params.yaml is sound\n") for path, digest in record.outs.items()}

    def _captions(self, record: StageRecord, plan: StagePlan) -> Outs:
        params = self.params["captions"]
        with FileDigests() as digests:
            pictures, _ = scan_pictures(Path("data/raw"), digests)
        images, captions = images_rows(pictures), captions_rows(pictures, params)
        outs: Outs = {}
        for path, rows, columns, facts in (
            ("data/captions/images.parquet", images, IMAGE_COLUMNS, {}),
            ("data/captions/captions.parquet", captions, CAPTION_COLUMNS, {"trigger": params.trigger}),
        ):
            plan.reasons += _row_changes(self._recorded_table(record.outs[path]), rows)
            self.tables[path] = (rows, facts)
            outs[path] = _md5(table_bytes(rows, columns, facts))
        plan.reasons = list(dict.fromkeys(plan.reasons))
        return outs

    def _buckets(self, record: StageRecord, plan: StagePlan) -> Outs:
        images, _ = self.table("data/captions/images.parquet")
        rows, left_out = plan_buckets(images, self.params["buckets"])
        path = "data/buckets/buckets.parquet"
        self.tables[path] = (rows, {})
        return {
            path: _md5(table_bytes(rows, BUCKET_COLUMNS, {})),
            "data/buckets/report.md": _md5(report(rows, left_out).encode()),
        }

    def _latents(self, record: StageRecord, plan: StagePlan) -> Outs:
        rows, _ = self.table("data/buckets/buckets.parquet")
        model = self.params["model"]
        vae = pointers_of(model.base, ["vae"], model.family)["vae"].components["vae"]
        root = store_root()
        samples = plan_samples(
            rows,
            self.params["latents"],
            vae.identity(),
            self.family.VAE_ENCODE,
            self.family.SIDE_MULTIPLE,
            Path("data/raw"),
            PixelDigests(root),
        )
        self._count(plan, "latents", {s.key: (s.path, s.parts) for s in samples}, Store(root, "latents"), len(samples))
        index = [{"path": s.path, "flip": int(s.flip), "key": s.key} for s in samples]
        same = self._same_index(record, "data/latents", index, ("path", "flip", "key"))
        return {"data/latents": record.outs["data/latents"] if same else None}

    def _text(self, record: StageRecord, plan: StagePlan) -> Outs:
        rows, _ = self.table("data/captions/captions.parquet")
        model = self.params["model"]
        pointer = pointers_of(model.base, ["text"], model.family)["text"]
        captions = plan_captions(rows, self.params["text"], self.family, pointer.identity())
        self._count(
            plan, "text", {c.key: (c.text, c.parts) for c in captions}, Store(store_root(), "texts"), len(captions)
        )
        index = [{"text": c.text, "key": c.key} for c in captions]
        same = self._same_index(record, "data/text", index, ("text", "key"))
        return {"data/text": record.outs["data/text"] if same else None}

    def _count(
        self, plan: StagePlan, stage: str, wanted: Mapping[str, tuple[str, Parts]], store: Store, total: int
    ) -> None:
        """How many entries would be encoded, and which part of each key is new."""
        known = dict(store.catalogue)
        if set(wanted) - set(known):
            for path in earlier_shards(stage, f"data/{stage}"):
                known = {**read_catalogue(TensorFile(path)), **known}
        missing = [key for key in wanted if key not in known]
        plan.encoded, plan.reused = len(missing), total - len(missing)
        for key in missing:
            name, parts = wanted[key]
            self.prediction.samples.append(SamplePlan(stage=stage, name=name, reason=_why_new(parts, known)))

    def _same_index(self, record: StageRecord, out: str, rows: list[Row], columns: tuple[str, ...]) -> bool:
        """Whether a caching stage would put out what dvc.lock names: then nothing after it runs."""
        digest = record.outs[out]
        if digest is None or not self.graph.has_object(digest):
            return False
        before = self._recorded_table(self.graph.listing(digest).get("index.parquet"))
        return _project(before, columns) == _project(rows, columns)


def _project(rows: list[Row], columns: tuple[str, ...]) -> list[tuple[Any, ...]]:
    return sorted(tuple(row[column] for column in columns) for row in rows)


def _md5(data: bytes) -> str:
    """DVC's digest of a file."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Key path -> value of nested params."""
    if isinstance(value, Mapping):
        return {k: v for key, item in value.items() for k, v in _leaves(item, f"{path}.{key}" if path else key).items()}
    return {path: value}


def _show(leaves: Mapping[str, Any], key: str) -> str:
    return repr(leaves[key]) if key in leaves else "(absent)"


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


def _why_new(parts: Parts, known: Mapping[str, Location]) -> str:
    """The part of a key that no entry of the store has, beside the most alike entry."""
    wanted = _leaves(parts)
    best: list[str] | None = None
    for location in known.values():
        other = _leaves(location.parts)
        differing = sorted(key for key in {*wanted, *other} if _plain(wanted.get(key)) != _plain(other.get(key)))
        if best is None or len(differing) < len(best):
            best = differing
    return f"new {', '.join(best)}" if best else "nothing like it in the store"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
