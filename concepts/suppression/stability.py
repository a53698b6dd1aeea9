"""How much what a recipe suppresses depends on the images that it was made from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dermaudit.errors import EvidenceError
from dermaudit.sae.evaluation.stability import match, unit

from ..evidence.cross_fit import TrainingRows
from .editor import Edit
from .figures import Stability
from .methods.registry import SuppressionMethod

HALVINGS = 5


def stability_of(method: SuppressionMethod, rows: TrainingRows, edit: Edit) -> Stability | None:
    """Return how alike the directions are that the method takes off images after it was fitted on halves of the
    rows; None where a half is too small for it.
    """
    groups = rows.data.groups[rows.train]
    cosines = []
    for halving in range(HALVINGS):
        names = np.unique(groups)
        np.random.default_rng([rows.data.seed, 16, halving]).shuffle(names)
        first = np.isin(groups, names[: len(names) // 2])
        try:
            a, b = (
                _directions(method, replace(rows, train=rows.train[half]), edit)
                for half in (first, ~first)
            )
        except EvidenceError:
            return None
        cosine = a @ b.T
        cosines.append(float(cosine[match(cosine)].mean()))
    return Stability(
        cosine=float(np.mean(cosines)), low=min(cosines), high=max(cosines), halvings=HALVINGS
    )


def _directions(method: SuppressionMethod, rows: TrainingRows, edit: Edit) -> np.ndarray:
    chosen = method.choose(rows, edit)
    return unit(chosen.sae.W_dec.numpy()[chosen.latents].astype(np.float64))
