"""RoboShot (arXiv 2309.04344): remove the direction between texts with and without the artifact; no labels."""

from __future__ import annotations

import numpy as np

from dermaudit.concepts.evidence.cross_fit import Fold
from dermaudit.concepts.evidence.edited_head import EditedHead
from dermaudit.errors import EvidenceError


class RoboShot:
    """The harmful direction alone; rows are rescaled to unit length."""

    name = "roboshot"

    def fit(self, fold: Fold) -> EditedHead:
        """Return the edit; nothing is fitted. EvidenceError for a model without text."""
        direction = fold.data.text_direction
        if direction is None:
            raise EvidenceError("the model has no text encoder, which roboshot needs")
        v = direction / np.linalg.norm(direction)

        def edit(x: np.ndarray) -> np.ndarray:
            out = x - np.outer(x @ v, v)
            return out / np.linalg.norm(out, axis=1, keepdims=True)

        return EditedHead(fold.head, edit)


METHOD = RoboShot()
