"""LEACE (arXiv 2306.03819) by its authors' package: the smallest edit after which no linear classifier finds
the artifact.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch

from dermaudit.concepts.evidence.cross_fit import Fold
from dermaudit.concepts.evidence.edited_head import EditedHead
from dermaudit.errors import UserInputError


class Leace:
    """The eraser of `concept-erasure`, fitted in float64."""

    name = "leace"

    def fit(self, fold: Fold) -> EditedHead:
        """Fit on the negatives of the fold. UserInputError if the package is not installed."""
        try:
            with warnings.catch_warnings():
                # The package compiles a function that we do not call, in a way that torch deprecates.
                warnings.simplefilter("ignore", FutureWarning)
                from concept_erasure import LeaceEraser
        except ImportError as error:
            raise UserInputError(
                "the method leace needs the package concept-erasure", "pip install concept-erasure"
            ) from error
        rows = fold.rows_of(0)
        x = torch.from_numpy(fold.data.x[rows].astype(np.float64))
        eraser = LeaceEraser.fit(x, torch.from_numpy(fold.data.a[rows].astype(np.int64)))

        def edit(x: np.ndarray) -> np.ndarray:
            return eraser(torch.from_numpy(x.astype(np.float64))).numpy()

        return EditedHead(fold.head, edit)


METHOD = Leace()
