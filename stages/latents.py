"""latents: bucketed crops -> raw VAE posteriors, by way of the store."""

from pathlib import Path

from eridiff.config import load_section
from eridiff.errors import run_main
from eridiff.latentjob import latent_job
from eridiff.latents import INDEX_COLUMNS
from eridiff.params_latents import LatentParams
from eridiff.params_model import ModelParams
from eridiff.progress import say
from eridiff.project import load_local, store_root
from eridiff.ranks import find_ranks
from eridiff.runlog import record_run
from eridiff.tables import TableRows, write_table


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
    run_main(main)
