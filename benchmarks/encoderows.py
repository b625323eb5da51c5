"""One row each of benchmarks/encode.py: a VAE or text encoders under some params, and the loop of training scripts."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.benchtable import Bench, Row, fresh, rate, synchronize
from benchmarks.fullsize import make_encoders, make_prompts, make_vae
from eridiff.caching.fill import Resources
from eridiff.caching.latents.encode import BatchEncoder, PictureReader, cache_latents, encode_batches
from eridiff.caching.latents.new_pictures import NewPictures
from eridiff.caching.latents.plan import batch_by_bucket, common_key_fields, plan_samples
from eridiff.caching.latents.samples import Samples
from eridiff.caching.latents.vae import encode, prepare_vae
from eridiff.caching.pipeline import entry_writer
from eridiff.caching.text import Caption, CaptionEncoder, batch_by_key, cache_texts, plan_captions, prepare_encoders
from eridiff.caching.text import encode_batches as encode_captions
from eridiff.family import TextEncoders
from eridiff.models.precision import DTYPES, use_tf32
from eridiff.params.latents import LatentParams
from eridiff.params.text import TextParams
from eridiff.store.pixels import PixelDigests
from eridiff.store.store import Store

IDENTITY = {"content": "c" * 64, "config": "d" * 64}
Measure = Callable[[Row], None]


def nothing_to_load() -> Any:
    """In place of a model's loader where all is encoded already."""
    raise AssertionError("the pipeline has left something")


# Pictures


