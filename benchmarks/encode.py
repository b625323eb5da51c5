"""The caching stages at full size, against the loop that training scripts run: pictures and prompts a second.

    python -m benchmarks.encode [--tiny] [--seconds 300] [--pictures 384] [--prompts 512]

Run from the checkout's root. Models have their published configs and random weights. Pictures are JPEG files of two
megapixels, written first, cut to 1024 x 1024. The stages' own code reads, encodes, stores and publishes them. Columns:

    device      the encoder alone, on a batch that lies on the device: the ceiling
    pipeline    decode, resize, upload, encode, download, store, overlapped
    end to end  the whole stage from an empty store: first reading of all pictures, pipeline, shards
    naive       decode, resize, encode, torch.save of a file each, one after the other in one process

Prints one table in Markdown; also writes it to $OUT/encode.md where OUT is set. A row that fails says why, and the
others go on; rows that would begin after --seconds are left out, by name. --tiny: small models on the CPU, a test of
this script and no measurement.
"""

import argparse
import gc
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from eridiff.encodepipe import reader_threads
from eridiff.errors import quiet_libraries
from eridiff.families import TextEncoders, load_family
from eridiff.files import digest_file
from eridiff.latentcache import cache_latents, encode_batches
from eridiff.latents import LatentParams, batch_by_bucket, plan_samples
from eridiff.precision import DTYPES, use_tf32
from eridiff.store import PixelDigests, Store
from eridiff.texts import TextParams, batch_by_length, cache_texts, plan_captions, prepare_encoders
from eridiff.texts import encode_batches as encode_captions
from eridiff.vae import encode, prepare_vae

BASES = Path(__file__).parent.parent / "data" / "bases"
COLUMNS = ("device", "pipeline", "end to end", "naive", "peak GiB", "compiling s")
VAE = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32,
    "block_out_channels": (128, 256, 512, 512), "sample_size": 1024,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
VAES = {
    "4 channels": VAE,
    "16 channels": {**VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
}
SMALL_VAE = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
T5_XXL = {
    "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24, "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 32,
}  # fmt: skip
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_L |= {"projection_dim": 768, "vocab_size": 49408}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
CLIP_G |= {"projection_dim": 1280, "vocab_size": 49408, "hidden_act": "gelu"}
SMALL_T5 = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2}
SMALL_CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@dataclass
class Bench:
    """Where and how large; the rows so far."""

    folder: Path
    device: torch.device
    tiny: bool
    pictures: int
    prompts: int
    deadline: float
    rows: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    @property
    def side(self) -> int:
        """Side of the crops in pixels."""
        return 64 if self.tiny else 1024

    def row(self, name: str, measure: Callable[[dict[str, str]], None]) -> None:
        """Measure one row; whatever fails is written into the table, since the others still count."""
        found: dict[str, str] = {}
        self.rows.append((name, found))
        if time.monotonic() > self.deadline:
            found["device"] = "left out: no time"
            return
        start = time.monotonic()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            measure(found)
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {error}".replace("\n", " ").replace("|", "/")[:300]
        if self.device.type == "cuda":
            found["peak GiB"] = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}"
        torch._dynamo.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        print(f"{name}: {found} ({time.monotonic() - start:.1f} s)", flush=True)

    def table(self) -> str:
        """All rows in Markdown."""
        lines = [f"| {' | '.join(('', *COLUMNS))} |", f"|{'---|' * (len(COLUMNS) + 1)}"]
        for name, found in self.rows:
            lines.append(f"| {' | '.join((name, *(found.get(column, '') for column in COLUMNS)))} |")
            lines += [f"| {name}: **{found['error']}** |{' |' * len(COLUMNS)}"] if "error" in found else []
        return "\n".join(lines)


@contextmanager
def timed(device: torch.device, count: int, found: dict[str, str], column: str) -> Iterator[None]:
    """Write the rate of `count` things into a column, the device's work included."""
    start = time.monotonic()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize()
    found[column] = f"{count / (time.monotonic() - start):.1f}"


def fresh(bench: Bench, name: str) -> Path:
    """An empty folder."""
    folder = bench.folder / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


# Pictures


def write_pictures(bench: Bench) -> list[dict[str, Any]]:
    """JPEG files of two megapixels (shapes, gradients, grain), all different; rows of buckets.parquet for them."""
    width, height = (96, 80) if bench.tiny else (1760, 1200)
    side = bench.side
    resize = (round(width * side / height), side)
    folder = fresh(bench, "raw")
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    shapes = np.stack([np.sin(x / 97) + np.cos(y / 61), np.sin((x + y) / 143), np.cos(x / 40) * np.sin(y / 200)], -1)
    grain = np.random.default_rng(0).normal(0, 9, (height, width, 3)).astype(np.float32)

    def write(number: int) -> dict[str, Any]:
        pixels = 128 + 60 * np.roll(shapes, 37 * number, axis=1) + np.roll(grain, number, axis=0)
        path = folder / f"{number:05d}.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=92)
        row: dict[str, Any] = {"path": path.name, "file_digest": digest_file(path), "repeats": 1}
        row |= {"bucket_w": side, "bucket_h": side, "resize_w": resize[0], "resize_h": resize[1]}
        row |= {"crop_left": (resize[0] - side) // 2, "crop_top": 0}
        return row | {"original_w": width, "original_h": height}

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(write, range(bench.pictures)))


