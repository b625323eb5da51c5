"""The demo of one family, from nothing, and its verdict: `python -m tests.demo sdxl`."""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from tests.e2e.harness import make_clone
from tests.verdict import failures, strongest


def run_demo(family: str, folder: Path) -> list[str]:
    """What the LoRA of a family's preset lacks; nothing where it convinces."""
    clone = make_clone(folder, "demo", quick=False, demo=True, cold=True)
    shutil.copyfile(clone.root / f"presets/tiny-{family}.yaml", clone.root / "params.yaml")
    clone.run("dvc", "repro", limit=3600)
    metrics = json.loads((clone.root / "data/samples/metrics.json").read_text("utf-8"))
    column = strongest(metrics)
    for name in ("concept_distance", "subject_kept", "fall"):
        print(f"{name}: " + ", ".join(f"{group} {values.get(column)}" for group, values in metrics[name].items()))
    print(f"leakage: {metrics['leakage'][column]} ({column})")
    return failures(metrics, column)


def main() -> None:
    """Say what is measured and what is lacking; exit code 1 where anything is."""
    with tempfile.TemporaryDirectory() as folder:
        found = run_demo(sys.argv[1], Path(folder))
    print("\n".join(found) or "convinces")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