def measure_vae(bench: Bench, rows: list[dict[str, Any]], channels: int, params: LatentParams) -> Measure:
    """The stage on a VAE: its encoder alone, the pipeline, all of the stage; before them the plain loop."""

    def measure(found: Row) -> None:
        vae, root = make_vae(bench, channels, DTYPES[params.dtype]), fresh(bench, "store")
        few = rows[: min(96, max(4, len(rows) // 6))]
        plain_latents(bench, vae, few[:1], params)
        with rate(bench, len(few), found, "plain loop"):
            plain_latents(bench, vae, few, params)
        vae = warm_vae(bench, vae, params, found)
        raw, out = bench.folder / "raw", bench.folder / "out"
        batches = batch_by_bucket(plan_pictures(bench, rows, params, root), params.batch_size)
        store = Store(root, "latents")
        writer = entry_writer(bench.device, params.batch_size)
        with rate(bench, len(rows), found, "pipeline"), writer:
            encoder = BatchEncoder(store, params, vae, bench.device, writer)
            encode_batches(batches, encoder, PictureReader(params, raw))
        root = fresh(bench, "store")
        with rate(bench, len(rows), found, "end to end"):
            pixels = PixelDigests(root, {row["file_digest"] for row in rows})
            new, common = NewPictures(rows, params, 8, raw, pixels), common_key_fields(params, IDENTITY, 1)
            work = new.encode(common, Resources(root=root, load=lambda: (vae, bench.device)))
            samples = plan_pictures(bench, rows, params, root)
            _, counts = cache_latents(samples, params, raw, Resources(root=root, load=nothing_to_load), out)
        assert (counts.samples, counts.after(work).encoded) == (len(rows), len(rows))
        found["x plain"] = float(found["end to end"]) / float(found["plain loop"])

    return measure


def plan_pictures(bench: Bench, rows: list[dict[str, Any]], params: LatentParams, root: Any) -> Samples:
    """The samples; a picture whose pixels the store does not remember is read."""
    return plan_samples(
        rows, params, common_key_fields(params, IDENTITY, 1), 8, bench.folder / "raw", PixelDigests(root)
    )


def warm_vae(bench: Bench, vae: Any, params: LatentParams, found: Row) -> Any:
    """The VAE as the stage prepares it, compiled and warm; the rate of its encoder alone, on a batch on the device."""
    pixels = torch.rand(params.batch_size, 3, bench.side, bench.side, device=bench.device) * 2 - 1
    began = time.monotonic()
    vae = prepare_vae(vae, params, bench.device)
    for _ in range(2):
        encode(vae, pixels, params)["mean"].sum().item()
    if params.compile:
        found["compiling s"] = time.monotonic() - began
    repeats = 2 if bench.tiny else max(3, 64 // params.batch_size)
    with rate(bench, repeats * params.batch_size, found, "device"):
        for _ in range(repeats):
            encode(vae, pixels, params)
    return vae


def measure_sizes(bench: Bench, channels: int, sizes: Sequence[int], **values: Any) -> Measure:
    """The encoder alone at several batch sizes, without compiling."""

    def measure(found: Row) -> None:
        params = LatentParams(**values)
        vae = make_vae(bench, channels, DTYPES[params.dtype])
        rates = []
        for size in sizes:
            one: Row = {}
            warm_vae(bench, vae, params.model_copy(update={"batch_size": size}), one)
            rates.append(f"b{size} {float(one['device']):.1f}")
        found["device"] = ", ".join(rates)

    return measure


def plain_latents(bench: Bench, vae: Any, rows: list[dict[str, Any]], params: LatentParams) -> None:
    """The scripts' loop: one picture after the other through one process, a file each."""
    folder = fresh(bench, "plain")
    use_tf32(params.tf32)
    for row in rows:
        image = Image.open(bench.folder / "raw" / row["path"]).convert("RGB")
        image = image.resize((row["resize_w"], row["resize_h"]), Image.Resampling.LANCZOS)
        left = row["crop_left"]
        pixels = np.asarray(image.crop((left, 0, left + bench.side, bench.side)), dtype=np.float32)
        tensor = torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None].to(bench.device, DTYPES[params.dtype])
        with torch.inference_mode():
            posterior = vae.encode(tensor).latent_dist
        torch.save({"mean": posterior.mean.cpu(), "std": posterior.std.cpu()}, folder / f"{row['path']}.pt")


# Captions


def measure_text(bench: Bench, kind: str, params: TextParams, count: int) -> Measure:
    """The stage on text encoders: the encoders alone, the pipeline, all of the stage; before them the plain loop."""

    def measure(found: Row) -> None:
        family, encoders = make_encoders(bench, kind)
        plan = plan_prompts(params, family, count)
        tokens, few = tokens_of(params, family), [caption.text for caption in plan[:: max(1, count // 48)]]
        plain_texts(bench, family, encoders, few[:1], tokens)
        with rate(bench, len(few), found, "plain loop"):
            plain_texts(bench, family, encoders, few, tokens)
        warm_encoders(bench, family, encoders, params, found)
        root, batches = fresh(bench, "store"), batch_by_key(plan, params.batch_size)
        writer = entry_writer(bench.device, params.batch_size)
        given = Store(root, "texts"), params, family, encoders, bench.device, writer
        with rate(bench, len(plan), found, "pipeline"), writer:
            encode_captions(batches, CaptionEncoder(*given))
        root, out = fresh(bench, "store"), bench.folder / "out"
        with rate(bench, len(plan), found, "end to end"):
            resources = Resources(root=root, load=lambda: (encoders, bench.device))
            _, counts = cache_texts(plan, params, family, resources, out)
        assert (counts.samples, counts.encoded) == (len(plan), len(plan))
        found["x plain"] = float(found["end to end"]) / float(found["plain loop"])

    return measure


def plan_prompts(params: TextParams, family: Any, count: int) -> list[Caption]:
    """Captions to encode, the empty one among them."""
    return plan_captions([{"variants": make_prompts(count - 1)}], params, family, {"text_encoder": IDENTITY})


def tokens_of(params: TextParams, family: Any) -> int:
    """The token limit."""
    return int(family.MAX_TOKENS[0] if params.max_tokens is None else params.max_tokens)


def warm_encoders(bench: Bench, family: Any, encoders: TextEncoders, params: TextParams, found: Row) -> None:
    """Text encoders as the stage prepares them, compiled and warm; their rate alone, tokens included."""
    texts = make_prompts(params.batch_size)
    began = time.monotonic()
    prepare_encoders(encoders, params, bench.device)
    with torch.inference_mode():
        for _ in range(2):
            family.encode_text(encoders, texts, tokens_of(params, family))["prompt_embeds"].sum().item()
        if params.compile:
            found["compiling s"] = time.monotonic() - began
        synchronize(bench)
        repeats = 2 if bench.tiny else max(3, 128 // params.batch_size)
        with rate(bench, repeats * params.batch_size, found, "device"):
            for _ in range(repeats):
                family.encode_text(encoders, texts, tokens_of(params, family))


def plain_texts(bench: Bench, family: Any, encoders: TextEncoders, texts: Sequence[str], tokens: int) -> None:
    """The scripts' loop: one caption after the other, a file each."""
    folder = fresh(bench, "plain")
    for number, text in enumerate(texts):
        with torch.inference_mode():
            embeddings = family.encode_text(encoders, [text], tokens)
        torch.save({name: tensor.cpu() for name, tensor in embeddings.items()}, folder / f"{number}.pt")
