"""train: cached latents and embeddings -> LoRA checkpoints. eridiff/training/step.py: train_step."""

from functools import partial
from pathlib import Path

from eridiff.core.config import load_section
from eridiff.core.progress import say
from eridiff.dvc.outs import read_outs
from eridiff.dvc.project_versions import run_stage
from eridiff.machine.code import code_digest
from eridiff.machine.local import load_local, store_root
from eridiff.machine.runlog import record_run
from eridiff.memory.train import choose_checkpointing
from eridiff.models.precision import describe_backend
from eridiff.params.model import ModelParams
from eridiff.params.train import TrainParams
from eridiff.sampling.previews import prepare_previews
from eridiff.store.dedupe import dedupe_outs
from eridiff.training.job import train_job

INPUTS = {
    "captions": Path("data/captions/captions.parquet"),
    "buckets": Path("data/buckets/buckets.parquet"),
    "latents": Path("data/latents/index.parquet"),
    "text": Path("data/text/index.parquet"),
}


def main() -> None:
    """Read the caches and the denoiser; write data/lora and data/loss.tsv."""
    model, params, local = load_section(ModelParams, "model"), load_section(TrainParams, "train"), load_local()
    dedupe_outs(store_root(), read_outs())
    job = train_job(model, params, INPUTS, store_root())
    with job.held():
        previews = prepare_previews(local, model, params.precision, job.data.samples[0].bucket, job.device)
        level = choose_checkpointing(local.activation_checkpointing, local.swap, job, code_digest())
        run = job.prepare(level, local.swap or 0, fixed=local.activation_checkpointing is not None)
        preview = partial(previews.draw, run.denoiser) if previews else None
        table, seconds = job.train(run, preview, local.state_every)
        written = job.put_out(table, Path("data/lora"), Path("data/loss.tsv"))
    backend = describe_backend(job.device, params.precision)
    backend |= {"step": run.levers, "activation_checkpointing": run.kept.described()}
    record_run("train", seconds=seconds, state=job.state, **backend)
    say(f"train: {params.steps} steps, {len(written)} checkpoint files, {seconds:.1f} s")


if __name__ == "__main__":
    run_stage(main)
