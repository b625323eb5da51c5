"""The caching stages on several GPUs of one machine, against one of them in the same run.

    torchrun --nproc-per-node 2 -m benchmarks.encode_ranks --folder DIR [--tiny] [--seconds 75] [--out DIR]

DIR is an empty folder that all processes see. Each process loads its encoder and warms it; process 0 then encodes alone
from an empty store, and again together with the others, by the code with which the stages share their work. Columns:

    one         the stage on process 0 alone, things a second, reading and shards included
    all         the same shared among all processes
    scaling     all : one
    share       how many of the things the other processes encoded
"""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.benchtable import Bench, Row, rate
from benchmarks.encode import options, prepare
from benchmarks.encoderows import IDENTITY, plan_prompts, warm_encoders, warm_vae
from benchmarks.fullsize import make_encoders, make_vae, write_pictures
from eridiff.caching.fill import Resources
from eridiff.caching.latents.encode import cache_latents, help_latents
from eridiff.caching.latents.new_pictures import NewPictures
from eridiff.caching.latents.plan import common_key_fields, plan_samples
from eridiff.caching.processes import Ranks, find_ranks
from eridiff.caching.text import cache_texts, help_texts
from eridiff.models.precision import DTYPES
from eridiff.params.latents import LatentParams
from eridiff.params.text import TextParams
from eridiff.store.pixels import PixelDigests

COLUMNS = ("one", "all", "scaling", "share", "row s")
Encode = Callable[[Path, Ranks], int]  # into a store, as one of some processes; how many were encoded


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """The processes of this run, which wait for each other by files in one folder."""

    ranks: Ranks
    folder: Path

    def ranks_of(self, name: str) -> Ranks:
        """The same processes with a plan of their own for one measurement."""
        return Ranks(module=name, index=self.ranks.index, size=self.ranks.size, launch=self.ranks.launch)

    def agree(self, name: str, yes: bool) -> bool:
        """What process 0 says."""
        if yes and not self.ranks.index:
            (self.folder / f"{name}.yes").touch()
        self.meet(name)
        return (self.folder / f"{name}.yes").exists()

    def meet(self, name: str, seconds: float = 100.0) -> None:
        """Wait until all processes have come to this point."""
        (self.folder / f"{name}.{self.ranks.index}").touch()
        end = time.monotonic() + seconds
        while not all((self.folder / f"{name}.{index}").exists() for index in range(self.ranks.size)):
            if time.monotonic() > end:
                raise TimeoutError(f"not all processes came to {name}")
            time.sleep(0.02)


def measure(bench: Bench, meeting: Meeting, name: str, count: int, make: Callable[[], Encode]) -> Callable[[Row], None]:
    """One row: make() loads and warms an encoder and gives what encodes `count` things into a store."""
    alone, together = meeting.folder / f"{name}-one", meeting.folder / f"{name}-all"

    def measured(found: Row) -> None:
        encode = make()
        meeting.meet(f"{name}-warm")
        if not meeting.ranks.index:
            with rate(bench, count, found, "one"):
                encode(alone, Ranks())
            shutil.rmtree(alone)
        meeting.meet(f"{name}-alone")
        with rate(bench, count, found, "all"):
            encoded = encode(together, meeting.ranks_of(name))
        if meeting.ranks.index:
            (meeting.folder / f"{name}-share.{meeting.ranks.index}.txt").write_text(str(encoded))
        meeting.meet(f"{name}-done")
        if not meeting.ranks.index:
            shares = [int(path.read_text()) for path in meeting.folder.glob(f"{name}-share.*.txt")]
            found["scaling"] = float(found["all"]) / float(found["one"])
            found["share"] = sum(shares) / count
            shutil.rmtree(together)

    return measured


def vae_encode(bench: Bench, rows: list[dict[str, Any]], values: dict[str, Any]) -> Encode:
    """Loads a VAE of 4 channels; what reads and encodes all pictures, which the store never saw."""
    params = LatentParams(**{"batch_size": 8, **values, **({"batch_size": 2} if bench.tiny else {})})
    vae = warm_vae(bench, make_vae(bench, 4, DTYPES[params.dtype]), params, {})
    raw, out = bench.folder / "raw", bench.folder / "latents"

    def encode(root: Path, ranks: Ranks) -> int:
        resources = Resources(root=root, load=lambda: (vae, bench.device), ranks=ranks)
        with ranks:
            pixels = PixelDigests(root, {row["file_digest"] for row in rows})
            new, common = NewPictures(rows, params, 8, raw, pixels), common_key_fields(params, IDENTITY, 1)
            work = new.encode(common, resources)
            ranks.wait_for(ranks.plan_path)
            pixels.look_again()
            samples = plan_samples(rows, params, common, 8, raw, pixels)
            if ranks.index:
                return work.encoded + help_latents(samples, params, raw, resources)
            return cache_latents(samples, params, raw, resources, out)[1].after(work).encoded

    return encode


def text_encode(bench: Bench, values: dict[str, Any]) -> Encode:
    """Loads CLIP-L and T5-XXL; what encodes all prompts."""
    params = TextParams(dtype="bf16", batch_size=4 if bench.tiny else 32, **values)
    family, encoders = make_encoders(bench, "t5")
    warm_encoders(bench, family, encoders, params, {})
    captions = plan_prompts(params, family, bench.prompts)

    def encode(root: Path, ranks: Ranks) -> int:
        resources = Resources(root=root, load=lambda: (encoders, bench.device), ranks=ranks)
        if ranks.index:
            return help_texts(captions, params, family, resources)
        return cache_texts(captions, params, family, resources, bench.folder / "text")[1].encoded

    return encode


def run(bench: Bench, meeting: Meeting) -> None:
    """All rows: each process measures the same ones."""
    rows = write_pictures(bench)
    fast = {"dtype": "bf16", "channels_last": True, "compile": True, "batch_size": 16}

    plan: list[tuple[str, int, Callable[[], Encode]]] = [
        ("VAE 4 channels, bf16, channels_last, compiled", len(rows), lambda: vae_encode(bench, rows, fast)),
        ("T5-XXL 512 tokens, bf16", bench.prompts, lambda: text_encode(bench, {"max_tokens": 512})),
        ("VAE 4 channels, bf16", len(rows), lambda: vae_encode(bench, rows, {"dtype": "bf16"})),
    ]
    for number, (name, count, make) in enumerate(plan):
        if not meeting.agree(f"row-{number}", time.monotonic() < bench.deadline):
            bench.deadline = 0.0  # for all processes
        bench.row(name, measure(bench, meeting, f"measured-{number}", count, make))


def main() -> None:
    """Measure in every process; process 0 prints and writes the table."""
    given = options(__doc__, seconds=75.0).parse_args()
    ranks = find_ranks("benchmarks.encode_ranks", 1)
    if given.folder is None or ranks.size < 2:
        raise SystemExit("start this with torchrun, --nproc-per-node 2 or more, and name an empty folder with --folder")
    device = torch.device("cpu")
    if not given.tiny and torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    folder = given.folder / f"process-{ranks.index}"
    folder.mkdir(parents=True)
    bench = prepare(given, folder, device)
    try:
        run(bench, Meeting(ranks=ranks, folder=given.folder))
    finally:
        if not ranks.index:
            bench.write("encode_ranks", COLUMNS, given.out)


if __name__ == "__main__":
    main()
