"""text: distinct captions -> text embeddings, by way of the store."""

from pathlib import Path

from eridiff.config import load_section
from eridiff.errors import run_main
from eridiff.params_model import ModelParams
from eridiff.params_text import TextParams
from eridiff.progress import say
from eridiff.project import load_local, store_root
from eridiff.ranks import find_ranks
from eridiff.runlog import record_run
from eridiff.tables import TableRows, write_table
from eridiff.textjob import TextJob
from eridiff.texts import INDEX_COLUMNS


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
    run_main(main)
