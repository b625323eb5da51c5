"""text: distinct captions -> text embeddings, by way of the store."""

from pathlib import Path

from eridiff.caching.processes import find_ranks
from eridiff.caching.text import INDEX_COLUMNS
from eridiff.caching.text_job import TextJob
from eridiff.core.config import load_section
from eridiff.core.progress import say
from eridiff.dvc.project_versions import run_stage
from eridiff.formats.tables import TableRows, write_table
from eridiff.machine.local import load_local, store_root
from eridiff.machine.runlog import record_run
from eridiff.params.model import ModelParams
from eridiff.params.text import TextParams


def main() -> None:
    """Read data/captions/captions.parquet and the text encoders; write data/text."""
    out = Path("data/text")
    with find_ranks("stages.text", load_local().processes) as ranks:
        ranks.wait_for(ranks.plan_path)
        model, params = load_section(ModelParams, "model"), load_section(TextParams, "text")
        rows = TableRows(Path("data/captions/captions.parquet"), ["variants"])
        filled = TextJob(model=model, params=params, rows=rows, root=store_root(), out=out).fill(ranks)
        if filled:  # else another process puts all out
            write_table(out / "index.parquet", filled.index, INDEX_COLUMNS, filled.facts)
            record_run("text", counts=vars(filled.counts), **filled.backend)
            for line in filled.report:
                say(line)


if __name__ == "__main__":
    run_stage(main)
