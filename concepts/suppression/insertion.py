"""What a drawn artifact does to the prediction, before and after its suppression."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dermaudit.heads import probe_score
from dermaudit.sae.run_data import RunData

from ..drawing import drawn_embeddings
from ..evidence.cross_fit import CrossFitted, Fold
from .figures import InsertionFigures

if TYPE_CHECKING:
    from dermaudit.towers import HookedTower

INSERTIONS = 60  # images that the artifact is drawn onto
MIN_SHIFT = 0.005  # mean |Δp| below which the ratio after / before is noise


def measure_insertion(
    data: RunData,
    concept: str,
    found: list[Fold],
    result: CrossFitted,
    tower: HookedTower | None,
) -> InsertionFigures:
    """Draw the artifact onto scored images that lack it, and measure mean |Δp| before and after, by the head
    and the edit of the fold in which each image was held out.
    """
    from dermaudit.phantom import ARTIFACTS

    if tower is None:
        return _no_residual("no model at hand")
    if concept not in ARTIFACTS:
        return _no_residual(f"{concept} cannot be drawn")
    trap = found[0].data
    free = np.flatnonzero(trap.scored & (trap.a == 0))[:INSERTIONS]
    assert trap.row is not None  # of a run
    inserted = drawn_embeddings(data, concept, trap.row[free], tower, trap.seed)
    shifts: list[np.ndarray] = []  # (2, images of the fold): before, after
    for fold, fitted in zip(found, result.fitted, strict=True):
        here = result.fold[free] == fold.number
        if here.any():
            pairs = inserted[here], trap.x[free[here]]
            shifts.append(
                np.stack(
                    [
                        np.abs(np.subtract(*(sigmoid(score(x)) for x in pairs)))
                        for score in (lambda x, head=fold.head: probe_score(head, x), fitted.score)
                    ]
                )
            )
    before, after = np.concatenate(shifts, axis=1).mean(1)
    if before < MIN_SHIFT:
        figures = _no_residual(f"drawing {concept} moves the prediction by {before:.4f} only")
    else:
        figures = InsertionFigures(insertion_residual=float(after / before))
    return {
        **figures,
        "insertion_n": len(free),
        "insertion_before": float(before),
        "insertion_after": float(after),
    }


def _no_residual(reason: str) -> InsertionFigures:
    return {"insertion_residual": None, "insertion_residual_reason": reason}


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits, which are clipped at ±60: beyond it exp overflows."""
    return 1 / (1 + np.exp(-np.clip(x, -60, 60)))