def make_vae(bench: Bench, channels: str, dtype: torch.dtype) -> Any:
    """An AutoencoderKL with random weights on the device."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    config = {**VAES[channels], **(SMALL_VAE if bench.tiny else {})}
    with torch.device(bench.device):
        return AutoencoderKL(**config).to(dtype).eval().requires_grad_(False)


def measure_vae(
    bench: Bench, rows: list[dict[str, Any]], channels: str, params: LatentParams, naive: bool
) -> Callable[[dict[str, str]], None]:
    """One row of the table: a VAE under some params."""

    def measure(found: dict[str, str]) -> None:
        vae, root = make_vae(bench, channels, DTYPES[params.dtype]), fresh(bench, "store")
        identity = {"content": "c" * 64, "config": "d" * 64}
        raw = bench.folder / "raw"
        pixels = torch.rand(params.batch_size, 3, bench.side, bench.side, device=bench.device) * 2 - 1
        began = time.monotonic()
        vae = prepare_vae(vae, params, bench.device)
        for _ in range(2):
            encode(vae, pixels, params)["mean"].sum().item()
        if params.compile:
            found["compiling s"] = f"{time.monotonic() - began:.0f}"
        repeats = max(1, len(rows) // params.batch_size // 2)
        with timed(bench.device, repeats * params.batch_size, found, "device"):
            for _ in range(repeats):
                encode(vae, pixels, params)
        with timed(bench.device, len(rows), found, "end to end"):
            samples = plan_samples(rows, params, identity, 1, 8, raw, PixelDigests(root))
            store = Store(root, "latents")
            batches = list(batch_by_bucket(samples, params.batch_size))
            with timed(bench.device, len(rows), found, "pipeline"):
                encode_batches(batches, store, params, vae, bench.device, raw)
            _, counts = cache_latents(samples, params, nothing_to_load, root, list, raw, bench.folder / "out")
        assert (counts.samples, counts.encoded) == (len(rows), 0)
        if naive:
            few = rows[: max(4, len(rows) // 4)]
            with timed(bench.device, len(few), found, "naive"):
                naive_latents(bench, vae, few, params)

    return measure


def nothing_to_load() -> Any:
    """In place of a model's loader where all is encoded already."""
    raise AssertionError("the pipeline has left something")


def naive_latents(bench: Bench, vae: Any, rows: list[dict[str, Any]], params: LatentParams) -> None:
    """The scripts' loop: one picture after the other through one process, a file each."""
    folder = fresh(bench, "naive")
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


def make_encoders(bench: Bench, kind: str) -> tuple[Any, TextEncoders]:
    """A family and its text encoders with random bf16 weights on the device, tokenizers from the small bases."""
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        T5Config,
        T5EncoderModel,
        T5TokenizerFast,
    )

    small_t5, small_clip = (SMALL_T5, SMALL_CLIP) if bench.tiny else ({}, {})
    clip_l = CLIPTextConfig(**{**CLIP_L, **small_clip})
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(bench.device):
            if kind == "t5":
                family, base = load_family("flux"), BASES / "tiny-flux"
                second: Any = T5EncoderModel(T5Config(**{**T5_XXL, **small_t5}))
                tokenizer: Any = T5TokenizerFast
            else:
                family, base = load_family("sdxl"), BASES / "tiny-sdxl"
                second = CLIPTextModelWithProjection(CLIPTextConfig(**{**CLIP_G, **small_clip}))
                tokenizer = CLIPTokenizer
            first = CLIPTextModel(clip_l)
    finally:
        torch.set_default_dtype(torch.float32)
    models = {"text_encoder": first, "text_encoder_2": second}
    kinds = {"tokenizer": CLIPTokenizer, "tokenizer_2": tokenizer}
    return family, TextEncoders(
        tokenizers={name: one.from_pretrained(base / name, local_files_only=True) for name, one in kinds.items()},
        encoders={name: model.eval().requires_grad_(False) for name, model in models.items()},
    )


def make_prompts(count: int) -> list[str]:
    """Different captions of 20 to 80 words."""
    text = "red fox jumps over lazy dog near old river under bright morning sky with soft light and long"
    words = text.split()
    return [
        f"{number} " + " ".join(words[(number * 7 + place * place) % len(words)] for place in range(20 + number % 60))
        for number in range(count)
    ]


