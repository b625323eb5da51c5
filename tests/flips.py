"""Flips bits in every kind of file that eridiff writes and reads again, as a disk does: none may be used.

`python -m tests.flips --flips 500 --seed 1` in the checkout; tests/robustness/test_flips.py has a short round. A flip
is one bit, anywhere in a file, one in four in the mark of its checksum; size, times and inode stay. What this machine
remembers of files that it has read is left aside (`check_days: 0`): a flip under it is found when that time is over.
What comes of a flip:

- found: an error that names the file, or the file is put aside, or made again from what is sound
- harmless: what is read is the same
- used: what is read is another, or the reader ends in an error of another kind
"""

import io
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from eridiff.bases.find import find_component
from eridiff.bases.pointer_files import read_pointer, write_pointer
from eridiff.caching.drift_records import DriftRecords, Encoder
from eridiff.core.errors import EridiffError
from eridiff.core.files import digest_file
from eridiff.formats.safetensors import RawTensor, digest_tensors, write_tensors
from eridiff.formats.seals import MARK
from eridiff.formats.tables import read_table, write_table
from eridiff.machine.filedigests import FileDigests
from eridiff.models.lora import read_checkpoint, save_checkpoint
from eridiff.models.quantised_cache import open_sound
from eridiff.params.train import LoraParams
from eridiff.store.catalogue import read_store
from eridiff.store.pins import pin, read_pins
from eridiff.store.pixels import PixelDigests
from eridiff.store.reader import Cache
from eridiff.store.store import Store
from eridiff.store.verify import verify
from eridiff.training.resume import load_adapters, load_state, save_adapters, save_state
from tests.support.checkouts import SMALL
from tests.support.entries import ENTRIES, KEYS, filled

