"""What the train stage puts out: checkpoints that know where they come from, and the table of losses."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eridiff.core.files import digest_file, digest_json, write_text
from eridiff.family import Family
from eridiff.formats.tables import Row
from eridiff.models.lora import save_checkpoint
from eridiff.params.train import NO_BYTE, TrainParams, kept_steps
from eridiff.training.resume import load_adapters
from eridiff.training.train import Table
from eridiff.versions import code_versions
from eridiff.weights.pointers import Pointer

FILE_NAMES = {"adapters": "step", "average": "ema"}


def train_key(params: TrainParams, pointer: Pointer, inputs: Mapping[str, Path], family: Family) -> str:
    """The key of a training's state: digests of its inputs and params, and the versions of its code.

    `steps` is left out where the schedule does not depend on it, so that more steps go on from the kept state.
    """
    chosen = params.model_dump(exclude=NO_BYTE)
    if params.optimizer.schedule == "constant":
        del chosen["steps"]
    del chosen["keep"]  # decides what is put out, not what is computed
    parts = {
        "params": chosen,
        "denoiser": pointer.identity(),
        "inputs": {name: digest_file(path) for name, path in inputs.items()},
        "versions": {"stages.train": code_versions().stages.train, "family.train": family.VERSIONS.family.train},
    }
    return digest_json(parts)


def make_lineage(
    family: str,
    pointer: Pointer,
    params: TrainParams,
    inputs: Mapping[str, Path],
    tables: Mapping[str, tuple[list[Row], Mapping[str, Any]]],
) -> dict[str, Any]:
    """What a checkpoint says of its origin: facts and digests of what the train stage declares, no clock.

    inputs, tables: captions and buckets among them, as files and as read.
    """
    (captions, caption_facts), (buckets, _) = tables["captions"], tables["buckets"]
    configs = {name: component.config for name, component in pointer.components.items()}
    sizes = Counter((row["bucket_w"], row["bucket_h"]) for row in buckets)
    trained = {row["path"] for row in buckets}
    tags = Counter(
        tag.strip() for row in captions if row["path"] in trained for tag in row["clean"].split(",") if tag.strip()
    )
    return {
        "family": family,
        "base": pointer.base,
        "denoiser_config": configs[next(name for name in configs if name != "scheduler")],
        "scheduler_config": configs["scheduler"],
        "pointer": pointer.identity(),
        "params": params.model_dump(exclude=NO_BYTE),
        "inputs": {name: digest_file(path) for name, path in sorted(inputs.items())},
        "trigger": caption_facts.get("trigger"),
        "buckets": [[width, height, count] for (width, height), count in sorted(sizes.items())],
        "num_pictures": len(buckets),
        "tag_frequency": dict(sorted(tags.items())),
    }


def put_out(
    state: Path, params: TrainParams, family: Family, lineage: Mapping[str, Any], table: Table, out: Path
) -> list[Path]:
    """Write the kept checkpoints; a checkpoint's loss is the mean since the one before."""
    groups = ["adapters", *(["average"] if params.ema_decay is not None else [])]
    written = []
    for step in kept_steps(params):
        first = (step - 1) // params.save_every * params.save_every  # the checkpoint before
        loss = sum(table["loss"][first:step]) / (step - first)
        for group in groups:
            path = out / f"{FILE_NAMES[group]}-{step:06d}.safetensors"
            facts = {**lineage, "step": step, "loss": loss, "ema": group == "average"}
            tensors = load_adapters(state, group, step)
            save_checkpoint(path, tensors, prefix=family.DENOISER, params=params.lora, lineage=facts)
            written.append(path)
    return written


def write_losses(path: Path, table: Table) -> None:
    """The table of losses: a row for each step."""
    lines = ["\t".join(["step", *table])]
    rows = zip(*table.values(), strict=True)
    lines += ["\t".join([str(step), *(f"{value:.9g}" for value in row)]) for step, row in enumerate(rows, 1)]
    write_text(path, "\n".join(lines) + "\n")
