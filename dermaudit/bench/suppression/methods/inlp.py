"""INLP (arXiv 2004.07667): project onto the null space of a classifier of the artifact, again and again."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression

from dermaudit.concepts.evidence.cross_fit import Fold
from dermaudit.concepts.evidence.edited_head import EditedHead
from dermaudit.stats.intervals import auroc

MAX_DIRECTIONS = 10
CHANCE = 0.55  # of the AUROC on the fitting rows, at which it stops


class Inlp:
    """On standardised rows; the mean of the rows is kept."""

    name = "inlp"

    def fit(self, fold: Fold) -> EditedHead:
        """Fit on the negatives of the fold."""
        rows = fold.rows_of(0)
        x, a = fold.data.x[rows], fold.data.a[rows]
        mean, sd = x.mean(0), x.std(0) + 1e-8
        u = (x - mean) / sd
        basis: list[np.ndarray] = []
        for _ in range(MAX_DIRECTIONS):
            model = LogisticRegression(C=0.01, max_iter=2000).fit(u, a)
            if auroc(a, model.decision_function(u)) < CHANCE:
                break
            direction = model.coef_[0]
            for known in basis:
                direction = direction - (direction @ known) * known
            basis.append(direction / np.linalg.norm(direction))
            u = u - np.outer(u @ basis[-1], basis[-1])
        found = np.array(basis)

        def edit(x: np.ndarray) -> np.ndarray:
            return x - (((x - mean) / sd) @ found.T) @ found * sd

        return EditedHead(fold.head, edit)


METHOD = Inlp()
