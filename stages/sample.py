"""sample: the base with and without the LoRA, at the same seeds, in a labelled grid."""

from pathlib import Path

from eridiff.concept import open_concept
from eridiff.config import load_section
from eridiff.errors import run_main
from eridiff.families import load_family
from eridiff.params_model import ModelParams
from eridiff.params_sample import SampleParams
from eridiff.pointerfiles import pointers_of
from eridiff.precision import choose_device, describe_backend
from eridiff.progress import say
from eridiff.project import store_root
from eridiff.runlog import record_run
from eridiff.sample import draw_samples
from eridiff.sources import find_source


def main() -> None:
    """Read data/lora and the whole base, and for measures the concept's pictures; write data/samples."""
    model = load_section(ModelParams, "model")
    params = load_section(SampleParams, "sample")
    family = load_family(model.family)
    device = choose_device(allow_cpu=model.allow_cpu)
    pointers = pointers_of(model.base, family.PARTS, model.family)
    source = find_source(pointers.values())
    tables = Path("data/captions/captions.parquet"), Path("data/buckets/buckets.parquet")
    concept = open_concept(*tables, Path("data/raw")) if params.measures else []
    out = Path("data/samples")
    draw_samples(params, family, source, device, Path("data/lora"), out, concept, store_root())
    record_run("sample", scheduler=params.scheduler, **describe_backend(device, params.precision))
    say(f"sample: {len(list(out.glob('images/*.png')))} pictures, {out}/grid.png")


if __name__ == "__main__":
    run_main(main)
