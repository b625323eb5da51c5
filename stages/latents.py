"""latents: bucketed crops -> raw VAE posteriors, by way of the store."""

from functools import cache
from pathlib import Path
from typing import Any

from eridiff.config import ModelParams, load_section
from eridiff.earlier import earlier_index, earlier_shards
from eridiff.entries import Parts
from eridiff.errors import run_main
from eridiff.families import load_family
from eridiff.latentcache import cache_latents, help_latents
from eridiff.latents import INDEX_COLUMNS, LatentParams, common_parts, plan_samples
from eridiff.load import load_vae
from eridiff.newpictures import NewPictures
from eridiff.pixeldigests import PixelDigests
from eridiff.pointerfiles import pointers_of
from eridiff.probing import Probing, entries_lacking, generation_of, index_reference, probe_vae, settle, vae_encoder
from eridiff.progress import say
from eridiff.project import load_local, store_root
from eridiff.ranks import Ranks, find_ranks
from eridiff.rates import TimedLoad, count_saving
from eridiff.runlog import record_run
from eridiff.samples import Samples
from eridiff.sources import find_source
from eridiff.tables import TableRows, write_table


def main() -> None:
    """Read data/buckets, data/raw and the VAE; write data/latents."""
    local = load_local()
    with find_ranks("stages.latents", local.processes) as ranks:
        fill_cache(ranks, local.workers)


def fill_cache(ranks: Ranks, workers: int | None) -> None:
    """As the first process, all of the stage; as another, a share of what has to be encoded."""
    ranks.wait_for(ranks.new_path)
    model = load_section(ModelParams, "model")
    params = load_section(LatentParams, "latents")
    family = load_family(model.family)
    pointer = pointers_of(model.base, ["vae"], model.family)["vae"]
    vae = pointer.components["vae"]
    table = Path("data/buckets/buckets.parquet")
    rows, digests = TableRows(table), {row["file_digest"] for row in TableRows(table, ["file_digest"])}
    pictures, root, out = Path("data/raw"), store_root(), Path("data/latents")

    backend: dict[str, Any] = {}  # none where nothing is encoded

    def load_encoder() -> Any:
        from eridiff.precision import DTYPES, choose_device, describe_backend

        device = choose_device(allow_cpu=model.allow_cpu)
        backend.update(describe_backend(device, params.dtype))
        source = find_source([pointer])
        return load_vae(family, source, DTYPES[params.dtype]), device

    load, pixels = TimedLoad(load_encoder), PixelDigests(root, digests)
    version, side = family.VAE_ENCODE, family.SIDE_MULTIPLE
    new = NewPictures(rows, params, side, pictures, pixels)

    @cache
    def plan(generation: str) -> Samples:
        return plan_samples(rows, params, vae.identity(), version, side, pictures, pixels, generation)

    def common(generation: str) -> Parts:
        return common_parts(params, vae.identity(), version, generation)

    def earlier() -> list[Path]:
        return earlier_shards("latents", str(out))

    def lacks(generation: str) -> bool:
        keys = (lambda: new.first_keys(common(generation))), (lambda: plan(generation).keys)
        return any(entries_lacking(root, "latents", some(), earlier) for some in keys)

    probing = Probing(
        encoder=vae_encoder(pointer, params, version),
        root=root,
        take=lambda: probe_vae(params, *load()),
        lacks=lacks,
        earlier=lambda: index_reference(earlier_index("latents", str(out))),
    )
    reference = settle(probing)
    generation, before = generation_of(reference), load.seconds
    work = new.encode(common(generation), load, root, earlier, workers=workers, ranks=ranks)
    if ranks.index:
        encoded = work.encoded
        if ranks.read(ranks.plan_path):
            pixels.look_again()
            encoded += help_latents(plan(generation), params, load, root, pictures, ranks, workers=workers)
        say(f"latents{ranks.label}: {encoded} encoded")
        return
    samples = plan(generation)
    index, counts = cache_latents(samples, params, load, root, earlier, pictures, out, workers=workers, ranks=ranks)
    facts = {name: vae.config.get(name) for name in ("scaling_factor", "shift_factor")}
    facts |= {"probe": reference.facts()} if reference else {}
    write_table(out / "index.parquet", index, INDEX_COLUMNS, facts)
    counts, loading = counts.after(work), load.seconds - before
    counts = count_saving(counts, root, probing.encoder.identity, samples.mean_area, loading=loading)
    record_run("latents", counts=vars(counts), **backend)
    say(counts.line())


if __name__ == "__main__":
    run_main(main)
