"""text: distinct captions -> text embeddings, by way of the store."""

from pathlib import Path
from typing import Any

from eridiff.config import ModelParams, load_section
from eridiff.earlier import earlier_shards
from eridiff.errors import run_main
from eridiff.families import load_family, load_keys
from eridiff.progress import say
from eridiff.project import store_root
from eridiff.runlog import record_run
from eridiff.sources import find_source, pointers_of
from eridiff.tables import read_table, write_table
from eridiff.texts import INDEX_COLUMNS, TextParams, cache_texts, plan_captions, report_lost


def main() -> None:
    """Read data/captions/captions.parquet and the text encoders; write data/text."""
    model = load_section(ModelParams, "model")
    params = load_section(TextParams, "text")
    family = load_family(model.family)
    pointer = pointers_of(model.base, ["text"], model.family)["text"]
    rows, _ = read_table(Path("data/captions/captions.parquet"))
    out = Path("data/text")

    def load() -> Any:
        from eridiff.precision import DTYPES, choose_device

        device = choose_device(allow_cpu=model.allow_cpu)
        source = find_source([pointer], load_keys(model.family).canonical)
        return family.load_text_encoders(source, DTYPES[params.dtype]), device

    captions = plan_captions(rows, params, family, pointer.identity())
    index, counts = cache_texts(
        captions, params, family, load, store_root(), lambda: earlier_shards("text", str(out)), out
    )
    write_table(out / "index.parquet", index, INDEX_COLUMNS)
    for line in report_lost(index):
        say(line)
    record_run("text", counts=vars(counts))
    say(counts.line())


if __name__ == "__main__":
    run_main(main)
