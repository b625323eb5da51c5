"""Trainings on the small bases with made-up caches: seconds, no VAE, no text encoder."""

import copy
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from eridiff.core.config import validate
from eridiff.family import Family, load_family
from eridiff.formats.safetensors import raw_tensors
from eridiff.machine.local import Checkpointing
from eridiff.models.load import load_denoiser
from eridiff.models.quantise import Storage
from eridiff.params.model import ModelParams
from eridiff.params.train import TrainParams
from eridiff.store.entries import entry_key
from eridiff.store.reader import Cache
from eridiff.store.store import Store
from eridiff.training import run as training_run
from eridiff.training.data import Batch, Sample, TrainingSet
from eridiff.training.job import TrainJob
from eridiff.training.run import Machine, Run, prepare_run
from eridiff.training.step import Example, add_gradients, draw, train_step
from eridiff.weights.pointers import ModelSource
from tests.support.bases import source

CPU = torch.device("cpu")
TOKENS = 6  # of a made-up caption


@cache
def base_denoiser(family: str) -> nn.Module:
    """The base's denoiser as it is loaded; copied by those who adapt it."""
    return load_denoiser(load_family(family), source(family), torch.float32)


def params_of(changes: dict[str, Any] | None = None) -> TrainParams:
    plain: dict[str, Any] = {
        "steps": 4,
        "batch_size": 2,
        "seed": 7,
        "precision": "fp32",
        "save_every": 2,
        "lora": {"rank": 4, "alpha": 4.0},
        "optimizer": {"lr": 1e-2},
    }
    return validate(TrainParams, {**plain, **(changes or {})}, where="test", prefix="train")


def start(
    family: str, params: TrainParams, *, activation_checkpointing: Checkpointing | None = "none", swap: int = 0
) -> Run:
    """`prepare_run`, with a copy of the loaded denoiser."""
    base = base_denoiser(family)

    def loaded(_: Family, __: ModelSource, dtype: torch.dtype, storage: Storage) -> nn.Module:
        model = copy.deepcopy(base)
        return storage.settle_all(model if dtype == torch.float32 else model.to(dtype))

    with patch.object(training_run, "load_denoiser", loaded):
        return prepare_run(
            params,
            load_family(family),
            source(family),
            source(family).config("vae"),
            Machine(
                device=CPU,
                activation_checkpointing="none" if activation_checkpointing is None else activation_checkpointing,
                swap=swap,
                fixed=activation_checkpointing is not None,
            ),
        )


def shaken(run: Run) -> Run:
    """The run with every adapter moved away from zero."""
    generator = torch.Generator().manual_seed(5)
    for tensor in run.adapters.values():
        tensor.data += 0.05 * torch.randn(tensor.shape, generator=generator)
    return run


def do_step(run: Run, batch: Batch, step: int) -> Tensor:
    """One micro-batch's forward and backward pass; the loss."""
    example = Example(batch=batch, draws=draw(run, batch, step)).to(run.device)
    return add_gradients(run, train_step(run, example.batch, example.draws))


def text_shapes(family: str) -> dict[str, tuple[int, ...]]:
    """Shapes of one caption's embeddings, as the denoiser's config asks for."""
    config = source(family).config(load_family(family).DENOISER)
    width = config.get("joint_attention_dim") or config["cross_attention_dim"]
    pooled = config.get("pooled_projection_dim")
    if pooled is None:
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    return {"prompt_embeds": (TOKENS, width), "pooled_prompt_embeds": (pooled,)}


def random_set(
    family: str, folder: Path, params: TrainParams, sizes: tuple[tuple[int, int], ...] = ((128, 128),)
) -> TrainingSet:
    """Three pictures a bucket, two captions each, random latents and embeddings."""
    channels = source(family).config("vae")["latent_channels"]
    generator = torch.Generator().manual_seed(3)
    store, texts = Store(folder / "store", "latents"), Store(folder / "store", "texts")
    samples, text_keys = [], {}

    def put(to: Store, name: str, shapes: dict[str, tuple[int, ...]], positive: str = "") -> str:
        values = {key: torch.randn(*shape, generator=generator) for key, shape in shapes.items()}
        values |= {positive: values[positive].abs() * 0.1} if positive else {}
        to.put(entry_key({"name": name}), {"name": name}, raw_tensors(values))
        return entry_key({"name": name})

    for width, height in sizes:
        for number in range(3):
            path = f"{width}x{height}-{number}.png"
            shape = (channels, height // 8, width // 8)
            captions = (f"{path} one", f"{path} two")
            samples.append(
                Sample(
                    path=path,
                    bucket=(width, height),
                    original=(2 * width + 1, height + 7),
                    crops=((number, 2 * number),),
                    repeats=1,
                    latent_keys=(put(store, path, {"mean": shape, "std": shape}, "std"),),
                    texts=captions,
                )
            )
            text_keys |= {text: put(texts, text, text_shapes(family)) for text in captions}
    text_keys[""] = put(texts, "", text_shapes(family))
    store.publish([key for sample in samples for key in sample.latent_keys], folder / "latents")
    texts.publish(text_keys.values(), folder / "text")
    caches = Cache(folder / "latents"), Cache(folder / "text")
    return TrainingSet(samples, text_keys, *caches, params.seed, params.caption_dropout)


def make_job(
    family: str, folder: Path, params: TrainParams, sizes: tuple[tuple[int, int], ...] = ((128, 128),)
) -> TrainJob:
    """The stage's job on `random_set`, with its store in the folder."""
    return TrainJob(
        model=ModelParams(family=family, base=f"tiny-{family}", allow_cpu=True),
        params=params,
        family=load_family(family),
        pointer=source(family).pointers["denoiser"],
        source=source(family),
        device=CPU,
        data=random_set(family, folder, params, sizes),
        latent_facts=source(family).config("vae"),
        lineage={"family": family},
        root=folder / "store",
        state=folder / "store" / "runs" / "key",
    )