COLUMNS = {"path": "str", "key": "str", "width": "int"}
ROWS = [{"path": f"cactus-{n}.png", "key": f"{n:064x}", "width": 64 * n} for n in range(40)]
TENSORS = {"a.lora_A.weight": torch.arange(32.0).reshape(4, 8), "a.lora_B.weight": torch.ones(8, 4)}
RAW = {"blocks.0.weight": RawTensor("U8", (64,), bytes(range(64)))}
ENCODER = Encoder(stage="latents", name="the VAE", identity={"vae": "a"}, precision="fp32")
VALUES, VERSIONS = {"mean": [1.0, -4.0, 2.0]}, {"torch": "2.11.0"}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of file, and how eridiff reads it."""

    name: str
    files: str  # pattern below the folder of all
    read: Callable[[], Any]  # what comes of it, to be compared
    also: tuple[Any, ...] = ()  # what else is right: read from an earlier state, or made again
    in_store: bool = False  # so that `eridiff store verify` must find it


class Ground:
    """A folder with a file of each kind, whole; it is the current folder meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "store"
        self.base = next(iter(sorted(path.name for path in (SMALL / "bases").iterdir())))
        (folder / "eridiff/families").mkdir(parents=True)
        (folder / "local.yaml").write_text("check_days: 0\n")
        shutil.copytree(SMALL / "bases" / self.base, folder / "data/bases" / self.base)
        for path in (folder / "data/bases" / self.base).glob("*.json"):
            if path.stem in ("vae", "text", "denoiser"):
                pointer = read_pointer(self.base, path.stem)
                path.unlink()
                write_pointer(path, pointer)
        self._fill_store()
        self._train()
        write_table(Path("data/captions/captions.parquet"), ROWS, COLUMNS, {"trigger": "eri"})
        params = LoraParams(rank=4, alpha=4.0)
        save_checkpoint(Path("data/lora/step-000002.safetensors"), TENSORS, prefix="unet", params=params, lineage={})
        Path("data/raw").mkdir()
        Path("data/raw/a.png").write_bytes(b"picture" * 99)
        os.utime("data/raw/a.png", (1e9, 1e9))
        self._digest()
        self.sound = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

    def _fill_store(self) -> None:
        store = filled(self.root, ENTRIES[:8])
        store.publish(KEYS[:6], Path("data/latents"))
        pin(self.root, "latents", Path(), store.published)
        PixelDigests(self.root).learn({f"{n:064x}": f"{n + 1:064x}" for n in range(4)})
        DriftRecords(self.root, ENCODER).learn(VALUES, VERSIONS)
        write_tensors(self.root / "bases/key.safetensors", RAW, {"digest": digest_tensors(RAW)})
        assert Store(self.root, "latents").catalogue  # which writes the catalogue

    def _train(self) -> None:
        """States after steps 1 and 2."""
        groups = {"adapters": {name: tensor.clone().requires_grad_() for name, tensor in TENSORS.items()}}
        optimizer = torch.optim.AdamW(groups["adapters"].values())
        for step in (1, 2):
            sum((tensor**2).sum() for tensor in groups["adapters"].values()).backward()  # type: ignore[union-attr]
            optimizer.step()
            save_state(self.root / "runs/key", step, groups, optimizer, {"loss": [0.5] * step})
            save_adapters(self.root / "runs/key", step, groups)

    def _resumed(self) -> Any:
        groups = {"adapters": {name: torch.zeros_like(tensor).requires_grad_() for name, tensor in TENSORS.items()}}
        optimizer = torch.optim.AdamW(groups["adapters"].values())
        found = load_state(self.root / "runs/key", groups, optimizer)
        return found, plain(groups["adapters"]), plain(optimizer.state_dict())

    def _digest(self) -> str:
        with FileDigests(self.folder / "digests.sqlite") as digests:
            return digests.sha256(Path("data/raw/a.png"))

    def _published(self) -> Any:
        out = self.folder / "published"
        shutil.rmtree(out, ignore_errors=True)
        Store(self.root, "latents").publish(KEYS[:6], out)
        return [digest_file(path) for path in sorted(out.iterdir())]

    def _weights(self) -> Any:
        pointer = read_pointer(self.base, "vae")
        with FileDigests(anew=lambda _: True) as digests:
            return [str(find_component(pointer, c, digests)) for c in pointer.components.values() if c.files]

    def kinds(self) -> list[Kind]:
        """All kinds; each reader is called once on what is sound."""
        root, run = self.root, self.root / "runs/key"
        first = run / "state-000001.sealed.safetensors", run / "state-000002.sealed.safetensors"
        os.replace(first[1], run / "aside")
        before = self._resumed()
        os.replace(run / "aside", first[1])
        memory = lambda: DriftRecords(root, ENCODER)  # noqa: E731
        table, lora = Path("data/captions/captions.parquet"), Path("data/lora/step-000002.safetensors")
        adapters = [load_adapters(run, "adapters", step) for step in (1, 2)]
        assert not torch.equal(adapters[0]["a.lora_A.weight"], adapters[1]["a.lora_A.weight"])
        kept = lambda: open_sound(root / "bases/key.safetensors")  # noqa: E731
        return [
            Kind(name="state", files="store/runs/key/state-*", read=self._resumed, also=(before,), in_store=True),
            Kind(
                name="checkpoint",
                files="store/runs/key/checkpoints/*",
                read=lambda: [plain(load_adapters(run, "adapters", step)) for step in (1, 2)],
                in_store=True,
            ),
            Kind(name="LoRA", files="data/lora/*", read=lambda: plain(read_checkpoint(lora))),
            Kind(name="table", files="data/captions/*", read=lambda: read_table(table)),
            Kind(
                name="pin",
                files="store/roots/*",
                read=lambda: [(p.project, p.kind, p.names) for p in read_pins(root)],
                in_store=True,
            ),
            Kind(
                name="drift check",
                files="store/probes/*/*",
                read=lambda: (memory().at(VERSIONS), {k: r.values for k, r in memory().references.items()}),
                in_store=True,
            ),
            Kind(name="shard", files="store/latents/shards/*", read=self._published, in_store=True),
            Kind(
                name="entry",
                files="store/latents/entries/*/*",
                read=lambda: [plain(Store(root, "latents").get(key)) for key in KEYS[6:8]],
                in_store=True,
            ),
            Kind(
                name="out",
                files="data/latents/shard-*",
                read=lambda: [plain(Cache(Path("data/latents")).tensors(key)) for key in KEYS[:6]],
            ),
            Kind(
                name="catalogue",
                files="store/latents/catalogue*",
                read=lambda: sorted(map(str, read_store(root / "latents").entries.items())),
                in_store=True,
            ),
            Kind(
                name="pixels",
                files="store/pixels/*",
                read=lambda: PixelDigests(root).known,
                also=({},),
                in_store=True,
            ),
            Kind(
                name="quantised base",
                files="store/bases/*",
                read=lambda: (file := kept()) and plain({name: file.raw(name) for name in file.names}),
                also=(None,),
                in_store=True,
            ),
            Kind(name="pointer", files=f"data/bases/{self.base}/vae.json", read=lambda: read_pointer(self.base, "vae")),
            Kind(name="weights", files=f"data/bases/{self.base}/vae/*.safetensors", read=self._weights),
            Kind(name="digests", files="digests.sqlite", read=self._digest),
        ]

    def restore(self) -> None:
        """Everything as it was."""
        for path in self.folder.rglob("*"):
            if path.is_file() and path not in self.sound:
                path.unlink()
        for path, data in self.sound.items():
            if not path.exists() or path.read_bytes() != data:
                path.unlink(missing_ok=True)
                path.write_bytes(data)


