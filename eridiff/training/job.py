"""The job of the stage `train`: what is trained, on which data and base, and where its state lies."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eridiff.acceleration.levels import Level
from eridiff.bases.find import find_source
from eridiff.bases.pointer_files import pointers_of
from eridiff.core.config import load_section
from eridiff.core.errors import DataError
from eridiff.core.leftovers import take_away
from eridiff.core.progress import say
from eridiff.core.stopping import stop_in_order
from eridiff.family import Family, load_family
from eridiff.formats.tables import read_table
from eridiff.machine.local import Checkpointing, store_root
from eridiff.models.precision import choose_device
from eridiff.params.model import ModelParams
from eridiff.params.train import TrainParams
from eridiff.store.pins import pin
from eridiff.training.base_check import check_denoiser, check_vae, find_vae
from eridiff.training.checkpoint import make_lineage, put_out, train_key, write_losses
from eridiff.training.data import TrainingSet, open_training_set
from eridiff.training.resume import hold, states, stopped_at_once
from eridiff.training.run import Machine, Run, prepare_run
from eridiff.training.train import Preview, Table, train
from eridiff.weights.pointers import ModelSource, Pointer

# Of a project, as the stage names them too: dvc.yaml's deps are read off its source.
PROJECT = {
    "captions": Path("data/captions/captions.parquet"),
    "buckets": Path("data/buckets/buckets.parquet"),
    "latents": Path("data/latents/index.parquet"),
    "text": Path("data/text/index.parquet"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainJob:
    """One training. `train_job` makes one.

    lineage: what a checkpoint says of its origin. root: the store's folder; state: the one in it that a stopped
    training goes on from.
    """

    model: ModelParams
    params: TrainParams
    family: Family
    pointer: Pointer
    source: ModelSource
    device: torch.device
    data: TrainingSet
    latent_facts: Mapping[str, Any]
    lineage: Mapping[str, Any]
    root: Path
    state: Path

    @property
    def checks_base(self) -> bool:
        """Whether the base is checked: before the first step alone."""
        return self.params.check_base and not states(self.state)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the state, which no other process may then; check the VAE against the latents.

        Raises: TrainError where another holds it, BaseError where the check fails.
        """
        with hold(self.state):
            take_away(self.state)
            pin(self.root, "runs", Path(), [self.state.name])
            if self.checks_base:
                vae = find_vae(self.model)
                checked = check_vae(vae, self.family, self.data, self.device) if vae else None
                say(checked or "base check: no VAE on this machine, not checked")
            yield

    def prepare(self, activation_checkpointing: Checkpointing | Level, swap: int = 0, *, fixed: bool) -> Run:
        """The denoiser with its adapters on the device, checked against the data. See `Machine`."""
        run = self.load(activation_checkpointing, swap, fixed=fixed)
        if self.checks_base:
            say(check_denoiser(run, self.data))
        return run

    def load(
        self, activation_checkpointing: Checkpointing | Level = "none", swap: int = 0, *, fixed: bool = True
    ) -> Run:
        """The denoiser with its adapters on the device."""
        machine = Machine(
            device=self.device,
            activation_checkpointing=activation_checkpointing,
            swap=swap,
            fixed=fixed,
            store=self.root,
        )
        return prepare_run(self.params, self.family, self.source, self.latent_facts, machine)

    def train(self, run: Run, preview: Preview | None, state_every: int) -> tuple[Table, float]:
        """All steps that are left; the table of losses, and the seconds that they took."""
        with stop_in_order(lambda: stopped_at_once(self.state, self.params.steps)) as asked:
            return train(run, self.data, self.state, state_every, preview, asked)

    def put_out(self, table: Table, out: Path, losses: Path) -> list[Path]:
        """Write the kept checkpoints into `out`, and the table of losses."""
        written = put_out(self.state, self.params, self.family, self.lineage, table, out)
        write_losses(losses, table)
        return written


def train_job(model: ModelParams, params: TrainParams, inputs: Mapping[str, Path], root: Path) -> TrainJob:
    """A training on four tables: captions, buckets, and the indexes of both caches, in whose folders the shards lie.

    Raises: BaseError where the denoiser is not here, ConfigError where it cannot be trained on this machine.
    """
    pointer = pointers_of(model.base, ["denoiser"], model.family)["denoiser"]
    family, device = load_family(model.family), choose_device(allow_cpu=model.allow_cpu)
    tables = {name: read_table(path) for name, path in inputs.items()}
    return TrainJob(
        model=model,
        params=params,
        family=family,
        pointer=pointer,
        source=find_source([pointer]),
        device=device,
        data=open_training_set(tables, inputs["latents"].parent, inputs["text"].parent, params),
        latent_facts=tables["latents"][1],
        lineage=make_lineage(model.family, pointer, params, inputs, tables),
        root=root,
        state=root / "runs" / train_key(params, pointer, inputs, family),
    )


def verify_project() -> list[str]:
    """`eridiff base verify`: both checks on the current folder's project, whatever `train.check_base` says.

    Raises: DataError before latents and text are cached; BaseError where a check fails or weights are missing.
    """
    model, params = load_section(ModelParams, "model"), load_section(TrainParams, "train")
    if missing := [str(path) for path in PROJECT.values() if not path.exists()]:
        raise DataError(f"{', '.join(missing)}: not there yet. Run `dvc repro latents text` first.")
    job = train_job(model, params, PROJECT, store_root())
    vae = find_source(pointers_of(model.base, ["vae"], model.family).values())
    line = check_vae(vae, job.family, job.data, job.device)
    return [line, check_denoiser(job.load(), job.data)]
