"""text: distinct captions -> text embeddings, by way of the store."""

from functools import cache
from pathlib import Path
from typing import Any

from eridiff.config import ModelParams, load_section
from eridiff.earlier import earlier_index, earlier_shards
from eridiff.errors import run_main
from eridiff.families import load_family
from eridiff.load import load_text_encoders
from eridiff.pointerfiles import pointers_of
from eridiff.probing import Probing, entries_lacking, generation_of, index_reference, probe_text, settle, text_encoder
from eridiff.progress import say
from eridiff.project import load_local, store_root
from eridiff.ranks import Ranks, find_ranks
from eridiff.rates import TimedLoad, count_saving
from eridiff.runlog import record_run
from eridiff.sources import find_source
from eridiff.tables import TableRows, write_table
from eridiff.texts import INDEX_COLUMNS, Caption, TextParams, cache_texts, help_texts, plan_captions, report_lost


def main() -> None:
    """Read data/captions/captions.parquet and the text encoders; write data/text."""
    with find_ranks("stages.text", load_local().processes) as ranks:
        fill_cache(ranks)


def fill_cache(ranks: Ranks) -> None:
    """As the first process, all of the stage; as another, a share of what has to be encoded."""
    ranks.wait_for(ranks.plan_path)
    model = load_section(ModelParams, "model")
    params = load_section(TextParams, "text")
    family = load_family(model.family)
    pointer = pointers_of(model.base, ["text"], model.family)["text"]
    rows = TableRows(Path("data/captions/captions.parquet"), ["variants"])
    root, out = store_root(), Path("data/text")

    backend: dict[str, Any] = {}  # none where nothing is encoded

    def load_encoder() -> Any:
        from eridiff.precision import DTYPES, choose_device, describe_backend

        device = choose_device(allow_cpu=model.allow_cpu)
        backend.update(describe_backend(device, params.dtype))
        source = find_source([pointer])
        return load_text_encoders(family, source, DTYPES[params.dtype]), device

    load = TimedLoad(load_encoder)

    @cache
    def plan(generation: str) -> list[Caption]:
        return plan_captions(rows, params, family, pointer.identity(), generation)

    def earlier() -> list[Path]:
        return earlier_shards("text", str(out))

    probing = Probing(
        encoder=text_encoder(pointer, params, family),
        root=root,
        take=lambda: probe_text(params, family, *load()),
        lacks=lambda generation: entries_lacking(root, "texts", (c.key for c in plan(generation)), earlier),
        earlier=lambda: index_reference(earlier_index("text", str(out))),
    )
    reference = settle(probing)
    captions = plan(generation_of(reference))
    if ranks.index:
        say(f"text{ranks.label}: {help_texts(captions, params, family, load, root, ranks)} encoded")
        return
    before = load.seconds
    index, counts = cache_texts(captions, params, family, load, root, earlier, out, ranks=ranks)
    facts = {"probe": reference.facts()} if reference else {}
    write_table(out / "index.parquet", index, INDEX_COLUMNS, facts)
    for line in report_lost(index):
        say(line)
    counts = count_saving(counts, root, probing.encoder.identity, loading=load.seconds - before)
    record_run("text", counts=vars(counts), **backend)
    say(counts.line())


if __name__ == "__main__":
    run_main(main)