def plain(value: Any) -> Any:
    """A value that compares by content."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape), value.detach().numpy().tobytes()
    if isinstance(value, RawTensor):
        return value.dtype, value.shape, bytes(value.data)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


@dataclass(frozen=True, kw_only=True)
class Flip:
    """One flip and what came of it."""

    kind: str
    path: Path
    place: int
    bit: int
    outcome: str  # found, harmless, used
    verified: bool | None  # whether `eridiff store verify` named the file; None: it is not the store's
    told: str

    def line(self) -> str:
        """The flip in one line."""
        return f"{self.kind}: {self.path}, byte {self.place}, bit {self.bit}: {self.outcome}: {self.told}"


def flip_in_place(path: Path, place: int, bit: int) -> None:
    """Flip one bit; size, times and inode stay."""
    facts = path.stat()
    path.chmod(0o644)
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def plant(ground: Ground, kind: Kind, expected: Any, draw: random.Random) -> Flip:
    """Flip one bit in a file of a kind, read it as eridiff does, and put everything back."""
    path = draw.choice([path for path in sorted(ground.folder.glob(kind.files)) if path.is_file()])
    data = path.read_bytes()
    mark = data.find(MARK)
    place = draw.randrange(len(data))
    if mark >= 0 and draw.random() < 0.25:
        place = mark + draw.randrange(len(MARK) + 64)
    bit = draw.randrange(8)
    flip_in_place(path, place, bit)
    verified = path in {fault.path for fault in verify(ground.root, [])} if kind.in_store else None
    try:
        value = kind.read()
    except EridiffError as error:
        outcome, told = "found", str(error)
    except Exception as error:  # whatever it is, it is no way to meet damage
        outcome, told = "used", repr(error)
    else:
        told = ""
        outcome = "harmless" if value == expected else "found" if value in kind.also else "used"
    ground.restore()
    return Flip(kind=kind.name, path=path, place=place, bit=bit, outcome=outcome, verified=verified, told=told)


def flips(count: int, seed: int, folder: Path) -> Iterator[Flip]:
    """Plant flips in turn in every kind of file."""
    draw = random.Random(seed)
    with chdir(folder):
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            ground = Ground(folder)
            kinds = ground.kinds()
            expected = [kind.read() for kind in kinds]
            ground.restore()
        for number in range(count):
            place = number % len(kinds)
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                flip = plant(ground, kinds[place], expected[place], draw)
            yield flip


def main(
    count: Annotated[int, typer.Option("--flips", help="How many.")] = 500,
    seed: Annotated[int, typer.Option(help="Of their places.")] = 1,
) -> None:
    """Plant flips and say what came of them; exit code 1 where one was used, or not seen by `store verify`."""
    table: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"XDG_CACHE_HOME": folder + "/cache", "XDG_CONFIG_HOME": folder + "/config", "HOME": folder}
        place = Path(folder) / "ground"
        place.mkdir()
        for flip in flips(count, seed, place):
            outcomes = table.setdefault(flip.kind, Counter())
            outcomes[flip.outcome] += 1
            outcomes["unseen"] += flip.verified is False
            if flip.outcome == "used" or flip.verified is False:
                print(flip.line(), "" if flip.verified is not False else "(not seen by store verify)")
    print(f"{'':15}{'found':>7}{'harmless':>10}{'used':>6}{'not seen by verify':>20}")
    for kind, outcomes in {**table, "all": sum(table.values(), Counter())}.items():
        cells = outcomes["found"], outcomes["harmless"], outcomes["used"], outcomes["unseen"]
        print(f"{kind:15}{cells[0]:7}{cells[1]:10}{cells[2]:6}{cells[3]:20}")
    sys.exit(any(outcomes["used"] or outcomes["unseen"] for outcomes in table.values()))


if __name__ == "__main__":
    typer.run(main)
