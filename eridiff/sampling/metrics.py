"""The values of metrics.json, by column of samples: distance to the concept, subjects kept, leakage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eridiff.sampling.colour_filters import best_colour_filter
from eridiff.sampling.descriptors import Drawn, at_measure, difference, distance, shape_of, subject_accuracy, texture

Array = np.ndarray[Any, np.dtype[Any]]
DIGITS = 4  # a last bit of a sum must not change metrics.json
BASE, FILTER = "base", "colour_filter"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a row of samples was asked to show, and its two pictures in every column (the base first), in 0..1."""

    group: str
    subject: str  # the prompt without the trigger
    seed: int
    told: Sequence[Array]  # drawn with the trigger
    plain: Sequence[Array]  # at the same seed, drawn without it


def figures(labels: Sequence[str], rows: Sequence[Measured], concept: Sequence[Array]) -> dict[str, Any]:
    """concept_distance, fall, subject_kept (each by group and column) and leakage (by column), rounded.

    labels: of the columns, the base's first. concept: pictures at the measure's area.
    """
    groups = {name: [row for row in rows if row.group == name] for name in sorted({row.group for row in rows})}
    distances = {name: _distances(labels, members, concept) for name, members in groups.items()}
    falls = {
        name: {label: _share(found[BASE] - found[label], found[BASE]) for label in labels[1:]}
        for name, found in distances.items()
    }
    values = {
        "concept_distance": distances,
        "fall": falls,
        "subject_kept": _subjects_kept(labels, groups),
        "leakage": {label: _leakage(rows, number) for number, label in enumerate(labels) if number},
    }
    return {name: _rounded(value) for name, value in values.items()}


def _distances(labels: Sequence[str], rows: Sequence[Measured], concept: Sequence[Array]) -> dict[str, float]:
    wanted = texture(concept)
    columns = [[at_measure(row.told[number]) for row in rows] for number in range(len(labels))]
    found = {label: distance(texture(column), wanted) for label, column in zip(labels, columns, strict=True)}
    return {**found, FILTER: best_colour_filter(columns[0], concept).distance}


def _subjects_kept(labels: Sequence[str], groups: Mapping[str, Sequence[Measured]]) -> dict[str, dict[str, float]]:
    """Accuracy by group and column; the bank is all that the base drew, of all groups, with and without the trigger."""
    rows = [row for members in groups.values() for row in members]
    bank = [*(_drawn(row, row.told[0], "told") for row in rows), *(_drawn(row, row.plain[0], "plain") for row in rows)]
    return {
        group: {
            label: subject_accuracy([_drawn(row, row.told[number], "told") for row in members], bank)
            for number, label in enumerate(labels)
        }
        for group, members in groups.items()
    }


def _drawn(row: Measured, pixels_HWC: Array, kind: str) -> Drawn:
    return Drawn(shape_of(pixels_HWC), row.subject, (row.subject, row.seed, kind))


def _leakage(rows: Sequence[Measured], column: int) -> float | None:
    """How far the column moved without the trigger, as a share of how far it moved with it."""
    plain = difference([row.plain[column] for row in rows], [row.plain[0] for row in rows])
    told = difference([row.told[column] for row in rows], [row.told[0] for row in rows])
    return _share(plain, told)


def _share(part: float, whole: float) -> float | None:
    """None where the whole is nothing: a column that moved nowhere leaks no share of it."""
    return part / whole if whole else None


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value if value is None else round(value, DIGITS) + 0.0  # no -0.0