def measure_text(
    bench: Bench, kind: str, params: TextParams, count: int, naive: bool
) -> Callable[[dict[str, str]], None]:
    """One row of the table: text encoders under some params."""

    def measure(found: dict[str, str]) -> None:
        family, encoders = make_encoders(bench, kind)
        root, texts = fresh(bench, "store"), make_prompts(count)
        plan = plan_captions([{"variants": texts}], params, family, {"text_encoder": {"content": "c", "config": "d"}})
        tokens = family.MAX_TOKENS[0] if params.max_tokens is None else params.max_tokens
        began = time.monotonic()
        prepare_encoders(encoders, params, bench.device)
        batch = texts[: params.batch_size] + [""] * (params.batch_size - len(texts))
        with torch.inference_mode():
            for _ in range(2):
                family.encode_text(encoders, batch, tokens)["prompt_embeds"].sum().item()
            if params.compile:
                found["compiling s"] = f"{time.monotonic() - began:.0f}"
            repeats = max(1, count // params.batch_size // 2)
            with timed(bench.device, repeats * params.batch_size, found, "device"):
                for _ in range(repeats):
                    family.encode_text(encoders, batch, tokens)
        with timed(bench.device, len(plan), found, "end to end"):
            with timed(bench.device, len(plan), found, "pipeline"):
                batches = batch_by_length(plan, params.batch_size)
                encode_captions(batches, Store(root, "texts"), params, family, encoders, bench.device)
            _, counts = cache_texts(plan, params, family, nothing_to_load, root, list, bench.folder / "out")
        assert (counts.samples, counts.encoded) == (len(plan), 0)
        if naive:
            few = texts[: max(4, count // 8)]
            with timed(bench.device, len(few), found, "naive"):
                naive_texts(bench, family, encoders, few, tokens)

    return measure


def naive_texts(bench: Bench, family: Any, encoders: TextEncoders, texts: list[str], tokens: int) -> None:
    """The scripts' loop: one caption after the other, a file each."""
    folder = fresh(bench, "naive")
    for number, text in enumerate(texts):
        with torch.inference_mode():
            embeddings = family.encode_text(encoders, [text], tokens)
        torch.save({name: tensor.cpu() for name, tensor in embeddings.items()}, folder / f"{number}.pt")


def run(bench: Bench) -> None:
    """All rows, what matters most first."""
    rows = write_pictures(bench)
    print(f"{len(rows)} pictures written, {rows[0]['original_w']} x {rows[0]['original_h']}", flush=True)
    exact, fast = {"dtype": "fp32"}, {"dtype": "bf16"}
    compiled = {**fast, "channels_last": True, "compile": True}
    size = 2 if bench.tiny else 8
    third = max(size, bench.pictures // 3)
    plan: list[tuple[str, str, dict[str, Any], int, bool]] = [
        ("bf16, channels_last, compiled", "4 channels", compiled, bench.pictures, False),
        ("fp32 + TF32", "4 channels", {**exact, "tf32": True}, third * 2, True),
        ("bf16", "4 channels", fast, third * 2, True),
        ("fp32", "4 channels", exact, max(size, third // 2), True),
        ("bf16, channels_last, compiled", "16 channels", compiled, bench.pictures, False),
        ("fp32 + TF32", "16 channels", {**exact, "tf32": True}, third, False),
    ]
    length = 512
    texts: list[tuple[str, str, dict[str, Any], int, bool]] = [
        ("T5-XXL 512 tokens, bf16, compiled", "t5", {"compile": True, "max_tokens": length}, bench.prompts, False),
        ("T5-XXL 512 tokens, bf16", "t5", {"max_tokens": length}, bench.prompts // 2, True),
        ("CLIP-L + OpenCLIP-G, bf16", "clip", {}, 4 * bench.prompts, True),
    ]
    for name, channels, values, count, naive in plan:
        params = LatentParams(batch_size=size, **values)
        bench.row(f"VAE {channels}, {name}", measure_vae(bench, rows[:count], channels, params, naive))
        if name.startswith("bf16, ch") and channels == "4 channels":  # the other goal, before time runs out
            measure_texts(bench, texts[:1])
    measure_texts(bench, texts[1:])


def measure_texts(bench: Bench, texts: list[tuple[str, str, dict[str, Any], int, bool]]) -> None:
    """Rows of text encoders."""
    for name, kind, values, count, naive in texts:
        params = TextParams(dtype="bf16", batch_size=4 if bench.tiny else 32, **values)
        bench.row(name, measure_text(bench, kind, params, count, naive))


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=300.0, help="begin no row after this")
    parser.add_argument("--pictures", type=int)
    parser.add_argument("--prompts", type=int)
    given = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    quiet_libraries()
    device = torch.device("cpu" if given.tiny or not torch.cuda.is_available() else "cuda")
    with tempfile.TemporaryDirectory(prefix="eridiff-bench-") as folder:
        bench = Bench(
            folder=Path(folder),
            device=device,
            tiny=given.tiny,
            pictures=given.pictures or (6 if given.tiny else 384),
            prompts=given.prompts or (10 if given.tiny else 512),
            deadline=time.monotonic() + given.seconds,
        )
        try:
            run(bench)
        finally:
            name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU"
            head = f"{name}, torch {torch.__version__}, {reader_threads(device)} reading threads; things a second"
            text = f"{head}\n\n{bench.table()}\n"
            print(f"\n{text}", flush=True)
            if "OUT" in os.environ:
                (Path(os.environ["OUT"]) / "encode.md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
