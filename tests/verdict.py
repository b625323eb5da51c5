"""Whether samples convince: the thresholds that the demo's LoRA must meet, read off metrics.json.

python -m tests.verdict data/samples/metrics.json
"""

import json
import sys
from pathlib import Path
from typing import Any

FALLS = {"trained": 1 / 2, "held-out": 1 / 3}  # at least, by group
KEPT = 0.9  # at least, of the base's own accuracy
LEAKAGE = 0.2  # at most


def failures(metrics: dict[str, Any], column: str) -> list[str]:
    """What a column lacks, in words; nothing where it convinces."""
    found = []
    for group, least in FALLS.items():
        distance, kept = metrics["concept_distance"][group], metrics["subject_kept"][group]
        fall = metrics["fall"][group][column]
        if fall is None or fall < least:
            found.append(f"{group}: the distance to the concept falls by {fall}, not by {least:.2f}")
        if distance[column] >= distance["colour_filter"]:
            found.append(f"{group}: no nearer ({distance[column]}) than a filter ({distance['colour_filter']})")
        if kept["base"] < KEPT:
            found.append(f"{group}: the base's own subjects are told apart in {kept['base']} only")
        if kept[column] < KEPT * kept["base"]:
            found.append(f"{group}: subjects kept in {kept[column]}, the base's in {kept['base']}")
    leakage = metrics["leakage"][column]
    if leakage is None or leakage > LEAKAGE:
        found.append(f"leakage {leakage}")
    return found


def strongest(metrics: dict[str, Any]) -> str:
    """The column of the greatest strength."""
    return max(metrics["leakage"], key=lambda column: float(column.rsplit(" ", 1)[1]))


def main() -> None:
    """Judge the strongest column of a run's metrics; say what it lacks."""
    metrics = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    column = strongest(metrics)
    found = failures(metrics, column)
    print("\n".join(found) or f"{column}: convinces")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
