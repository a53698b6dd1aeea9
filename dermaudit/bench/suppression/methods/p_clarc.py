"""P-ClArC (arXiv 2308.09437): move every row along the signal direction of the artifact to the mean of the
rows without it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dermaudit.concepts.evidence.cross_fit import Fold
from dermaudit.concepts.evidence.edited_head import EditedHead


def projection(fold: Fold) -> Callable[[np.ndarray], np.ndarray]:
    """Return x' = x − v vᵀ (x − mean without), v the unit signal direction cov(x, a) / var(a)."""
    rows = fold.rows_of(0)
    x, a = fold.data.x[rows], fold.data.a[rows]
    signal = (x - x.mean(0)).T @ (a - a.mean())
    signal /= np.linalg.norm(signal)
    free = x[a == 0].mean(0)
    return lambda x: x - np.outer((x - free) @ signal, signal)


class PClarc:
    """Every row is edited."""

    name = "p_clarc"

    def fit(self, fold: Fold) -> EditedHead:
        """Fit on the negatives of the fold."""
        return EditedHead(fold.head, projection(fold))


METHOD = PClarc()
