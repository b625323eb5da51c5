"""What every stage and family puts out for small inputs: tests/golden/outs.json, and the versions it was made at.

    python -m tests.goldens    renews the records of what has another version, or is new, and refuses the others

A result that moves beyond rounding while its version stays fails tests/contract/test_golden.py.
"""

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eridiff.families import family_names, load_family
from eridiff.versions import code_versions
from tests import goldenouts

RECORD = Path(__file__).parent / "golden" / "outs.json"
Record = dict[str, Any]  # name of a golden -> {"versions": {name: number}, "outs": plain values}


@dataclass(frozen=True, kw_only=True)
class Golden:
    """One kind of results. rounding: how far numbers that are no integers may lie apart, as a share; 0: not at all."""

    name: str
    versions: tuple[str, ...]
    make: Callable[[Path], Any]
    family: str | None = None
    rounding: float = 0.0
    slow: bool = False

    def known(self) -> dict[str, int]:
        """All versions as they are now: the stages', and those of its family."""
        return code_versions().numbers | (load_family(self.family).VERSIONS.numbers if self.family else {})

    def numbers(self) -> dict[str, int]:
        """Its own."""
        return {name: self.known()[name] for name in self.versions}


def _of_family(family: str) -> Iterator[Golden]:
    """Of one family, named `latents of flux`."""
    kinds: tuple[tuple[str, str, Callable[[str, Path], Any], float, bool], ...] = (
        ("latents", "vae_encode", goldenouts.latents, 1e-3, False),
        ("text", "text_encode", goldenouts.texts, 1e-3, False),
        ("train", "train", goldenouts.training_run, 1e-3, True),
        ("sample", "sample", goldenouts.samples, 1e-2, True),
        ("export", "export", goldenouts.export, 1e-3, False),
    )
    for stage, number, make, rounding, slow in kinds:
        more = ("store.pixels",) if stage == "latents" else ()
        yield Golden(
            name=f"{stage} of {family}",
            versions=(f"stages.{stage}", *more, f"family.{number}"),
            make=lambda folder, make=make: make(family, folder),  # type: ignore[misc]
            family=family,
            rounding=rounding,
            slow=slow,
        )


def goldens() -> list[Golden]:
    """All of them."""
    light = [
        Golden(name="check", versions=("stages.check",), make=goldenouts.checks),
        Golden(name="captions", versions=("stages.captions",), make=goldenouts.captions),
        Golden(name="buckets", versions=("stages.buckets",), make=goldenouts.buckets),
        Golden(name="pixels", versions=("store.pixels",), make=goldenouts.pixels),
    ]
    return light + [golden for family in family_names() for golden in _of_family(family)]


def read_record() -> Record:
    """The record; {} where there is none."""
    record: Record = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else {}
    return record


def moved(before: Any, now: Any, rounding: float, path: str = "") -> list[str]:
    """Where two plain values differ: a number that is no integer by more than rounding, all else at all."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = sorted({*before, *now})
        return [found for key in keys for found in moved(before.get(key), now.get(key), rounding, f"{path}/{key}")]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [found for n, (one, other) in pairs for found in moved(one, other, rounding, f"{path}/{n}")]
    if isinstance(before, float) and isinstance(now, float) and rounding:
        return (
            [] if math.isclose(before, now, rel_tol=rounding, abs_tol=rounding / 10) else [f"{path}: {before} -> {now}"]
        )
    return [] if type(before) is type(now) and before == now else [f"{path}: {str(before)[:80]} -> {str(now)[:80]}"]


def fault(golden: Golden, record: Record, outs: Any) -> str | None:
    """What is wrong with results against the record, and what to do; None where nothing is."""
    entry, numbers = record.get(golden.name), golden.numbers()
    if entry is None:
        return f"{golden.name}: nothing is recorded: run `python -m tests.goldens`"
    if entry["versions"] != numbers:
        return f"{golden.name}: recorded at {entry['versions']}, now at {numbers}: run `python -m tests.goldens`"
    if found := moved(entry["outs"], outs, golden.rounding):
        return (
            f"{golden.name}: results moved and no version did. If it is meant, raise one of {', '.join(numbers)} with "
            f"a sentence of what changes for whom, then run `python -m tests.goldens`. {len(found)} differ: "
            + "; ".join(found[:3])
        )
    return None


def renew(names: list[str]) -> int:
    """Record again what has other versions than its record, or has none; 1 where results moved without a version."""
    record, refused = read_record(), 0
    for golden in goldens():
        if names and golden.name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            outs = plain(golden.make(Path(folder)))
        entry = record.get(golden.name)
        if entry is None or entry["versions"] != golden.numbers():
            record[golden.name] = {"versions": golden.numbers(), "outs": outs}
            print(f"{golden.name}: recorded at {golden.numbers()}")
        elif wrong := fault(golden, record, outs):
            print(wrong, file=sys.stderr)
            refused = 1
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
    return refused


def plain(value: Any) -> Any:
    """As it comes back from JSON, numbers with nine digits."""
    return json.loads(json.dumps(value), parse_float=lambda text: float(f"{float(text):.9g}"))


def main() -> int:
    """Renew in a folder that is a checkout with the tests' bases, on a CPU."""
    from tests.checkouts import link_bases

    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"ERIDIFF_STORE": f"{folder}/store", "ERIDIFF_DEVICE": "cpu", "XDG_CACHE_HOME": f"{folder}/cache"}
        os.environ |= {"XDG_CONFIG_HOME": f"{folder}/config", "HOME": folder, "HF_HUB_OFFLINE": "1"}
        link_bases(Path(folder))
        with chdir(folder):
            return renew(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
