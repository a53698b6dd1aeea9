"""What suppression does to groups of patients, and to the zero-shot classifier of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dermaudit.concepts.evidence.cross_fit import CrossFitted, TrapData
from dermaudit.concepts.evidence.operating_points import fold_auroc
from dermaudit.stats.intervals import MIN_CELL

from .change import change_of, draw_weights

if TYPE_CHECKING:
    import pyarrow as pa

    from dermaudit.concepts.suppression.head import Head

COLUMNS = ("age", "sex", "localization", "skin_tone")
AGES = (40, 60)  # years: the bounds of the strata
DRAWS = 1000
TOO_SMALL = "n too small"


def strata_of(images: pa.Table) -> dict[str, np.ndarray]:
    """Return the columns of a manifest that give strata: {column: value (n,) as text, "" where unknown}."""
    found = {}
    for column in COLUMNS:
        if column in images.column_names:
            values = images[column].to_pylist()
            found[column] = np.array(
                [age_group(v) if column == "age" else "" if v is None else str(v) for v in values]
            )
    return found


def age_group(age: Any) -> str:
    """Return the stratum of an age in years; "" for what is no number."""
    try:
        years = float(age)
    except (TypeError, ValueError):
        return ""
    if not np.isfinite(years):
        return ""
    return "under 40" if years < AGES[0] else "40 to 59" if years < AGES[1] else "60 and over"


def by_stratum(
    data: TrapData, result: CrossFitted, strata: dict[str, np.ndarray]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return {column: {stratum: figures}}: the AUROC of the target by the trap heads before and after suppression,
    with the 95 % interval of the change over groups. With fewer than MIN_CELL scored images with the target, or
    without it, {"n", "reason"}. `strata`: values (n,) of the rows of `data`.
    """
    return {
        column: {
            str(value): _stratum(data, result, data.scored & (values == value))
            for value in sorted(set(values[data.scored]) - {""})
        }
        for column, values in strata.items()
    }


def _stratum(data: TrapData, result: CrossFitted, chosen: np.ndarray) -> dict[str, Any]:
    rows = np.flatnonzero(chosen)
    target = data.y[rows] == 1
    n = {"n": len(rows), "n_target": int(target.sum())}
    if min(target.sum(), (~target).sum()) < MIN_CELL:
        return {**n, "reason": TOO_SMALL}
    weights = draw_weights(data, rows, DRAWS)
    before, after = (
        fold_auroc(score[rows], target, ~target, result.fold[rows], weights)
        for score in (result.score_before, result.score)
    )
    return {**n, **change_of(before, after)}


def zero_shot_accuracy(
    data: TrapData, edited: np.ndarray, labels: np.ndarray, head: Head
) -> dict[str, Any]:
    """Return the share of scored images that the zero-shot classifier gets right, before and after suppression,
    with the 95 % interval of the change over groups. `edited` (n, d): the embeddings after suppression, each by
    the edit of a fold that did not see it; `labels` (n,). Images with a label that is no class do not count.
    """
    rows = np.flatnonzero(data.scored & np.isin(labels, head.classes))
    if len(rows) < MIN_CELL:
        return {"n": len(rows), "reason": TOO_SMALL}
    classes = np.array(head.classes)
    weights = draw_weights(data, rows, DRAWS)
    before, after = (
        weights @ (classes[head.logits(x[rows]).argmax(1)] == labels[rows]) / weights.sum(1)
        for x in (data.x, edited)
    )
    return {"n": len(rows), **change_of(before, after)}
