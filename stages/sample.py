"""sample: the base with and without the LoRA, at the same seeds, in a labelled grid."""

from pathlib import Path

from eridiff.bases.find import find_source
from eridiff.bases.pointer_files import pointers_of
from eridiff.core.config import load_section
from eridiff.core.progress import say
from eridiff.dvc.project_versions import run_stage
from eridiff.family import load_family
from eridiff.machine.local import store_root
from eridiff.machine.runlog import record_run
from eridiff.models.precision import choose_device, describe_backend
from eridiff.params.model import ModelParams
from eridiff.params.sample import SampleParams
from eridiff.sampling.concept import open_concept
from eridiff.sampling.sample import SampleJob, draw_samples


def main() -> None:
    """Read data/lora and the whole base, and for measures the concept's pictures; write data/samples."""
    model = load_section(ModelParams, "model")
    params = load_section(SampleParams, "sample")
    family = load_family(model.family)
    device = choose_device(allow_cpu=model.allow_cpu)
    pointers = pointers_of(model.base, family.PARTS, model.family)
    source = find_source(pointers.values())
    job = SampleJob(params=params, family=family, source=source, device=device, store=store_root())
    tables = Path("data/captions/captions.parquet"), Path("data/buckets/buckets.parquet")
    concept = open_concept(*tables, Path("data/raw")) if params.measures else []
    out = Path("data/samples")
    draw_samples(job, Path("data/lora"), out, concept)
    record_run("sample", scheduler=params.scheduler, **describe_backend(device, params.precision))
    say(f"sample: {len(list(out.glob('images/*.png')))} pictures, {out}/grid.png")


if __name__ == "__main__":
    run_stage(main)
