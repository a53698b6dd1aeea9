"""Reactive P-ClArC (arXiv 2404.09601): P-ClArC only where a linear classifier sees the artifact."""

from __future__ import annotations

import numpy as np

from dermaudit.concepts.evidence.cross_fit import Fold
from dermaudit.concepts.evidence.edited_head import EditedHead
from dermaudit.heads import fit_probe, probe_score

from .p_clarc import projection


class ReactivePClarc:
    """The condition is a probe of the artifact with probability above one half."""

    name = "reactive_p_clarc"

    def fit(self, fold: Fold) -> EditedHead:
        """Fit on the negatives of the fold."""
        rows, data = fold.rows_of(0), fold.data
        project = projection(fold)
        probe = fit_probe(data.x[rows], data.a[rows], data.groups[rows], seed=data.seed)

        def edit(x: np.ndarray) -> np.ndarray:
            return np.where((probe_score(probe, x) > 0)[:, None], project(x), x)

        return EditedHead(fold.head, edit)


METHOD = ReactivePClarc()
