"""Records of drift checks: what numbers an encoder gave, with which library versions, and how they are compared.

An encoder's entries are keyed by its weights and params. New versions of torch, diffusers or transformers may change
its numbers all the same, so it is run on a fixed input once for each set of versions: the drift check. Numbers that
differ from recorded ones by no more than rounding have the same drift id; others get a new one. The first id is empty;
any other is part of every key (as `probe`). Records are files under STORE/probes, written once: the first writer wins.
In stored files a drift id is called `generation`.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eridiff.core.errors import DataError, StoreError
from eridiff.core.files import digest_json, write_text
from eridiff.core.json_files import parse_json
from eridiff.core.leftovers import temporary_path
from eridiff.formats.seals import read_sealed, sealed_json

if TYPE_CHECKING:
    from torch import Tensor

LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers")
NO_DRIFT = ""  # of the first numbers; in no key
# Largest difference that passes for rounding, as a part of the largest number of the tensor. docs/benchmarks.md has the
# measurements: what devices, kernels and batch sizes change, with room above it.
TOLERANCE = {"fp32": 2e-4, "tf32": 5e-3, "fp16": 1e-2, "bf16": 6e-2}
NUM_VALUES = 128  # numbers of each tensor that are compared
DIGITS = 7  # significant digits that are kept: fewer than fp32 has, far more than any tolerance needs

Values = dict[str, list[float]]  # tensor -> some of its numbers
Versions = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """What is checked: one VAE, or one set of text encoders, in one number format.

    name: for messages. identity: all that its numbers depend on, but the libraries. precision: a key of TOLERANCE.
    """

    stage: str
    name: str
    identity: Mapping[str, Any]
    precision: str

    @property
    def digest(self) -> str:
        """The digest of its identity."""
        return digest_json(dict(self.identity))


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The first numbers with a drift id; an index carries them, so that a clone compares with the same.

    encoder: digest of the encoder that gave them, because a stage's last output may be another encoder's.
    """

    encoder: str
    drift_id: str
    values: Values

    def facts(self) -> dict[str, Any]:
        """As plain values."""
        return {"encoder": self.encoder, "generation": self.drift_id, "values": self.values}


def reference_of(facts: Mapping[str, Any]) -> Reference | None:
    """The reference in an index's facts; None in one that has none."""
    found = facts.get("probe")
    if not found:
        return None
    return Reference(encoder=found["encoder"], drift_id=found["generation"], values=found["values"])


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The largest difference between two measurements. allowed: what counts as rounding."""

    tensor: str
    largest: float
    allowed: float

    @property
    def beyond_rounding(self) -> bool:
        """Whether the encoder's numbers are others."""
        return self.largest > self.allowed

    def __str__(self) -> str:
        return f"largest difference {self.largest:.2g} ({self.tensor}), rounding would be {self.allowed:.2g}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of a check with some versions. before: the versions of the last one; difference: from its values."""

    drift_id: str
    versions: Versions
    before: Versions
    difference: Difference | None

    @property
    def upgrade(self) -> str:
        """Which versions changed: `diffusers 0.42.1 -> 0.43.0`."""
        return name_upgrade(self.before, self.versions)


