"""Remove the direction between the class means, on standardised rows, to the level of rows without it."""

from __future__ import annotations

import numpy as np

from dermaudit.concepts.evidence.cross_fit import Fold
from dermaudit.concepts.evidence.edited_head import EditedHead


class MeanDifference:
    """x' = x − (u · g − mean of rows without) g, u the standardised row and g the unit difference."""

    name = "mean_difference"

    def fit(self, fold: Fold) -> EditedHead:
        """Fit on the negatives of the fold."""
        rows = fold.rows_of(0)
        x, a = fold.data.x[rows], fold.data.a[rows]
        mean, sd = x.mean(0), x.std(0) + 1e-8
        u = (x - mean) / sd
        gap = u[a == 1].mean(0) - u[a == 0].mean(0)
        gap /= np.linalg.norm(gap)
        level = (u[a == 0] @ gap).mean()

        def edit(x: np.ndarray) -> np.ndarray:
            score = ((x - mean) / sd) @ gap - level
            return x - score[:, None] * gap * sd

        return EditedHead(fold.head, edit)


METHOD = MeanDifference()
