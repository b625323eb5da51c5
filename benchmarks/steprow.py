"""The rows of the step's benchmark: what is trained, on how many pictures, in which formats, within which memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SIDES = ("script", "plain", "fast")
PEERS = ("kohya", "toolkit")  # further sides, of checkouts (benchmarks/peerstep.py)
EIGHT_BITS_BOTH_WAYS = {"storage": "fp8", "compute": "fp8"}

# 10^12 floating point operations that one picture of 1024 x 1024 cannot do without: forward, and backward to the
# adapters through frozen weights, nothing recomputed.
USEFUL_TERAFLOPS = {"flux-dev": 163.6, "sd35-large": 69.5, "sd35-medium": 26.7, "sdxl": 14.3}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: both sides do the same work, each in its own way."""

    name: str
    family: str
    model: str  # of the family's published ones
    batch: int = 1
    targets: str = "attention"
    quantise: str | Mapping[str, str] | None = None  # train.quantise
    gib: float | None = None  # the card's memory, the context counted in; None: all of it
    sides: tuple[str, ...] = ("script", "fast")
    is_warmed: bool = False  # whether the first step is also measured with compile caches that an earlier run left
    options: Mapping[str, Any] | None = None  # further params of train

    @property
    def is_checkpointed(self) -> bool:
        """Whether a peer that keeps all activations or none must checkpoint them."""
        return self.gib is not None or (self.batch > 1 and self.model in ("flux-dev", "sd35-large"))

    @property
    def script_quantise(self) -> str | None:
        """How the script stores its base: it knows no quantised arithmetic."""
        return self.quantise["storage"] if isinstance(self.quantise, Mapping) else self.quantise


def _rows() -> list[Row]:
    """The most valuable rows first: time may run out."""
    sdxl, medium = {"family": "sdxl", "model": "sdxl"}, {"family": "sd35", "model": "sd35-medium"}
    large, flux = {"family": "sd35", "model": "sd35-large"}, {"family": "flux", "model": "flux-dev"}
    return [
        Row(name="flux-b1", **flux, sides=SIDES, is_warmed=True),
        Row(name="sdxl-b1", **sdxl, sides=SIDES, is_warmed=True),
        Row(name="sd35l-b1", **large, sides=SIDES),
        Row(name="sd35m-b4", **medium, batch=4),
        Row(name="sdxl-b4", **sdxl, batch=4),
        Row(name="flux-b4", **flux, batch=4),
        Row(name="flux-b1-22g", **flux, quantise="fp8", gib=22.5),
        Row(name="flux-b1-nf4-11g", **flux, quantise="nf4", gib=11),
        Row(name="flux-b1-fp8", **flux, quantise=EIGHT_BITS_BOTH_WAYS, sides=("fast",)),
        Row(name="sd35l-b4", **large, batch=4),
        Row(name="flux-b1-all", **flux, targets="all-linear"),
        Row(name="flux-b4-fp8", **flux, batch=4, quantise=EIGHT_BITS_BOTH_WAYS, sides=("fast",)),
        Row(name="sd35l-b4-fp8", **large, batch=4, quantise=EIGHT_BITS_BOTH_WAYS, sides=("fast",)),
        Row(name="flux-b1-stored", **flux, quantise="fp8"),
        Row(name="flux-b1-16g", **flux, gib=16, sides=("fast",)),
        Row(name="sdxl-b1-8g", **sdxl, gib=8, sides=("fast",)),
    ]


ROWS = {row.name: row for row in _rows()}
