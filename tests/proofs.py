"""Costly proofs: each is run by one command, and its result stands in tests/golden/proofs.json.

`python -m tests.proofs NAME` runs one and writes what came of it, with a digest of what it is about: the versions of
stages and families, presets, pointers of bases, pinned packages, named code. `python -m tests.proofs` says which proofs
are out of date or were never run; `make check` says so too. CI runs a fixed small share of the same, each time.
"""

import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.support.checkouts import ROOT

RESULTS = ROOT / "tests" / "golden" / "proofs.json"
LIMIT = 3 * 3600  # seconds a proof
KEPT_LINES = 20  # of what a proof says at its end
NUMERIC = ("torch", "diffusers", "transformers", "peft")  # packages whose release may move a number
FAMILIES = ("sdxl", "sd35", "flux")


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One proof.

    files are globs in the checkout; a proof is out of date when the bytes of one that matches change, or a pin.
    """

    about: str
    command: tuple[str, ...]  # of python; it has proved what it is about where it ends with 0
    files: tuple[str, ...]
    packages: tuple[str, ...] = NUMERIC


def demo(family: str) -> Proof:
    """The demo of one family, from nothing to the verdict."""
    return Proof(
        about=f"the demo's LoRA of presets/tiny-{family}.yaml convinces (tests/verdict.py)",
        command=("-m", "tests.demo", family),
        files=(
            *("eridiff/versions.yaml", f"eridiff/families/{family}/versions.yaml", "data/raw/**/*"),
            *(f"presets/tiny-{family}.yaml", f"data/bases/tiny-{family}/*.json", "tests/demo.py", "tests/verdict.py"),
        ),
    )


PROOFS = {
    **{f"demo-{family}": demo(family) for family in FAMILIES},
    "demo-compared": Proof(
        about="experiments of the three presets in one table and in the front page's picture",
        command=("-m", "pytest", "-m", "proof", "tests/e2e/test_demo.py"),
        files=(
            *("eridiff/versions.yaml", "eridiff/families/*/versions.yaml", "data/raw/**/*"),
            *("presets/tiny-*.yaml", "data/bases/tiny-*/*.json", "docs/pictures/hero.*", "tests/verdict.py"),
        ),
    ),
    "bases": Proof(
        about="each of the demo's trained bases draws what it is asked for",
        command=("-m", "pytest", "-m", "e2e", "tests/e2e/test_bases.py"),
        files=("data/bases/tiny-*/*.json", "data/demo/accuracy.py", "data/demo/references*", "tests/e2e/test_bases.py"),
    ),
    "flips": Proof(
        about="500 flipped bits in every kind of file that is read again: none is used",
        command=("-m", "tests.flips", "--flips", "500", "--seed", "1"),
        files=(
            "eridiff/formats/seals.py",
            "eridiff/formats/safetensors.py",
            "eridiff/store/catalogue.py",
            "tests/flips.py",
        ),
        packages=(),
    ),
    "plans": Proof(
        about="`eridiff plan`: each preset of a full-size model fits the card that it is for",
        command=("-m", "pytest", "-m", "proof", "tests/e2e/test_plan.py"),
        files=(
            "presets/*gb.yaml",
            "eridiff/memory/train.py",
            "eridiff/memory/trace.py",
            "eridiff/families/*/family.py",
        ),
    ),
}


def pins(packages: Iterable[str]) -> list[str]:
    """The pinned versions of packages."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    lines += re.findall(r'"(torch==[^"]+)"', (ROOT / "eridiff" / "words.py").read_text("utf-8"))
    return sorted(line for line in lines if line.split("==")[0] in packages)


def digest(proof: Proof) -> str:
    """Of what a proof is about."""
    found = hashlib.sha256(json.dumps([proof.command, pins(proof.packages)]).encode())
    for path in sorted({path for glob in proof.files for path in ROOT.glob(glob) if path.is_file()}):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        found.update(f"{path.relative_to(ROOT).as_posix()} {content}\n".encode())
    return found.hexdigest()


def read_results() -> dict[str, dict[str, Any]]:
    """What came of the proofs that were run."""
    results: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text("utf-8"))
    return results


def warnings(results: dict[str, dict[str, Any]], proofs: dict[str, Proof]) -> list[str]:
    """A line for each proof that does not stand: never run, failed, or of another state."""
    lines = []
    for name, proof in proofs.items():
        result = results.get(name)
        if result is None:
            why = "was never run"
        elif result["digest"] != digest(proof):
            why = "is out of date: what it is about has changed since"
        elif not result["holds"]:
            why = "failed"
        else:
            continue
        lines.append(f"proof {name} {why}. Run it: python -m tests.proofs {name}  ({proof.about})")
    return lines


def prove(name: str) -> bool:
    """Run a proof, show what it says, and write down what came of it."""
    proof, before, start = PROOFS[name], digest(PROOFS[name]), time.monotonic()
    done = subprocess.run(
        [sys.executable, *proof.command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    print(done.stdout, end="")
    if digest(proof) != before:
        sys.exit(f"error: what {name} is about was edited while it ran: no result is written")
    result = {
        "digest": before,
        "holds": done.returncode == 0,
        "seconds": round(time.monotonic() - start),
        "said": done.stdout.splitlines()[-KEPT_LINES:],
    }
    results = {**read_results(), name: result}
    RESULTS.write_text(json.dumps(results, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    return done.returncode == 0


def main() -> None:
    """Run the proofs that are named; without any, say which do not stand."""
    names = sys.argv[1:]
    if unknown := [name for name in names if name not in PROOFS]:
        sys.exit(f"error: no proof is called {unknown[0]!r}; there are: {', '.join(PROOFS)}")
    if not names:
        print("\n".join(f"warning: {line}" for line in warnings(read_results(), PROOFS)) or "proofs: all stand")
        return
    held = [prove(name) for name in names]
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