def name_upgrade(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Which versions differ, in words."""
    changed = [name for name in LIBRARIES if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {before.get(name, 'absent')} -> {now.get(name, 'absent')}" for name in changed)


def library_versions() -> Versions:
    """Versions of the libraries that an encoder's numbers depend on, without importing any."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def shorten(number: float) -> float:
    """A number with DIGITS significant digits."""
    return float(f"{number:.{DIGITS}g}")


def compare(reference: Values, values: Values, precision: str) -> Difference:
    """The difference between two measurements of an encoder that is nearest to, or furthest beyond, rounding.

    Tensors of other names or sizes are infinitely different.
    """
    if {n: len(v) for n, v in reference.items()} != {n: len(v) for n, v in values.items()}:
        return Difference(tensor="shape", largest=math.inf, allowed=0.0)
    found = []
    for name, before in sorted(reference.items()):
        largest = max(_distance(a, b) for a, b in zip(before, values[name], strict=True))
        allowed = TOLERANCE[precision] * max(map(abs, before))
        found.append(Difference(tensor=name, largest=largest, allowed=allowed))
    return max(found, key=lambda one: one.largest / one.allowed if one.allowed else math.inf if one.largest else 0.0)


def _distance(a: float, b: float) -> float:
    """How far two numbers lie apart; infinitely where one is no number."""
    return abs(a - b) if math.isfinite(a) and math.isfinite(b) else math.inf


def name_precision(dtype: str, tf32: bool) -> str:
    """The key of TOLERANCE for a number format."""
    return "tf32" if dtype == "fp32" and tf32 else dtype


def some_values(work: "Callable[[], Mapping[str, Tensor]]", what: str, why: Callable[[], str]) -> Values:
    """NUM_VALUES of each tensor, evenly spread."""
    import torch

    values = {}
    for name, tensor in work().items():
        flat = tensor.detach().flatten().float().cpu()
        if not flat.isfinite().all():
            raise DataError(f"{what} gave numbers that are not finite for an ordinary picture or caption. {why()}")
        places = torch.linspace(0, flat.numel() - 1, min(NUM_VALUES, flat.numel()), dtype=torch.float64).long()
        values[name] = [shorten(number) for number in flat[places].tolist()]
    return values


class DriftRecords:
    """The store's records of one encoder: a reference for each drift id, and a record for each set of versions."""

    def __init__(self, root: Path, encoder: Encoder) -> None:
        self.root, self.encoder = root, encoder
        self.folder = root / "probes" / encoder.digest

    @cached_property
    def references(self) -> dict[str, Reference]:
        """Drift id -> its reference."""
        found = [reference_of({"probe": self._read(path)}) for path in sorted(self.folder.glob("generation-*.json"))]
        return {reference.drift_id: reference for reference in found if reference}

    def at(self, versions: Versions) -> str | None:
        """The drift id recorded for these versions; None where there was no check with them."""
        path = self._record_path(versions)
        for one in (path, path.with_name(path.name.replace(".sealed.", "."))):  # the other is of before
            if one.exists():
                return str(self._read(one)["generation"])
        return None

    @property
    def last(self) -> tuple[str, Versions] | None:
        """Drift id and versions of the last check; None before the first."""
        records = self._records()
        if not records:
            return None
        record = self._read(records[-1])
        return record["generation"], record["versions"]

    def versions_of(self, drift_id: str) -> Versions:
        """Versions of the last check with this drift id; {} where none is recorded."""
        found = [record for record in map(self._read, self._records()) if record["generation"] == drift_id]
        return dict(found[-1]["versions"]) if found else {}

    def adopt(self, reference: Reference) -> None:
        """Take over the reference of a stage's own earlier output: what its entries were encoded like."""
        if reference.drift_id not in self.references:
            self._add(self.folder / f"generation-{reference.drift_id or 'first'}.sealed.json", reference.facts())
            del self.references

    def learn(self, values: Values, versions: Versions) -> Verdict:
        """Record a measurement with these versions; what another process recorded first stays."""
        last = self.last
        before = self.references.get(last[0]) if last else None
        before = before or next(iter(self.references.values()), None)
        difference = compare(before.values, values, self.encoder.precision) if before else None
        drift_id = self._drift_id(values)
        if drift_id is None:
            drift_id = NO_DRIFT if not self.references else digest_json(values)[:16]
            self.adopt(Reference(encoder=self.encoder.digest, drift_id=drift_id, values=values))
        path = self._record_path(versions)
        self._add(path, {"encoder": dict(self.encoder.identity), "versions": versions, "generation": drift_id})
        drift_id = str(self._read(path)["generation"])
        return Verdict(drift_id=drift_id, versions=versions, before=last[1] if last else {}, difference=difference)

    def _drift_id(self, values: Values) -> str | None:
        """The drift id of the nearest reference within rounding; None where there is none."""
        distances = {
            name: compare(reference.values, values, self.encoder.precision)
            for name, reference in sorted(self.references.items())
        }
        same = [name for name, difference in distances.items() if not difference.beyond_rounding]
        return min(same, key=lambda name: distances[name].largest) if same else None

    def _records(self) -> list[Path]:
        """Files of the checks, in the order in which they ran."""
        found = self.folder.glob("versions-*.json")
        return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))

    def _record_path(self, versions: Versions) -> Path:
        return self.folder / f"versions-{digest_json(versions)[:16]}.sealed.json"

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            record: dict[str, Any] = parse_json(read_sealed(path, ""))
            if "generation" in record and ("values" in record or "versions" in record):
                return record
        except (DataError, ValueError, TypeError):
            pass
        raise StoreError(f"{path} is damaged. Remove it: the drift check then runs again.")

    def _add(self, path: Path, record: Mapping[str, Any]) -> None:
        """Write a file whole, unless it is there: of several processes the first wins."""
        temporary = temporary_path(path)
        try:
            write_text(temporary, sealed_json(record))
            try:
                os.link(temporary, path)
            except FileExistsError:
                pass
            except OSError:  # no hardlinks here: the last wins, which differs from the first by rounding at most
                os.replace(temporary, path)
            temporary.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"cannot write to the store {self.root}: {error.strerror}.") from None
