"""Ranking scores and intervals: AUROC, AUPRC (average precision), bootstrap over groups.

Everything is float64 numpy, vectorised over many score columns at once: the audit asks for the
AUPRC of thousands of latents. Ties are handled as scikit-learn does (one step per distinct score).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

MIN_CELL = 30  # a cell with fewer images prints "n too small" (design §10)


def auroc(truth: Shaped[np.ndarray, " n"], score: Shaped[np.ndarray, " n"]) -> float:
    """Area under the ROC curve of one score; ties count one half. nan when one class is absent."""
    return float(auroc_many(truth, np.asarray(score)[:, None])[0])


def auroc_many(
    truth: Shaped[np.ndarray, " n"], scores: Shaped[np.ndarray, "n m"]
) -> Float[np.ndarray, " m"]:
    """AUROC of every column of `scores` (n, m) against 0/1 `truth` (n,). Mann-Whitney by mid-ranks."""
    from scipy.stats import rankdata

    truth = np.asarray(truth).astype(bool)
    n_pos, n_neg = int(truth.sum()), int((~truth).sum())
    if n_pos == 0 or n_neg == 0:
        return np.full(scores.shape[1], np.nan)
    ranks = rankdata(np.asarray(scores, dtype=np.float64), axis=0)
    return (ranks[truth].sum(0) - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg)


def auprc(
    truth: Shaped[np.ndarray, " n"],
    score: Shaped[np.ndarray, " n"],
    weight: Shaped[np.ndarray, " n"] | None = None,
) -> float:
    """Average precision of one score, with optional non-negative weights (bootstrap counts)."""
    order, last = _descending(np.asarray(score, dtype=np.float64))
    w = np.ones(len(truth)) if weight is None else np.asarray(weight, dtype=np.float64)
    return float(_ap_ordered(np.asarray(truth, dtype=np.float64), order, last, w[None])[0])


def auprc_table(
    scores: Shaped[np.ndarray, "n m"], truths: Float[np.ndarray, "n t"]
) -> Float[np.ndarray, "t m"]:
    """Average precision of every score column for every truth column: (truths, scores).

    scores (n, m); truths (n, t) of 1, 0 or nan = unknown (such rows are left out for that truth).
    Each score is sorted once for all truths. nan where a truth has no positive or no negative.
    """
    known = np.isfinite(truths)
    filled = np.where(known, truths, 0.0)
    positives = filled.sum(0)
    defined = (positives > 0) & (positives < known.sum(0))
    out = np.full((truths.shape[1], scores.shape[1]), np.nan)
    for column in range(scores.shape[1]):
        order, last = _descending(scores[:, column])
        hits = filled[order].cumsum(0)[last]
        seen = known[order].cumsum(0)[last]
        gained = np.diff(hits, axis=0, prepend=0.0)
        precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
        total = (precision * gained).sum(0)
        out[defined, column] = total[defined] / positives[defined]
    return out


def _descending(score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    last = np.append(ordered[:-1] != ordered[1:], True)
    return order, np.flatnonzero(last)


def _ap_ordered(
    truth: np.ndarray, order: np.ndarray, last: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """Average precision for each row of `weight` (draws, n)."""
    w = weight[:, order]
    hits = (w * truth[order]).cumsum(1)[:, last]
    seen = w.cumsum(1)[:, last]
    gained = np.diff(hits, axis=1, prepend=0.0)
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (precision * gained).sum(1) / hits[:, -1]


class GroupBootstrap:
    """Resamples whole groups (patients, lesions) with replacement, as row weights.

    `weights()` yields `n_draws` integer weight vectors (n,). The same seed gives the same draws, so
    that several figures are bootstrapped jointly by passing the same object.
    """

    def __init__(
        self, groups: Sequence[object] | np.ndarray, n_draws: int = 1000, seed: int = 0
    ) -> None:
        _, self._member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
        self._n_groups = int(self._member.max()) + 1 if len(self._member) else 0
        self.n_draws = n_draws
        self._seed = seed

    def weights(self) -> Iterator[np.ndarray]:
        """Yield one weight vector per draw, float64 (n,)."""
        generator = np.random.default_rng(self._seed)
        for _ in range(self.n_draws):
            drawn = generator.integers(0, self._n_groups, self._n_groups)
            yield np.bincount(drawn, minlength=self._n_groups)[self._member].astype(np.float64)

    def matrix(self) -> np.ndarray:
        """Return all draws at once: (n_draws, n) float64."""
        return np.stack(list(self.weights()))

    def blocks(self, max_cells: int = 1 << 22) -> Iterator[np.ndarray]:
        """Yield the rows of `matrix` in order, a block of at most `max_cells` numbers at a time."""
        step = max(1, max_cells // max(1, len(self._member)))
        weights = self.weights()
        while block := list(itertools.islice(weights, step)):
            yield np.stack(block)

    def interval(
        self, statistic: Callable[[np.ndarray], float], level: float = 0.95
    ) -> tuple[float, float]:
        """Percentile interval of `statistic(weights)`; draws that give nan are left out.

        (nan, nan) when fewer than half of the draws are defined.
        """
        values = np.array([statistic(weight) for weight in self.weights()])
        return percentile_interval(values, level)


def percentile_interval(
    values: Shaped[np.ndarray, " draws"], level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile interval of draws; (nan, nan) when fewer than half of them are defined."""
    defined = values[np.isfinite(values)]
    if len(defined) < max(2, len(values) / 2):
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def auprc_draws(truth: np.ndarray, scores: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Return the average precision of several scores for each row of `weights` (draws, n): (draws, len(scores) + 1).

    The last column is the prevalence of the draw. Orders are computed once.
    """
    truth = np.asarray(truth, dtype=np.float64)
    plans = [_descending(np.asarray(score, dtype=np.float64)) for score in scores]
    columns = [_ap_ordered(truth, order, last, weights) for order, last in plans]
    return np.stack([*columns, (weights @ truth) / weights.sum(1)], axis=1)


def auroc_draws(
    truth: Shaped[np.ndarray, " n"],
    score: Shaped[np.ndarray, " n"],
    weights: Shaped[np.ndarray, "draws n"],
) -> Float[np.ndarray, " draws"]:
    """AUROC for each row of `weights` (draws, n): (draws,). The order is computed once."""
    truth = np.asarray(truth, dtype=np.float64)
    order, last = _descending(np.asarray(score, dtype=np.float64))
    w, t = weights[:, order], truth[order]
    pos = np.diff((w * t).cumsum(1)[:, last], axis=1, prepend=0.0)
    neg = np.diff((w * (1 - t)).cumsum(1)[:, last], axis=1, prepend=0.0)
    above = pos.cumsum(1) - pos  # positives scored strictly higher than each tie group
    with np.errstate(invalid="ignore", divide="ignore"):
        return (neg * (above + pos / 2)).sum(1) / (pos.sum(1) * neg.sum(1))


def auroc_interval(
    truth: np.ndarray,
    score: np.ndarray,
    groups: Sequence[object] | np.ndarray,
    *,
    n_draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval of the AUROC by bootstrap over groups."""
    weights = GroupBootstrap(groups, n_draws, seed).matrix()
    return percentile_interval(auroc_draws(truth, score, weights))
