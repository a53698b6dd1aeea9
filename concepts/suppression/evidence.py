"""The cross-fitted evidence for the suppression of one concept in a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from dermaudit.errors import EvidenceError
from dermaudit.sae.run_data import POOLED, RunData

from ..evidence.cross_fit import CrossFitted, Fold, TrapData, folds, oracle_scores
from ..evidence.figures import effect_figures, flip_causes, measure, reasons_to_refuse
from .cross_fitted import CrossFittedMethod
from .figures import MeasuredFigures
from .insertion import measure_insertion, sigmoid

if TYPE_CHECKING:
    from dermaudit.towers import HookedTower


@dataclass(frozen=True)
class Evidence:
    """The figures of a suppression, and a row for each image that they are of (docs/formats.md)."""

    figures: MeasuredFigures
    images: pa.Table


def measure_suppression(
    data: RunData,
    concept: str,
    target: str,
    trap: TrapData,
    method: CrossFittedMethod,
    tower: HookedTower | None = None,
) -> Evidence:
    """Cross-fit the method on the rows of a run whose label and artifact are known.

    Raises EvidenceError with the numbers where there are no such rows, or too few.
    """
    for what, known in ((f"the concept {concept}", trap.a), (f"the target {target}", trap.y)):
        if not np.isfinite(known).any():
            raise EvidenceError(f"{what} has no labels in this run: the effect cannot be measured")
    if not (trap.y == 1).any():
        raise EvidenceError(
            f"no image of this run has the label {target}: nothing can depend on it"
        )
    known = trap.known()
    found = folds(known)
    result, effect = measure(method, found, oracle_scores(found))
    figures: MeasuredFigures = {
        **effect_figures(effect),
        **measure_insertion(data, concept, found, result, tower),
        "site": POOLED,
        "method": method.name,
        "latents": [],  # those of the recipe, which is made from other rows
        "target": target,
        "strength": trap.strength,
        "n_scored": int(known.scored.sum()),
        "n_trap": round(float(np.mean([len(fold.trap_rows) for fold in found]))),
        "random_changes": effect.random_changes or [],
        "refused": reasons_to_refuse(effect),
        "accepted_limits": None,
    }
    return Evidence(figures, _image_table(known, found, result))


def _image_table(data: TrapData, found: list[Fold], result: CrossFitted) -> pa.Table:
    """Return what happens to each scored image: group, p(target), decisions, and why a decision flips."""
    rows = np.flatnonzero(data.scored)
    assert data.row is not None  # of a run
    threshold = np.array([fold.threshold for fold in found])[result.fold[rows]]
    cause = flip_causes(result)[rows]
    return pa.table(
        {
            "row": data.row[rows].astype(np.int64),
            "group4": [f"y={int(data.y[r])} a={int(data.a[r])}" for r in rows],
            "fold": result.fold[rows].astype(np.int64),
            "p_before": sigmoid(result.score_before[rows]),
            "p_after": sigmoid(result.score[rows]),
            "p_threshold": sigmoid(threshold),
            "positive_before": result.before[rows],
            "positive_fixed": result.after_fixed[rows],
            "positive_matched": result.after_matched[rows],
            "flipped": cause != "",
            "cause": cause.tolist(),
            "fired": ~result.unchanged[rows],
        }
    )
