"""How much more labels would bring: the AUROC of encoders fitted on few images, on all that were not used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

from dermaudit.stats.intervals import auroc

from .latent import ConceptLatent, fit_encoder, standardised

if TYPE_CHECKING:
    from jaxtyping import Float

SIZES = (10, 25, 50, 100, 200, 400)
DRAWS = 5


@dataclass(frozen=True)
class CurvePoint:
    """`n` images with and as many without the concept: mean and lowest AUROC of the draws."""

    n: int
    auroc: float
    lowest: float


def learning_curve(
    x: Float[np.ndarray, "n d"],
    present: np.ndarray,
    groups: np.ndarray,
    *,
    after: Sequence[ConceptLatent] = (),
    seed: int = 0,
) -> list[CurvePoint]:
    """Return a point for each size that leaves at least as many images of either kind to be scored.

    Images of a group that was drawn are not scored. `after` as in `ConceptLatent.fit`.
    """
    if after:
        x = standardised(x, after)[3]
    kinds = [np.flatnonzero(present == kind) for kind in (0, 1)]
    curve = []
    for n in (n for n in SIZES if 2 * n <= min(map(len, kinds))):
        found = []
        for draw in range(DRAWS):
            generator = np.random.default_rng([seed, n, draw])
            rows = np.concatenate([generator.permutation(kind)[:n] for kind in kinds])
            rest = np.flatnonzero(~np.isin(groups, groups[rows]))
            mean, sd = x[rows].mean(0), x[rows].std(0) + 1e-8
            with threadpool_limits(1, "blas"):
                weight, _ = fit_encoder((x[rows] - mean) / sd, present[rows])
            found.append(auroc(present[rest], ((x[rest] - mean) / sd) @ weight))
        curve.append(CurvePoint(n, float(np.mean(found)), float(np.min(found))))
    return curve
