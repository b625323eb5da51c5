"""latents: bucketed crops -> raw VAE posteriors, by way of the store."""

from pathlib import Path

from eridiff.caching.latents.job import latent_job
from eridiff.caching.latents.plan import INDEX_COLUMNS
from eridiff.caching.processes import find_ranks
from eridiff.core.config import load_section
from eridiff.core.progress import say
from eridiff.dvc.project_versions import run_stage
from eridiff.formats.tables import TableRows, write_table
from eridiff.machine.local import load_local, store_root
from eridiff.machine.runlog import record_run
from eridiff.params.latents import LatentParams
from eridiff.params.model import ModelParams


def main() -> None:
    """Read data/buckets, data/raw and the VAE; write data/latents."""
    local, out = load_local(), Path("data/latents")
    with find_ranks("stages.latents", local.processes) as ranks:
        ranks.wait_for(ranks.new_path)
        model, params = load_section(ModelParams, "model"), load_section(LatentParams, "latents")
        rows = TableRows(Path("data/buckets/buckets.parquet"))
        filled = latent_job(model, params, rows, Path("data/raw"), store_root(), out).fill(ranks, local.workers)
        if filled:  # else another process puts all out
            write_table(out / "index.parquet", filled.index, INDEX_COLUMNS, filled.facts)
            record_run("latents", counts=vars(filled.counts), **filled.backend)
            for line in filled.report:
                say(line)


if __name__ == "__main__":
    run_stage(main)
