"""How far an embedding lies from those that a recipe was made from.

A Gaussian with few directions of its own variance and one variance for the rest (probabilistic PCA, Tipping and
Bishop 1999); the distance is Mahalanobis's, as in Lee et al. (arXiv 1807.03888). An image over the limit is
flagged as unlike the images of the recipe: nothing was measured on such images.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from dermaudit.errors import ForeignArtifactError
from dermaudit.stats.folds import group_folds

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

MAX_DIRECTIONS = 32
ROWS_PER_DIRECTION = 10  # fewer rows give no direction of their own
QUANTILE = 0.99
FOLDS = 5


class Distribution(TypedDict):
    """Of `n` embeddings of width `d`: base64 of little-endian float32, and the variance of every other
    dimension. `limit`: the distance that QUANTILE of images held out of the fit do not exceed.
    """

    n: int
    d: int
    mean: str  # (d,)
    directions: str  # (k, d), orthonormal
    variances: str  # (k,)
    rest: float
    limit: float


class Gaussian:
    """The distribution with its arrays. ForeignArtifactError for arrays that do not fit together."""

    def __init__(self, distribution: Distribution) -> None:
        try:
            arrays = [
                np.frombuffer(base64.b64decode(distribution[name], validate=True), "<f4")
                for name in ("mean", "directions", "variances")
            ]
            self.mean, directions, self.variances = (array.astype(np.float64) for array in arrays)
            self.directions = directions.reshape(len(self.variances), distribution["d"])
            self.rest, self.limit = float(distribution["rest"]), float(distribution["limit"])
            if self.mean.shape != (distribution["d"],):
                raise ValueError(f"mean of width {len(self.mean)}")
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise ForeignArtifactError(
                f"the distribution of the recipe does not fit together ({error})"
            ) from error

    def distance(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """Return the squared distance of rows x (n, d), divided by their width: about 1 for rows of the fit."""
        away = x - self.mean
        along = away @ self.directions.T
        rest = np.maximum((away * away).sum(1) - (along * along).sum(1), 0.0)
        return ((along * along / self.variances).sum(1) + rest / self.rest) / len(self.mean)


def unlike(ordinary: Sequence[Gaussian], x: Float[np.ndarray, "n d"]) -> Bool[np.ndarray, " n"]:
    """Return which rows x (n, d) are over the limit of any of the distributions."""
    over = np.zeros(len(x), bool)
    for one in ordinary:
        over |= one.distance(x) > one.limit
    return over


def distribution_of(x: Float[np.ndarray, "n d"], groups: np.ndarray, seed: int = 0) -> Distribution:
    """Fit the distribution of rows x (n, d); the limit is that of rows whose group (n,) was held out."""
    fitted = _fit(x)
    held = np.empty(len(x))
    for train, test in group_folds(np.zeros(len(x), int), groups, FOLDS, seed):
        held[test] = Gaussian(_fit(x[train])).distance(x[test])
    return {**fitted, "limit": float(np.quantile(held, QUANTILE))}


def _fit(x: np.ndarray) -> Distribution:
    n, d = x.shape
    mean = x.mean(0, dtype=np.float64)
    values, vectors = np.linalg.eigh(np.cov(x - mean, rowvar=False, bias=True))
    k = max(1, min(MAX_DIRECTIONS, d // 2, n // ROWS_PER_DIRECTION))

    def text(array: np.ndarray) -> str:
        return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode()

    return Distribution(
        n=n,
        d=d,
        mean=text(mean),
        directions=text(vectors[:, ::-1][:, :k].T),
        variances=text(np.maximum(values[::-1][:k], 1e-12)),
        rest=float(max(values[: d - k].mean(), 1e-12)),
        limit=0.0,
    )
