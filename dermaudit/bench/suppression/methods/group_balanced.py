"""The rows of the trap head again, with weights by which its four groups count the same."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression

from dermaudit.concepts.evidence.cross_fit import Fold
from dermaudit.concepts.evidence.edited_head import EditedHead
from dermaudit.heads import LinearHead


class GroupBalanced:
    """The penalty is the trap head's own."""

    name = "group_balanced"

    def fit(self, fold: Fold) -> EditedHead:
        """Fit a weighted head on the rows of the trap head."""
        rows, data, trap = fold.trap_rows, fold.data, fold.head
        group = 2 * data.y[rows] + data.a[rows]
        counts = {value: int((group == value).sum()) for value in np.unique(group)}
        weight = np.array([len(rows) / (len(counts) * counts[value]) for value in group])
        u = (data.x[rows] - trap.mean) / trap.scale
        model = LogisticRegression(C=trap.C, max_iter=2000).fit(u, data.y[rows], weight)
        half = model.coef_[0] / 2
        head = LinearHead(
            np.stack([-half, half]).astype(np.float32),
            np.array([-model.intercept_[0] / 2, model.intercept_[0] / 2], dtype=np.float32),
            trap.mean, trap.scale, trap.classes, trap.C, trap.site, len(rows),
        )  # fmt: skip
        return EditedHead(head, lambda x: x)


METHOD = GroupBalanced()
