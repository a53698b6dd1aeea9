"""How suppression by a concept latent depends on the strength of the trap, and on the number of labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dermaudit.concepts.evidence.cross_fit import (
    Fold,
    TrapData,
    cross_fit,
    folds,
    oracle_scores,
)
from dermaudit.concepts.evidence.edited_head import EditedHead
from dermaudit.concepts.evidence.figures import suppression_effect
from dermaudit.concepts.suppression.cross_fitted import CrossFittedMethod
from dermaudit.concepts.suppression.methods.concept_latent import ConceptLatentMethod
from dermaudit.errors import EvidenceError

#: P(artifact | target) where the head is fitted: .5 is no trap, 1 a trap without exception.
STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
LABELS = (10, 25, 50, 100)
DRAWS = 5


def trap_curve(trap: TrapData) -> list[dict[str, Any]]:
    """Return for each strength the cross-group AUROC of the head, before and after suppression, and of a head
    that was fitted without the trap, with the interval of the change over groups.
    """
    points = []
    for strength in STRENGTHS:
        found = folds(replace(trap, strength=strength))
        result = cross_fit(CrossFittedMethod(ConceptLatentMethod()), found)
        effect = suppression_effect(found[0].data, result, oracle_scores(found))
        points.append(
            {
                "strength": strength,
                "before": effect.cross_group_auroc_before,
                "after": effect.cross_group_auroc_after,
                "oracle": effect.oracle,
                "ci": list(effect.ci),
                "n_trap": int(np.mean([len(fold.trap_rows) for fold in found])),
            }
        )
    return points


def few_labels(found: list[Fold], oracle: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return for each number of images with and as many without the artifact the share of the gap that is closed:
    {n: {"mean", "lowest" of the draws, "refused": share of the fits, "draws"}}. A fit that is refused, because its
    images are not told apart, suppresses nothing in its fold. `oracle` (n,): scores without the trap.
    """
    table: dict[str, dict[str, Any]] = {}
    for n in LABELS:
        gaps, refused = [], 0
        for draw in range(DRAWS):
            method = _UnlessRefused(CrossFittedMethod(ConceptLatentMethod(n_labels=n, draw=draw)))
            effect = suppression_effect(found[0].data, cross_fit(method, found), oracle, draws=100)
            gaps.append(effect.gap_closed)
            refused += method.refused
        table[str(n)] = {
            "mean": float(np.mean(gaps)),
            "lowest": float(min(gaps)),
            "refused": refused / (DRAWS * len(found)),
            "draws": DRAWS,
        }
    return table


@dataclass
class _UnlessRefused:
    """A method that suppresses nothing in a fold where its fit is refused, and counts them."""

    method: CrossFittedMethod
    refused: int = 0

    @property
    def name(self) -> str:
        return self.method.name

    def fit(self, fold: Fold) -> EditedHead:
        try:
            return self.method.fit(fold)
        except EvidenceError:
            self.refused += 1
            return EditedHead(fold.head, lambda x: x)
