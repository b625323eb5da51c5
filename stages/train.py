"""train: cached latents and embeddings -> LoRA checkpoints. The step itself is eridiff/train.py: train_step."""

from functools import partial
from pathlib import Path

from eridiff.basecheck import check_denoiser, check_vae, find_vae
from eridiff.checkpoint import code_digests, make_lineage, put_out, train_key
from eridiff.config import ModelParams, load_section
from eridiff.data import open_training_set
from eridiff.dedupe import dedupe_outs
from eridiff.errors import run_main
from eridiff.families import load_family
from eridiff.footprint import choose_activations
from eridiff.leftovers import take_away
from eridiff.ownouts import read_outs
from eridiff.pipeline import read_stages
from eridiff.pointerfiles import pointers_of
from eridiff.precision import choose_device, describe_backend
from eridiff.previews import prepare_previews
from eridiff.progress import say
from eridiff.project import load_local, store_root
from eridiff.roots import pin
from eridiff.runlog import record_run
from eridiff.runstate import hold, states, stopped_at_once
from eridiff.sources import find_source
from eridiff.stopping import stop_in_order
from eridiff.tables import read_table
from eridiff.train import prepare_run, train
from eridiff.trainparams import TrainParams

INPUTS = {
    "captions": Path("data/captions/captions.parquet"),
    "buckets": Path("data/buckets/buckets.parquet"),
    "latents": Path("data/latents/index.parquet"),
    "text": Path("data/text/index.parquet"),
}


def main() -> None:
    """Read the caches and the denoiser; write data/lora and data/loss.tsv."""
    model, params, local = (
        load_section(ModelParams, "model"),
        load_section(TrainParams, "train"),
        load_local(),
    )
    family = load_family(model.family)
    pointer = pointers_of(model.base, ["denoiser"], model.family)["denoiser"]
    device = choose_device(allow_cpu=model.allow_cpu)
    dedupe_outs(store_root(), read_outs())
    tables = {name: read_table(path) for name, path in INPUTS.items()}
    data = open_training_set(tables, Path("data/latents"), Path("data/text"), params)
    lineage = make_lineage(model.family, pointer, params, INPUTS, *tables["captions"], tables["buckets"][0])
    root, stage = store_root(), read_stages(Path())["train"]
    state = root / "runs" / train_key(params, pointer, INPUTS, stage)
    with hold(state):
        take_away(state)
        pin(root, "runs", Path(), [state.name])
        source = find_source([pointer])
        fresh = params.check_base and not states(state)
        if fresh:
            vae = find_vae(model)
            say(check_vae(vae, family, data, device) if vae else "base check: no VAE on this machine, not checked")
        previews = prepare_previews(local, model, params.precision, data.samples[0].bucket, device)
        code = code_digests(stage)
        level = choose_activations(local.activations, params, family, pointer, data, device, root, code)
        facts, fixed = tables["latents"][1], local.activations is not None
        run = prepare_run(params, family, source, facts, device, level, fixed=fixed, store=root)
        if fresh:
            say(check_denoiser(run, data))
        preview = partial(previews.draw, run.denoiser) if previews else None
        with stop_in_order(lambda: stopped_at_once(state, params.steps)) as asked:
            table, seconds = train(run, data, state, local.state_every, preview, asked)
        written = put_out(state, params, family, lineage, table, Path("data/lora"), Path("data/loss.tsv"))
    backend = describe_backend(device, params.precision)
    record_run("train", seconds=seconds, activations=run.activations, state=state, **backend)
    say(f"train: {params.steps} steps, {len(written)} checkpoint files, {seconds:.1f} s")


if __name__ == "__main__":
    run_main(main)
