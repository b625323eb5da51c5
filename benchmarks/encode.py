"""The caching stages at full size, against the loop that training scripts run: pictures and prompts a second.

    python -m benchmarks.encode [--tiny] [--seconds 200] [--pictures 384] [--prompts 512] [--out DIR] [--folder DIR]

Run from the checkout's root. Models have their published configs and random weights. Pictures are JPEG files of two
megapixels, written first, cut to 1024 x 1024. The stages' own code reads, encodes, stores and publishes them. Columns:

    device      the encoder alone, on a batch that lies on the device: the ceiling
    pipeline    decode, resize, upload, encode, download, store, overlapped
    end to end  the whole stage from an empty store: digests of all pictures, pipeline, shards
    plain loop  decode, resize, encode, torch.save of a file each, one after the other in one process, not compiled

Prints one table; with --out writes encode.md and encode.json there. A row that fails says why, and the others go on;
rows that would begin after --seconds are left out, by name. --tiny: small models on the CPU, a test of this script and
no measurement. --folder: where pictures and stores lie for the time (default: the temporary folder).
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.benchtable import Bench
from benchmarks.encoderows import measure_sizes, measure_text, measure_vae
from benchmarks.fullsize import write_pictures
from benchmarks.vaeparts import measure_parts
from eridiff.errors import quiet_libraries
from eridiff.params_latents import LatentParams
from eridiff.params_text import TextParams

COLUMNS = ("device", "pipeline", "end to end", "plain loop", "x plain", "peak GiB", "compiling s", "row s")
FAST = {"dtype": "bf16", "channels_last": True, "compile": True}


def run(bench: Bench) -> None:
    """All rows, what matters most first."""
    began = time.monotonic()
    pictures = write_pictures(bench)
    size = f"{pictures[0]['original_w']} x {pictures[0]['original_h']}"
    print(f"{len(pictures)} pictures of {size} written in {time.monotonic() - began:.1f} s", flush=True)
    half = max(8, bench.pictures // 2)
    vae_row(bench, pictures, 4, "bf16, channels_last, compiled, batches of 16", FAST | {"batch_size": 16})
    vae_row(bench, pictures, 4, "bf16, channels_last, compiled", FAST)
    text_row(bench, "T5-XXL 512 tokens, bf16, compiled", "t5", {"compile": True, "max_tokens": 512}, bench.prompts)
    bench.row("parts of a VAE, bf16, channels_last", measure_parts(bench))
    vae_row(bench, pictures[:half], 4, "fp32 + TF32", {"dtype": "fp32", "tf32": True})
    vae_row(bench, pictures[:half], 4, "bf16", {"dtype": "bf16"})
    vae_row(bench, pictures, 16, "bf16, channels_last, compiled", FAST)
    vae_row(bench, pictures[: half // 4], 4, "fp32", {"dtype": "fp32"})
    text_row(bench, "CLIP-L + OpenCLIP-G, bf16", "clip", {}, 2 * bench.prompts)
    text_row(bench, "T5-XXL 512 tokens, bf16", "t5", {"max_tokens": 512}, bench.prompts // 2)
    sizes = (1, 2) if bench.tiny else (1, 2, 4, 8, 16)
    for name, more in (("", {}), (", channels_last", {"channels_last": True})):
        bench.row(f"VAE 4 channels, bf16{name}, by batch", measure_sizes(bench, 4, sizes, dtype="bf16", **more))
    vae_row(bench, pictures[:half], 16, "fp32 + TF32", {"dtype": "fp32", "tf32": True})


def vae_row(bench: Bench, pictures: list[dict[str, Any]], channels: int, name: str, values: dict[str, Any]) -> None:
    """One row of a VAE."""
    params = LatentParams(**{"batch_size": 8, **values, **({"batch_size": 2} if bench.tiny else {})})
    bench.row(f"VAE {channels} channels, {name}", measure_vae(bench, pictures, channels, params))


def text_row(bench: Bench, name: str, kind: str, values: dict[str, Any], count: int) -> None:
    """One row of text encoders."""
    params = TextParams(dtype="bf16", batch_size=4 if bench.tiny else 32, **values)
    bench.row(name, measure_text(bench, kind, params, count))


def options(doc: str | None, *, seconds: float) -> argparse.ArgumentParser:
    """The options of both benchmarks of encoders."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=seconds, help="begin no row after this")
    parser.add_argument("--pictures", type=int)
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", type=Path)
    return parser


def prepare(given: argparse.Namespace, folder: Path, device: torch.device) -> Bench:
    """The benchmark that the options ask for."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    quiet_libraries()
    return Bench(
        folder=folder,
        device=device,
        tiny=given.tiny,
        pictures=given.pictures or (8 if given.tiny else 384),
        prompts=given.prompts or (10 if given.tiny else 512),
        deadline=time.monotonic() + given.seconds,
    )


def main() -> None:
    """Measure, print and write the table."""
    given = options(__doc__, seconds=200.0).parse_args()
    device = torch.device("cpu" if given.tiny or not torch.cuda.is_available() else "cuda")
    with tempfile.TemporaryDirectory(prefix="eridiff-bench-", dir=given.folder) as folder:
        bench = prepare(given, Path(folder), device)
        try:
            run(bench)
        finally:
            bench.write("encode", COLUMNS, given.out)


if __name__ == "__main__":
    main()
