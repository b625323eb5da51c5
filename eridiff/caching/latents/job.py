"""The job of the stage `latents`: bucketed crops => raw VAE posteriors, by way of the store."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

from eridiff.bases.pointer_files import pointers_of
from eridiff.caching.drift_check import any_missing, drift_id_of
from eridiff.caching.drift_records import Encoder, Values
from eridiff.caching.fill import Resources
from eridiff.caching.job import EncoderPart, Filled, check_drift_of, count_saved, earlier_of, facts_of, resources_of
from eridiff.caching.latents.encode import cache_latents, help_latents
from eridiff.caching.latents.new_pictures import NewPictures
from eridiff.caching.latents.plan import common_key_fields, plan_samples
from eridiff.caching.latents.samples import Samples
from eridiff.caching.latents.vae_drift import vae_drift_values, vae_encoder
from eridiff.caching.processes import Ranks
from eridiff.core.progress import say
from eridiff.formats.tables import Row, values_of
from eridiff.params.latents import LatentParams
from eridiff.params.model import ModelParams
from eridiff.store.entries import KeyFields
from eridiff.store.pixels import PixelDigests


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentJob:
    """What of which pictures is encoded, by which VAE, into which store. `latent_job` makes one.

    rows: of buckets.parquet. pictures: their folder. pixels: what is remembered of them. root: the store's folder.
    """

    stage: ClassVar[str] = "latents"
    kind: ClassVar[str] = "latents"
    subject: ClassVar[str] = "pixels"

    model: ModelParams
    params: LatentParams
    rows: Collection[Row]
    pictures: Path
    pixels: PixelDigests
    root: Path
    out: Path

    @cached_property
    def part(self) -> EncoderPart:
        """The VAE."""
        return EncoderPart(model=self.model, name="vae", dtype=self.params.dtype)

    @property
    def encoder(self) -> Encoder:
        """The VAE, for the drift check."""
        return vae_encoder(self.part.pointer, self.params, self.part.family.VERSIONS.family.vae_encode)

    @property
    def facts(self) -> Mapping[str, Any]:
        """Of the index: how raw latents become those that are trained on."""
        config = self.part.pointer.components["vae"].config
        return {name: config.get(name) for name in ("scaling_factor", "shift_factor")}

    def common(self, drift_id: str) -> KeyFields:
        """The fields of a key that all samples share."""
        vae = self.part.pointer.components["vae"]
        return common_key_fields(self.params, vae.identity(), self.part.family.VERSIONS.family.vae_encode, drift_id)

    @cached_property
    def plan(self) -> Callable[[str], Samples]:
        """plan(drift_id): the samples with their keys; decodes only pictures that the store never saw.

        Raises: as `plan_samples`.
        """
        side = self.part.family.SIDE_MULTIPLE
        return cache(
            lambda drift_id: plan_samples(
                self.rows, self.params, self.common(drift_id), side, self.pictures, self.pixels
            )
        )

    @cached_property
    def new(self) -> NewPictures:
        """The pictures whose pixels nothing remembers."""
        side = self.part.family.SIDE_MULTIPLE
        return NewPictures(self.rows, self.params, side, self.pictures, self.pixels)

    def drift_values(self) -> Values:
        """Numbers of the VAE, which is loaded for it."""
        return vae_drift_values(self.params, *self.part.load())

    def incomplete(self, drift_id: str) -> bool:
        """Whether something has to be encoded; the first new picture mostly tells."""
        keys = (lambda: self.new.first_keys(self.common(drift_id))), (lambda: self.plan(drift_id).keys)
        return any(any_missing(self.root, self.kind, some(), lambda: earlier_of(self)) for some in keys)

    def fill(self, ranks: Ranks, workers: int | None) -> Filled | None:
        """As the first process, all of the stage; as another, a share of what has to be encoded, and None.

        Shards are put out, the index is returned.
        """
        resources, reference = resources_of(self, ranks, workers), check_drift_of(self)
        drift_id, before = drift_id_of(reference), self.part.load.seconds
        work = self.new.encode(self.common(drift_id), resources)
        if ranks.index:
            say(f"latents{ranks.label}: {work.encoded + self._help(drift_id, resources)} encoded")
            return None
        samples = self.plan(drift_id)
        index, counts = cache_latents(samples, self.params, self.pictures, resources, self.out)
        loading = self.part.load.seconds - before
        counts = count_saved(self, counts.after(work), loading=loading, units=samples.mean_area)
        facts = facts_of(self, reference)
        return Filled(index=index, facts=facts, counts=counts, backend=self.part.backend)

    def _help(self, drift_id: str, resources: Resources) -> int:
        """Encode a share of what the first process found missing."""
        if not resources.ranks.read(resources.ranks.plan_path):
            return 0
        self.pixels.look_again()
        return help_latents(self.plan(drift_id), self.params, self.pictures, resources)


def latent_job(
    model: ModelParams, params: LatentParams, rows: Collection[Row], pictures: Path, root: Path, out: Path
) -> LatentJob:
    """The job of a table's rows, with what the store remembers of their pictures.

    Raises: BaseError where the VAE has no pointer here, before anything is read.
    """
    pointers_of(model.base, ["vae"], model.family)
    pixels = PixelDigests(root, set(values_of(rows, "file_digest")))
    return LatentJob(model=model, params=params, rows=rows, pictures=pictures, pixels=pixels, root=root, out=out)
